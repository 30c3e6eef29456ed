package state

import (
	"bytes"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"redoubt.dev/redoubt/isolation"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// machine is a state with a log that a test appends to.
type machine struct {
	t interface {
		Helper()
		Fatalf(string, ...any)
	}
	*Store
	fsm   *FSM
	index uint64
}

func newMachine(t interface {
	Helper()
	Fatalf(string, ...any)
}) *machine {
	s := NewStore()
	return &machine{t: t, Store: s, fsm: s.FSM()}
}

// do applies operations as one command and returns their results.
func (m *machine) do(ops ...*redoubtv1.Operation) []*redoubtv1.OperationResult {
	m.index++
	return m.fsm.ApplyCommand(m.index, &redoubtv1.Command{
		Id: fmt.Sprintf("cmd-%d", m.index), Time: timestamppb.New(epoch.Add(time.Duration(m.index) * time.Second)), Operations: ops,
	}).Results
}

// ok demands that op is taken, with that result.
func (m *machine) ok(op *redoubtv1.Operation, want string) uint64 {
	m.t.Helper()
	r := m.do(op)[0]
	if r.GetCode() != 0 || r.GetResult() != want {
		m.t.Fatalf("%v: %s %q, want %s", op, codes.Code(r.GetCode()), r.GetMessage()+r.GetResult(), want)
	}
	return r.GetRevision()
}

// no demands that op is refused so, and changes nothing.
func (m *machine) no(op *redoubtv1.Operation, code codes.Code, words string) {
	m.t.Helper()
	before := bytesWithoutApplied(m.Store)
	r := m.do(op)[0]
	if codes.Code(r.GetCode()) != code || !bytes.Contains([]byte(r.GetMessage()), []byte(words)) {
		m.t.Fatalf("%v: %s %q, want %s with %q", op, codes.Code(r.GetCode()), r.GetMessage(), code, words)
	}
	if !bytes.Equal(before, bytesWithoutApplied(m.Store)) {
		m.t.Fatalf("%v was refused and changed the state", op)
	}
}

func snapshotBytes(s *Store) []byte {
	var b bytes.Buffer
	if err := s.Snapshot().Write(&b); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// bytesWithoutApplied is the state but for its index and the known commands.
func bytesWithoutApplied(s *Store) []byte {
	v := s.Snapshot()
	var b []byte
	for _, table := range replicated {
		if table == tableApplied {
			continue
		}
		it, err := v.txn.Get(table, prefixed(indexID), []byte(nil))
		if err != nil {
			panic(err)
		}
		for o := it.Next(); o != nil; o = it.Next() {
			b, _ = proto.MarshalOptions{Deterministic: true}.MarshalAppend(b, record(o))
		}
	}
	return b
}

func (m *machine) restoreFrom(data []byte) error {
	return m.fsm.Restore(io.NopCloser(bytes.NewReader(data)))
}

func opInit() *redoubtv1.Operation {
	return &redoubtv1.Operation{Operation: &redoubtv1.Operation_InitCluster{InitCluster: &redoubtv1.InitCluster{
		ClusterId: "c1", TrustDomain: "fleet.test", Server: &redoubtv1.Server{Id: "s1", ApiAddress: "10.0.0.1:7450", FeatureLevel: 1},
		Authority: &redoubtv1.Authority{Server: "s1", Certificate: []byte("cert")},
		Admin:     &redoubtv1.RoleBinding{User: "root", Role: "admin"},
	}}}
}

func opToken(id, node, site string) *redoubtv1.Operation {
	return &redoubtv1.Operation{Operation: &redoubtv1.Operation_PutToken{PutToken: &redoubtv1.PutToken{
		Id: id, SecretHash: []byte("hash-" + id), Role: "node", Node: node, Site: site, Expires: timestamppb.New(epoch.Add(time.Hour)),
	}}}
}

func opBind(token, node, site, key string) *redoubtv1.Operation {
	return &redoubtv1.Operation{Operation: &redoubtv1.Operation_BindToken{BindToken: &redoubtv1.BindToken{
		Id: token, SecretHash: []byte("hash-" + token), KeyHash: key, Node: node, Site: site,
	}}}
}

func report(node, site string, generation uint64, cpu, memory int64) *redoubtv1.Report {
	return &redoubtv1.Report{
		Node: node, Site: site, Generation: generation,
		Host: &redoubtv1.HostFacts{Arch: "amd64", CpuMillis: cpu, MemoryBytes: memory},
		Findings: []*redoubtv1.Finding{
			{Runtime: "runc", Class: redoubtv1.IsolationClass_ISOLATION_CLASS_CONTAINER, State: redoubtv1.FindingState_FINDING_STATE_VERIFIED},
			{Runtime: "gvisor", Variant: "systrap", Class: redoubtv1.IsolationClass_ISOLATION_CLASS_SANDBOX, State: redoubtv1.FindingState_FINDING_STATE_VERIFIED, OverheadMemoryBytes: 16 << 20},
			{Runtime: "kata-qemu", Class: redoubtv1.IsolationClass_ISOLATION_CLASS_VM, State: redoubtv1.FindingState_FINDING_STATE_INSTALLED},
		},
	}
}

func opReport(r *redoubtv1.Report) *redoubtv1.Operation {
	return &redoubtv1.Operation{Operation: &redoubtv1.Operation_PutReport{PutReport: &redoubtv1.PutReport{Report: r, AgentVersion: "1"}}}
}

func opMark(node string, cordoned, lost *bool) *redoubtv1.Operation {
	return &redoubtv1.Operation{Operation: &redoubtv1.Operation_SetNodeMark{SetNodeMark: &redoubtv1.SetNodeMark{Node: node, Cordoned: cordoned, Lost: lost}}}
}

func workload(name, kind, floor string, hostPort uint32) *redoubtv1.Workload {
	w := &redoubtv1.Workload{
		Kind: kind, Namespace: "default", Name: name, Isolation: &redoubtv1.Isolation{Floor: floor},
		Containers: []*redoubtv1.Container{{Name: "main", Image: "registry.test/x:1", Resources: &redoubtv1.Resources{
			Requests: map[string]string{"cpu": "100m", "memory": "64Mi"}, Limits: map[string]string{"memory": "64Mi"},
		}}},
	}
	if hostPort != 0 {
		w.Containers[0].Ports = []*redoubtv1.ContainerPort{{ContainerPort: 80, HostPort: hostPort}}
	}
	return w
}

func opWorkload(w *redoubtv1.Workload) *redoubtv1.Operation {
	return &redoubtv1.Operation{Operation: &redoubtv1.Operation_PutWorkload{PutWorkload: &redoubtv1.PutWorkload{Workload: w, User: "ann", Uid: "w-" + w.GetName()}}}
}

func opStopWorkload(name string) *redoubtv1.Operation {
	return &redoubtv1.Operation{Operation: &redoubtv1.Operation_StopWorkload{StopWorkload: &redoubtv1.StopWorkloadOp{Namespace: "default", Name: name, User: "ann"}}}
}

func opRemoveWorkload(name string) *redoubtv1.Operation {
	return &redoubtv1.Operation{Operation: &redoubtv1.Operation_RemoveWorkload{RemoveWorkload: &redoubtv1.RemoveWorkload{Namespace: "default", Name: name, Uid: "w-" + name}}}
}

func uid(n int) string { return fmt.Sprintf("u%019d", n) }

// plan is a right assignment of the workload's next instance, as of now.
func (m *machine) plan(n int, name, node, runtime string) *redoubtv1.Assign {
	v := m.Snapshot()
	w, ok := v.Workload(nil, "default", name)
	if !ok {
		m.t.Fatalf("no workload %s", name)
	}
	nd, ok := v.Node(nil, isolation.NodeID(node))
	if !ok {
		m.t.Fatalf("no node %s", node)
	}
	variant := ""
	if runtime == "gvisor" {
		variant = "systrap"
	}
	f, _ := nd.Finding(isolation.Name(runtime), variant)
	return &redoubtv1.Assign{Ordinal: w.NextOrdinal, Assignment: &redoubtv1.Assignment{
		Uid: uid(n), Namespace: "default", Workload: name, Instance: fmt.Sprintf("%s-%d", name, w.NextOrdinal),
		Node: node, Site: string(nd.Site), Runtime: runtime, Variant: variant,
		Class: redoubtv1.IsolationClass(f.Class), Floor: redoubtv1.IsolationClass(w.Spec.Isolation.Floor),
		Revision: w.Revision, NodeGeneration: nd.Generation(),
		CpuMillis: w.Spec.CPUMillis(), MemoryBytes: w.Spec.MemoryBytes() + f.OverheadMemory,
	}}
}

func opAssign(a *redoubtv1.Assign) *redoubtv1.Operation {
	return &redoubtv1.Operation{Operation: &redoubtv1.Operation_Assign{Assign: a}}
}

// opEvents begins the log of events, and adds those that are not nil.
func opEvents(events ...*redoubtv1.Event) *redoubtv1.Operation {
	op := &redoubtv1.RecordEvents{}
	for _, e := range events {
		if e != nil {
			op.Events = append(op.Events, e)
		}
	}
	return &redoubtv1.Operation{Operation: &redoubtv1.Operation_RecordEvents{RecordEvents: op}}
}

func pendingEvent(workload, why string) *redoubtv1.Event {
	return &redoubtv1.Event{Kind: "Workload", Namespace: "default", Name: workload, Workload: workload, Warning: true, Reason: "Pending", Message: why, By: "leader"}
}

func nodeEvent(node, reason string) *redoubtv1.Event {
	return &redoubtv1.Event{Kind: "Node", Name: node, Node: node, Reason: reason, By: "leader"}
}

func opStop(n int, lost bool) *redoubtv1.Operation {
	return &redoubtv1.Operation{Operation: &redoubtv1.Operation_StopAssignment{StopAssignment: &redoubtv1.StopAssignment{Uid: uid(n), Lost: lost, Why: "because"}}}
}

func opRemove(n ...int) *redoubtv1.Operation {
	op := &redoubtv1.RemoveAssignment{}
	for _, i := range n {
		op.Uids = append(op.Uids, uid(i))
	}
	return &redoubtv1.Operation{Operation: &redoubtv1.Operation_RemoveAssignment{RemoveAssignment: op}}
}

// opStatus speaks for node of instance n with the fence that it has.
func (m *machine) opStatus(node string, n int, sequence uint64, phase redoubtv1.InstancePhase) *redoubtv1.Operation {
	s := &redoubtv1.InstanceStatus{Uid: uid(n), Sequence: sequence, Phase: phase}
	if i, ok := m.Snapshot().Instance(nil, uid(n)); ok {
		s.Fence = FenceToProto(i.Fence)
	}
	return &redoubtv1.Operation{Operation: &redoubtv1.Operation_PutStatus{PutStatus: &redoubtv1.PutStatus{Node: node, Statuses: []*redoubtv1.InstanceStatus{s}}}}
}

// fleet of two nodes: n1 in oslo, n2 in lab.
func (m *machine) fleet() {
	m.t.Helper()
	m.ok(opInit(), Created)
	m.ok(opToken("t1", "", ""), Created)
	m.ok(opBind("t1", "n1", "oslo", "k1"), Created)
	m.ok(opToken("t2", "", ""), Created)
	m.ok(opBind("t2", "n2", "lab", "k2"), Created)
	m.ok(opReport(report("n1", "oslo", 1, 1000, 256<<20)), Changed)
	m.ok(opReport(report("n2", "lab", 1, 1000, 256<<20)), Changed)
}

const (
	running   = redoubtv1.InstancePhase_INSTANCE_PHASE_RUNNING
	succeeded = redoubtv1.InstancePhase_INSTANCE_PHASE_SUCCEEDED
	failed    = redoubtv1.InstancePhase_INSTANCE_PHASE_FAILED
	stopped   = redoubtv1.InstancePhase_INSTANCE_PHASE_STOPPED
)

func rawLog(index uint64, data []byte) *raft.Log {
	return &raft.Log{Index: index, Type: raft.LogCommand, Data: data}
}
