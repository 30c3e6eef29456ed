package leader

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/control/placement"
	"redoubt.dev/redoubt/control/state"
	"redoubt.dev/redoubt/isolation"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// bench is a state with nodes, driven without Raft.
type bench struct {
	*testing.T
	store *state.Store
	index uint64
	now   time.Time
	o     *Observed
}

func newBench(t *testing.T, nodes ...string) *bench {
	b := &bench{T: t, store: state.NewStore(), now: t0, o: NewObserved(DefaultTiming(), t0)}
	b.apply(&redoubtv1.Operation{Operation: &redoubtv1.Operation_InitCluster{InitCluster: &redoubtv1.InitCluster{
		ClusterId: "c", TrustDomain: "test.redoubt", Server: &redoubtv1.Server{Id: "s1"},
		Authority: &redoubtv1.Authority{Server: "s1", Certificate: []byte{1}},
		Admin:     &redoubtv1.RoleBinding{User: "admin", Namespace: "*", Role: "admin"},
	}}})
	for _, n := range nodes {
		hash := make([]byte, 32)
		b.apply(
			&redoubtv1.Operation{Operation: &redoubtv1.Operation_PutToken{PutToken: &redoubtv1.PutToken{Id: "tok-" + n, SecretHash: hash, Role: "node", Expires: timestamppb.New(t0.Add(time.Hour))}}},
			&redoubtv1.Operation{Operation: &redoubtv1.Operation_BindToken{BindToken: &redoubtv1.BindToken{Id: "tok-" + n, SecretHash: hash, KeyHash: "sha256:" + n, Node: n, Site: n[:1]}}},
			&redoubtv1.Operation{Operation: &redoubtv1.Operation_PutReport{PutReport: &redoubtv1.PutReport{Report: state.ReportToProto(b.report(n))}}},
		)
	}
	b.hear(nodes...)
	return b
}

func (b *bench) report(n string) *isolation.Report {
	return &isolation.Report{
		Node: isolation.NodeID(n), Site: isolation.SiteID(n[:1]), Generation: 1,
		Host:     isolation.Host{Arch: "amd64", CPUMillis: 4000, MemoryBytes: 8 << 30},
		Findings: []isolation.Finding{{Runtime: "gvisor", Variant: "systrap", Class: isolation.ClassSandbox, State: isolation.StateVerified, Terms: isolation.Terms{Sandbox: 0.5, Surface: isolation.Surface{Syscalls: 80, SyscallsTotal: 362}}}},
	}
}

func (b *bench) apply(ops ...*redoubtv1.Operation) {
	b.Helper()
	b.index++
	cmd := NewCommand(ops...)
	cmd.Time = timestamppb.New(b.now)
	for _, r := range b.store.FSM().ApplyCommand(b.index, cmd).Results {
		if codes.Code(r.GetCode()) != codes.OK {
			b.Fatalf("apply: %s", r.GetMessage())
		}
	}
}

func (b *bench) hear(nodes ...string) {
	for _, n := range nodes {
		b.o.Hear(Word{Node: isolation.NodeID(n), Site: isolation.SiteID(n[:1]), Server: "s1", Connected: true, Report: b.report(n)}, b.now)
	}
}

func (b *bench) pass(seconds int, nodes ...string) {
	for range seconds {
		b.now = b.now.Add(time.Second)
		b.hear(nodes...)
		b.o.Tick(b.now)
	}
}

func (b *bench) service(replicas uint32, d *redoubtv1.Disconnect) *redoubtv1.Workload {
	return &redoubtv1.Workload{
		Kind: "Service", Namespace: "default", Name: "web", Isolation: &redoubtv1.Isolation{Floor: "sandbox"},
		Placement: &redoubtv1.Placement{Replicas: &replicas}, Disconnect: d,
		Containers: []*redoubtv1.Container{{Name: "web", Image: "toolbox"}},
	}
}

func (b *bench) put(w *redoubtv1.Workload) {
	b.Helper()
	b.apply(&redoubtv1.Operation{Operation: &redoubtv1.Operation_PutWorkload{PutWorkload: &redoubtv1.PutWorkload{Workload: w, User: "admin", Uid: NewUID()}}})
}

// place plans once and applies the plan, as the place loop does.
func (b *bench) place() int {
	b.Helper()
	ops := planOperations(placement.Plan(b.input(), placement.Policy{}))
	if len(ops) > 0 {
		b.apply(ops...)
	}
	return len(ops)
}

// input is what a plan made now rests on.
func (b *bench) input() placement.Input {
	t := &term{Leader: &Leader{store: b.store, timing: DefaultTiming()}, observed: b.o}
	view := b.store.Snapshot()
	in := placement.Input{}
	for _, n := range view.Nodes(nil) {
		v := b.o.View(n.ID, n.Site, true, n.Lost, b.now)
		node := placement.Node{Node: n, State: v.State, Hint: v.Hint}
		for _, f := range n.Report.Findings {
			node.Fresh = append(node.Fresh, t.observed.Fresh(v, f))
		}
		in.Nodes = append(in.Nodes, node)
	}
	for _, w := range view.Workloads(nil, "") {
		in.Workloads = append(in.Workloads, placement.Workload{StoredWorkload: w, Instances: view.InstancesOfWorkload(nil, w.Spec.Namespace, w.Spec.Name)})
	}
	return in
}

func (b *bench) instances() []*fleet.Instance {
	return b.store.Snapshot().InstancesOfWorkload(nil, "default", "web")
}

