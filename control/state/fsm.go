package state

import (
	"errors"
	"fmt"

	"github.com/hashicorp/go-memdb"
	"github.com/hashicorp/raft"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

const (
	// FeatureLevel is the newest command that this build can apply. A server
	// declares it in the state; nothing newer is proposed before every voter has.
	// 2: events. 3: workloads with network rules.
	FeatureLevel = 3
	// EventsLevel is needed to keep events.
	EventsLevel = 2
	// NetworkRulesLevel is needed to keep a workload's network rules: an older
	// server would drop them, and its nodes would let instances out.
	NetworkRulesLevel = 3
	// BaseLevel is what every server that was ever released can apply.
	BaseLevel = 1

	// DedupWindow is for how many log entries a command id is remembered.
	DedupWindow = 8192
)

// Words of OperationResult.Result.
const (
	Created   = "created"
	Changed   = "changed"
	Unchanged = "unchanged"
)

// Applied is what one command did.
type Applied struct {
	// Index of the log entry that did it: an earlier one, for a duplicate.
	Index uint64
	// Results, one an operation, in order. Shared: never change them.
	Results []*redoubtv1.OperationResult
	// Duplicate: the command's id was known, so nothing was done now.
	Duplicate bool
	// Err says that the entry was no command at all.
	Err error
}

// RequiredLevel is the feature level that a server needs to apply cmd.
func RequiredLevel(cmd *redoubtv1.Command) uint32 {
	level := max(BaseLevel, cmd.GetFeatureLevel())
	for _, op := range cmd.GetOperations() {
		if op.GetRecordEvents() != nil {
			level = max(level, EventsLevel)
		}
		if op.GetPutWorkload().GetWorkload().GetNetworkRules() != nil {
			level = max(level, NetworkRulesLevel)
		}
	}
	return level
}

// FSM applies committed log entries to its store. Only Raft calls it, from one
// goroutine.
type FSM struct {
	store *Store
}

var (
	_ raft.FSM         = (*FSM)(nil)
	_ raft.BatchingFSM = (*FSM)(nil)
)

// FSM returns the writing side of the store. There must be one writer.
func (s *Store) FSM() *FSM { return &FSM{store: s} }

// Apply applies one log entry; the answer is an Applied.
func (f *FSM) Apply(log *raft.Log) any { return f.ApplyBatch([]*raft.Log{log})[0] }

// ApplyBatch applies log entries in order and shows them to readers at once.
func (f *FSM) ApplyBatch(logs []*raft.Log) []any {
	results := make([]any, len(logs))
	txn := f.store.db.Txn(true)
	defer txn.Abort()
	var last uint64
	for i, log := range logs {
		if log.Type != raft.LogCommand {
			continue
		}
		var cmd redoubtv1.Command
		if err := proto.Unmarshal(log.Data, &cmd); err != nil {
			results[i] = Applied{Index: log.Index, Err: fmt.Errorf("log entry %d is no command: %w", log.Index, err)}
			begin(txn, log.Index)
		} else {
			results[i] = applyCommand(txn, log.Index, &cmd)
		}
		last = log.Index
	}
	if last > 0 {
		txn.Commit()
		f.store.published(last)
	}
	return results
}

// ApplyCommand applies cmd as the log entry at index, for who has no Raft:
// tests and simulations.
func (f *FSM) ApplyCommand(index uint64, cmd *redoubtv1.Command) Applied {
	data, err := proto.Marshal(cmd)
	if err != nil {
		return Applied{Index: index, Err: err}
	}
	return f.Apply(&raft.Log{Index: index, Type: raft.LogCommand, Data: data}).(Applied)
}

// begin moves the state to index and forgets what has left the windows.
func begin(txn *memdb.Txn, index uint64) *apply {
	a := &apply{View: View{txn: txn}, index: index}
	m := *a.meta()
	m.index = index
	for _, c := range expired[*redoubtv1.AppliedCommand](&a.View, tableApplied, func(c *redoubtv1.AppliedCommand) bool {
		return c.GetIndex()+DedupWindow <= index
	}) {
		remove(txn, tableApplied, c)
	}
	for _, t := range expired[*tombstone](&a.View, tableTombstones, func(t *tombstone) bool {
		return t.index+TombstoneWindow <= index
	}) {
		m.floor = max(m.floor, t.index)
		remove(txn, tableTombstones, t)
	}
	insert(txn, tableMeta, &m)
	return a
}

// expired collects the oldest entries of a table for as long as old says so.
func expired[T any](v *View, table string, old func(T) bool) []T {
	it, err := v.txn.Get(table, prefixed(indexLog), []byte(nil))
	if err != nil {
		panic(fmt.Sprintf("state: read %s: %v", table, err))
	}
	var out []T
	for obj := it.Next(); obj != nil && old(obj.(T)); obj = it.Next() {
		out = append(out, obj.(T))
	}
	return out
}

func applyCommand(txn *memdb.Txn, index uint64, cmd *redoubtv1.Command) Applied {
	if cmd.GetFeatureLevel() > FeatureLevel {
		// The proposer's gate keeps this from happening. Going on would make this
		// server's state differ from the others' for ever.
		panic(fmt.Sprintf("log entry %d needs feature level %d and this server knows %d: install the newer version", index, cmd.GetFeatureLevel(), FeatureLevel))
	}
	a := begin(txn, index)
	a.now = cmd.GetTime().AsTime()
	id := cmd.GetId()
	if id != "" {
		if before, ok := a.Applied(id); ok {
			return before
		}
	}
	done := Applied{Index: index, Results: make([]*redoubtv1.OperationResult, len(cmd.GetOperations()))}
	for i, op := range cmd.GetOperations() {
		done.Results[i] = a.operation(op)
	}
	if id != "" && len(id) <= maxID {
		insert(txn, tableApplied, &redoubtv1.AppliedCommand{Id: id, Index: index, Results: done.Results})
	}
	return done
}

// outcome of an operation that was not refused.
type outcome struct {
	revision uint64
	result   string
}

// refusal is an operation's error: a gRPC code and what a person is told.
type refusal struct {
	code    codes.Code
	message string
}

func (r *refusal) Error() string { return r.message }

func refuse(code codes.Code, format string, args ...any) error {
	return &refusal{code, fmt.Sprintf(format, args...)}
}

func (a *apply) operation(op *redoubtv1.Operation) *redoubtv1.OperationResult {
	out, err := a.dispatch(op)
	if err != nil {
		code, message := codes.InvalidArgument, err.Error()
		if r := (*refusal)(nil); errors.As(err, &r) {
			code = r.code
		}
		return &redoubtv1.OperationResult{Code: uint32(code), Message: message}
	}
	return &redoubtv1.OperationResult{Revision: out.revision, Result: out.result}
}

func (a *apply) dispatch(op *redoubtv1.Operation) (outcome, error) {
	switch o := op.GetOperation().(type) {
	case *redoubtv1.Operation_InitCluster:
		return a.initCluster(o.InitCluster)
	case *redoubtv1.Operation_PutAuthority:
		return a.putAuthority(o.PutAuthority.GetAuthority())
	case *redoubtv1.Operation_PutServer:
		return a.putServer(o.PutServer.GetServer())
	case *redoubtv1.Operation_RemoveServer:
		return a.removeServer(o.RemoveServer)
	case *redoubtv1.Operation_PutRole:
		return a.putRole(o.PutRole.GetRole())
	case *redoubtv1.Operation_PutToken:
		return a.putToken(o.PutToken)
	case *redoubtv1.Operation_BindToken:
		return a.bindToken(o.BindToken)
	case *redoubtv1.Operation_RemoveTokens:
		return a.removeTokens(o.RemoveTokens)
	case *redoubtv1.Operation_PutSiteKeys:
		return a.putSiteKeys(o.PutSiteKeys)
	case *redoubtv1.Operation_PutReport:
		return a.putReport(o.PutReport)
	case *redoubtv1.Operation_SetNodeMark:
		return a.setNodeMark(o.SetNodeMark)
	case *redoubtv1.Operation_PutWorkload:
		return a.putWorkload(o.PutWorkload)
	case *redoubtv1.Operation_StopWorkload:
		return a.stopWorkload(o.StopWorkload)
	case *redoubtv1.Operation_RemoveWorkload:
		return a.removeWorkload(o.RemoveWorkload)
	case *redoubtv1.Operation_Assign:
		return a.assign(o.Assign)
	case *redoubtv1.Operation_StopAssignment:
		return a.stopAssignment(o.StopAssignment)
	case *redoubtv1.Operation_PutStatus:
		return a.putStatus(o.PutStatus)
	case *redoubtv1.Operation_RemoveAssignment:
		return a.removeAssignment(o.RemoveAssignment)
	case *redoubtv1.Operation_RecordEvents:
		return a.recordEvents(o.RecordEvents)
	}
	return outcome{}, refuse(codes.Unimplemented, "unknown operation")
}
