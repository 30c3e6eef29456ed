package server

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/control/leader"
	"redoubt.dev/redoubt/control/state"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// sent is a session's stream of which only the sending side is used.
type sent struct {
	sessionStream
	out chan *redoubtv1.SessionResponse
}

func (s sent) Send(m *redoubtv1.SessionResponse) error { s.out <- m; return nil }

// TestAnAcknowledgementComesBehindWhatTheStateTakesAway: the agent renews its
// leases by it, so a stop that was applied before must have been sent before.
func TestAnAcknowledgementComesBehindWhatTheStateTakesAway(t *testing.T) {
	store := state.NewStore()
	index := uint64(0)
	apply := func(ops ...*redoubtv1.Operation) {
		t.Helper()
		index++
		cmd := leader.NewCommand(ops...)
		cmd.Time = timestamppb.Now()
		for _, r := range store.FSM().ApplyCommand(index, cmd).Results {
			if codes.Code(r.GetCode()) != codes.OK {
				t.Fatalf("apply: %s", r.GetMessage())
			}
		}
	}
	hash := make([]byte, 32)
	apply(&redoubtv1.Operation{Operation: &redoubtv1.Operation_InitCluster{InitCluster: &redoubtv1.InitCluster{
		ClusterId: "c", TrustDomain: "test.redoubt", Server: &redoubtv1.Server{Id: "s1"},
		Authority: &redoubtv1.Authority{Server: "s1", Certificate: []byte{1}},
		Admin:     &redoubtv1.RoleBinding{User: "admin", Namespace: "*", Role: "admin"},
	}}})
	report := &redoubtv1.Report{Node: "a1", Site: "a", Generation: 1,
		Host:     &redoubtv1.HostFacts{Arch: "amd64", CpuMillis: 64000, MemoryBytes: 64 << 30},
		Findings: []*redoubtv1.Finding{{Runtime: "gvisor", Variant: "systrap", Class: redoubtv1.IsolationClass_ISOLATION_CLASS_SANDBOX, State: redoubtv1.FindingState_FINDING_STATE_VERIFIED, Terms: &redoubtv1.Terms{Sandbox: 0.5, Surface: &redoubtv1.Surface{Syscalls: 80, SyscallsTotal: 362}}}}}
	apply(
		&redoubtv1.Operation{Operation: &redoubtv1.Operation_PutToken{PutToken: &redoubtv1.PutToken{Id: "tok", SecretHash: hash, Role: "node", Expires: timestamppb.New(time.Now().Add(time.Hour))}}},
		&redoubtv1.Operation{Operation: &redoubtv1.Operation_BindToken{BindToken: &redoubtv1.BindToken{Id: "tok", SecretHash: hash, KeyHash: "sha256:a1", Node: "a1", Site: "a"}}},
		&redoubtv1.Operation{Operation: &redoubtv1.Operation_PutReport{PutReport: &redoubtv1.PutReport{Report: report}}},
	)

	s := &Server{cfg: Config{ID: "s1"}, store: store, log: slog.New(slog.DiscardHandler), sessions: newSessions()}
	ctx, cancel := context.WithCancelCause(t.Context())
	sn := &session{node: "a1", site: "a", out: make(chan *redoubtv1.SessionResponse, sessionQueue), cancel: cancel}
	stream := sent{out: make(chan *redoubtv1.SessionResponse, 100)}
	done := make(chan error, 1)
	go func() { done <- (&agentAPI{Server: s}).write(ctx, sn, stream, 0) }()
	next := func() *redoubtv1.SessionResponse {
		t.Helper()
		select {
		case m := <-stream.out:
			return m
		case <-time.After(5 * time.Second):
			t.Fatal("nothing was sent")
			return nil
		}
	}
	for m := next(); m.GetAssignments() == nil; m = next() {
	}
	for i := range 50 {
		uid := leader.NewUID()
		name := "w" + string(rune('a'+i/26)) + string(rune('a'+i%26))
		apply(&redoubtv1.Operation{Operation: &redoubtv1.Operation_PutWorkload{PutWorkload: &redoubtv1.PutWorkload{User: "admin", Uid: leader.NewUID(), Workload: &redoubtv1.Workload{
			Kind: "Service", Namespace: "default", Name: name, Isolation: &redoubtv1.Isolation{Floor: "sandbox"}, Disconnect: &redoubtv1.Disconnect{Replace: "Safe"},
			Containers: []*redoubtv1.Container{{Name: "c", Image: "toolbox"}},
		}}}})
		w, ok := store.Snapshot().Workload(nil, "default", name)
		if !ok {
			t.Fatal("the workload is not stored")
		}
		apply(&redoubtv1.Operation{Operation: &redoubtv1.Operation_Assign{Assign: &redoubtv1.Assign{Ordinal: 1, Assignment: &redoubtv1.Assignment{
			Uid: uid, Namespace: "default", Workload: name, Instance: name + "-1", Node: "a1", Site: "a",
			Runtime: "gvisor", Variant: "systrap", Class: redoubtv1.IsolationClass_ISOLATION_CLASS_SANDBOX, Floor: redoubtv1.IsolationClass_ISOLATION_CLASS_SANDBOX,
			Revision: w.Revision, NodeGeneration: 1, CpuMillis: w.Spec.CPUMillis(), MemoryBytes: w.Spec.MemoryBytes(), Spec: state.AssignmentToProto(&fleet.Assignment{Spec: w.Spec}).GetSpec(),
		}}}})
		for m := next(); len(m.GetAssignments().GetUpdated()) == 0; m = next() {
		}
		apply(&redoubtv1.Operation{Operation: &redoubtv1.Operation_StopAssignment{StopAssignment: &redoubtv1.StopAssignment{Uid: uid, Lost: true, Why: "silent"}}})
		sn.queue(&redoubtv1.SessionResponse{Message: &redoubtv1.SessionResponse_HeartbeatAck{HeartbeatAck: &redoubtv1.HeartbeatAck{Sequence: uint64(i + 1), Term: 1}}})
		told := false
		for m := next(); m.GetHeartbeatAck() == nil; m = next() {
			for _, a := range m.GetAssignments().GetUpdated() {
				told = told || a.GetUid() == uid && a.GetStop()
			}
		}
		if !told {
			t.Fatalf("round %d: a heartbeat was acknowledged before the stop that the state held", i)
		}
	}
	cancel(errStopping)
	if err := <-done; !errors.Is(err, errStopping) {
		t.Errorf("the writer ended with %v", err)
	}
}

func TestASessionTakesNoMoreThanFitsABatch(t *testing.T) {
	a := &agentAPI{Server: &Server{}}
	sn := &session{node: "a1", site: "a", statuses: map[string]*redoubtv1.InstanceStatus{}, hints: map[string]*redoubtv1.Hint{}}
	big := string(make([]byte, 600<<10))
	if err := a.take(sn, &redoubtv1.SessionRequest{Message: &redoubtv1.SessionRequest_Report{Report: &redoubtv1.ReportUpdate{Report: &redoubtv1.Report{
		Node: "a1", Site: "a", Findings: []*redoubtv1.Finding{{Reason: big}}}}}}); err == nil {
		t.Error("an oversized report was taken")
	}
	status := func(uid string) error {
		return a.take(sn, &redoubtv1.SessionRequest{Message: &redoubtv1.SessionRequest_Status{Status: &redoubtv1.StatusBatch{Sequence: 1, Statuses: []*redoubtv1.InstanceStatus{{Uid: uid + big}}}}})
	}
	if err := status("a"); err != nil {
		t.Errorf("one status was refused: %v", err)
	}
	if err := status("b"); err == nil {
		t.Error("more than a megabyte of statuses was kept")
	}
}