func (b *bench) say(i *fleet.Instance, seq uint64, phase fleet.InstancePhase) {
	b.Helper()
	b.apply(&redoubtv1.Operation{Operation: &redoubtv1.Operation_PutStatus{PutStatus: &redoubtv1.PutStatus{Node: string(i.Node), Statuses: []*redoubtv1.InstanceStatus{{
		Uid: i.UID, Fence: state.FenceToProto(i.Fence), Sequence: seq, Phase: redoubtv1.InstancePhase(phase),
	}}}}})
}

func (b *bench) lease() []*redoubtv1.Operation {
	return leaseOperations(b.store.Snapshot(), b.o, DefaultTiming(), b.now)
}

func TestReplaceModes(t *testing.T) {
	for _, tt := range []struct {
		name      string
		d         *redoubtv1.Disconnect
		kept      int // still there after so many seconds of silence
		lostAfter int // given up after so many; 0 never
	}{
		{"Eager after lostAfter", &redoubtv1.Disconnect{LostAfter: "1m"}, 59, 60},
		{"Safe waits for the agent's stop and a margin", &redoubtv1.Disconnect{LostAfter: "1m", StopAfter: "50s", Replace: "Safe"}, 64, 65},
		{"Never", &redoubtv1.Disconnect{LostAfter: "1m", Replace: "Never"}, 4000, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t, "a1", "a2")
			b.put(b.service(2, tt.d))
			b.place()
			for _, i := range b.instances() {
				b.say(i, 1, fleet.InstanceRunning)
			}
			b.pass(tt.kept, "a2")
			if ops := b.lease(); len(ops) != 0 {
				t.Fatalf("after %d s: %v", tt.kept, ops)
			}
			if tt.lostAfter == 0 {
				return
			}
			b.pass(tt.lostAfter-tt.kept, "a2")
			ops := b.lease()
			if len(ops) != 2 { // the instance is stopped, its node marked
				t.Fatalf("after %d s: %v", tt.lostAfter, ops)
			}
			b.apply(ops...)
			if b.place() == 0 {
				t.Fatal("no replacement is placed")
			}
			lost, live := 0, 0
			for _, i := range b.instances() {
				if i.Status.Phase == fleet.InstanceLost && i.Stop {
					lost++
				}
				if i.Live() && i.Node == "a2" {
					live++
				}
			}
			if lost != 1 || live != 2 {
				t.Errorf("%d lost, %d live on the node that is heard; want 1, 2", lost, live)
			}
			// The node is back: its next report clears the mark, and the older
			// instance stays told to stop until the agent says that it ended.
			b.hear("a1")
			if ops := b.lease(); len(ops) != 0 {
				t.Errorf("after the return: %v", ops)
			}
		})
	}
}

func TestGossipAloneNeverEndsALease(t *testing.T) {
	b := newBench(t, "a1", "a2")
	b.put(b.service(2, &redoubtv1.Disconnect{LostAfter: "1m"}))
	b.place()
	b.o.Suspect("a1", "a2", b.now)
	b.pass(3600, "a1", "a2")
	b.o.Suspect("a1", "a2", b.now)
	if ops := b.lease(); len(ops) != 0 {
		t.Errorf("a suspected node lost its work: %v", ops)
	}
}

func TestASuspectGetsNoNewWork(t *testing.T) {
	b := newBench(t, "a1", "a2")
	b.o.Suspect("a1", "a2", b.now)
	b.put(b.service(2, nil))
	b.place()
	for _, i := range b.instances() {
		if i.Node == "a1" {
			t.Errorf("%s was placed on a suspect", i.Instance)
		}
	}
}

func TestReap(t *testing.T) {
	b := newBench(t, "a1")
	since := map[string]time.Time{}
	reap := func() string {
		var s []string
		for _, op := range reapOperations(b.store.Snapshot(), nil, since, b.now) {
			s = append(s, strings.TrimPrefix(fmt.Sprintf("%T", op.GetOperation()), "*redoubtv1.Operation_"))
			b.apply(op)
		}
		return strings.Join(s, " ")
	}
	want := func(step, want string) {
		t.Helper()
		if got := reap(); got != want {
			t.Errorf("%s: %q, want %q", step, got, want)
		}
	}
	b.put(b.service(1, nil))
	b.place()
	i := b.instances()[0]
	b.say(i, 1, fleet.InstanceRunning)
	want("it runs", "")
	b.say(i, 2, fleet.InstanceRejected)
	want("refused: kept for a while, so that the same is not tried at once", "")
	if n := b.place(); n != 0 {
		t.Errorf("placed again at once where it was refused: %d operations", n)
	}
	b.now = b.now.Add(keepRejected + time.Second)
	b.hear("a1")
	want("refused a minute ago", "RemoveAssignment")
	if b.place() == 0 {
		t.Fatal("not tried again")
	}
	b.apply(&redoubtv1.Operation{Operation: &redoubtv1.Operation_StopWorkload{StopWorkload: &redoubtv1.StopWorkloadOp{Namespace: "default", Name: "web", User: "admin"}}})
	reap()
	i = b.instances()[0]
	if !i.Stop {
		t.Fatal("an instance of a stopped workload is not told to stop")
	}
	want("it still runs out there", "")
	b.say(i, 1, fleet.InstanceStopped)
	want("it has ended", "RemoveAssignment RemoveWorkload")
	if got := b.store.Snapshot().Workloads(nil, ""); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
	b.now = b.now.Add(3 * time.Hour)
	want("tokens that expired", "RemoveTokens")
}
