package leader

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"redoubt.dev/redoubt/control/consensus"
	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/control/state"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// benchRaft applies commands to a bench's state, and refuses what Raft would.
type benchRaft struct {
	b        *bench
	commands int
	// begun, if set, is told of each command, which then waits for go on.
	begun, goOn chan struct{}
}

func (r *benchRaft) Propose(_ context.Context, cmd *redoubtv1.Command) (consensus.Result, error) {
	if proto.Size(cmd) > consensus.MaxCommand {
		return consensus.Result{}, consensus.ErrTooLarge
	}
	if r.begun != nil {
		r.begun <- struct{}{}
		<-r.goOn
	}
	r.commands++
	r.b.index++
	return consensus.Result{Index: r.b.index, Results: r.b.store.FSM().ApplyCommand(r.b.index, cmd).Results}, nil
}

func (r *benchRaft) VerifyRead(context.Context) error { return nil }

func (b *bench) term(r *benchRaft) *term {
	l := &Leader{consensus: r, store: b.store, timing: DefaultTiming(), log: slog.New(slog.DiscardHandler)}
	t := &term{Leader: l, number: 1, observed: b.o}
	l.term.Store(t)
	return t
}

func newer(b *bench, n string) *redoubtv1.Report {
	r := b.report(n)
	r.Generation = 2
	return state.ReportToProto(r)
}

func TestAPlanOfLargeWorkloadsIsCutToFitTheLog(t *testing.T) {
	b := newBench(t, "a1")
	raft := &benchRaft{b: b}
	tm := b.term(raft)
	var ops []*redoubtv1.Operation
	for i := range 12 {
		w := b.service(1, nil)
		w.Name = "fat-" + string(rune('a'+i))
		for range 7 {
			w.Containers[0].Args = append(w.Containers[0].Args, strings.Repeat("x", 30_000))
		}
		ops = append(ops, &redoubtv1.Operation{Operation: &redoubtv1.Operation_PutWorkload{PutWorkload: &redoubtv1.PutWorkload{Workload: w, User: "admin", Uid: NewUID()}}})
	}
	results, err := tm.propose(t.Context(), ops)
	if err != nil {
		t.Fatal(err)
	}
	if raft.commands < 2 {
		t.Errorf("%d commands for 2.5 MB", raft.commands)
	}
	for i, r := range results {
		if codes.Code(r.GetCode()) != codes.OK {
			t.Errorf("operation %d: %v", i, r)
		}
	}
	if got := len(b.store.Snapshot().Workloads(nil, "")); got != 12 {
		t.Errorf("%d workloads are stored, want 12", got)
	}
}

func TestOneNodesOversizedWordKeepsNobodyElseFromBeingHeard(t *testing.T) {
	b := newBench(t, "a1", "a2")
	raft := &benchRaft{b: b}
	tm := b.term(raft)
	report := func(n string, agent string) *redoubtv1.NodeObservation {
		return &redoubtv1.NodeObservation{Node: n, Connected: true, Heartbeat: 1,
			Report: newer(b, n), Hello: &redoubtv1.Hello{Node: n, AgentVersion: agent}}
	}
	huge := report("a1", "v2")
	huge.Report.Findings[0].Reason = strings.Repeat("x", 2<<20)
	h, err := tm.Observe(t.Context(), &redoubtv1.ObserveRequest{Server: "s1", Nodes: []*redoubtv1.NodeObservation{huge, report("a2", "v2")}})
	if err != nil {
		t.Fatalf("the batch was not taken: %v", err)
	}
	if !h.Accepted[1] {
		t.Error("the other node's word was not accepted")
	}
	for _, n := range b.store.Snapshot().Nodes(nil) {
		if want := map[string]uint64{"a1": 1, "a2": 2}[string(n.ID)]; n.Report.Generation != want {
			t.Errorf("%s has generation %d, want %d", n.ID, n.Report.Generation, want)
		}
	}
}

// TestWhatIsGivenUpIsNeverRenewed: while a node is being given up, its first
// new word waits, and is acknowledged only for a state that holds the loss.
func TestWhatIsGivenUpIsNeverRenewed(t *testing.T) {
	b := newBench(t, "a1", "a2")
	b.put(b.service(2, &redoubtv1.Disconnect{LostAfter: "1m", StopAfter: "30s", Replace: "Safe"}))
	b.place()
	// The lease loop reads the real clock.
	past := time.Now().Add(-2 * time.Minute)
	b.o = NewObserved(DefaultTiming(), past)
	for _, n := range []string{"a1", "a2"} {
		b.o.Hear(Word{Node: b.report(n).Node, Site: "a", Server: "s1", Connected: true, Report: b.report(n)}, past)
	}
	for at := past; time.Since(at) > 0; at = at.Add(time.Second) {
		b.o.Hear(Word{Node: "a2", Site: "a", Server: "s1", Connected: true}, at)
		b.o.Tick(at)
	}
	raft := &benchRaft{b: b, begun: make(chan struct{}), goOn: make(chan struct{})}
	tm := b.term(raft)
	gave := make(chan error, 1)
	go func() { gave <- tm.giveUp(t.Context()) }()
	<-raft.begun
	type answer struct {
		h   Heard
		err error
	}
	heard := make(chan answer, 1)
	go func() {
		h, err := tm.Observe(t.Context(), &redoubtv1.ObserveRequest{Server: "s1", Nodes: []*redoubtv1.NodeObservation{{Node: "a1", Connected: true, Heartbeat: 9}}})
		heard <- answer{h, err}
	}()
	select {
	case a := <-heard:
		t.Fatalf("a word was acknowledged in the middle of giving its node up: %+v", a)
	case <-time.After(100 * time.Millisecond): // long enough for what must not happen
	}
	close(raft.goOn)
	if err := <-gave; err != nil {
		t.Fatal(err)
	}
	a := <-heard
	if a.err != nil {
		t.Fatal(a.err)
	}
	if a.h.Applied < b.index || a.h.Applied == 0 {
		t.Errorf("acknowledged as of index %d, the loss is at %d", a.h.Applied, b.index)
	}
	lost := 0
	for _, i := range b.instances() {
		if i.Node == "a1" && i.Status.Phase == fleet.InstanceLost && i.Stop {
			lost++
		}
	}
	if lost != 1 {
		t.Errorf("%d instances were given up, want 1", lost)
	}
}

func TestOfTwoSessionsOnTwoServersTheYoungerStays(t *testing.T) {
	s := newStory(t)
	word := func(server string, age time.Duration) string {
		return s.o.Hear(Word{Node: "a1", Site: "a", Server: server, Connected: true, SessionAge: age}, s.now)
	}
	if got := word("s1", time.Second); got != "" {
		t.Errorf("the only session gives way to %q", got)
	}
	s.now = s.now.Add(10 * time.Second)
	if got := word("s2", time.Second); got != "" {
		t.Errorf("the younger session gives way to %q", got)
	}
	before := s.view("a1").Silent
	s.now = s.now.Add(time.Second)
	if got := word("s1", 12*time.Second); got != "s2" {
		t.Errorf("the older session gives way to %q, want s2", got)
	}
	if after := s.view("a1").Silent; after <= before {
		t.Error("the word of an older session counts")
	}
	// Its end changes nothing; the end of the younger lets an older be heard.
	s.o.Hear(Word{Node: "a1", Site: "a", Server: "s1", SessionAge: 12 * time.Second}, s.now)
	s.want("a1", fleet.NodeReady, time.Second)
	s.o.Hear(Word{Node: "a1", Site: "a", Server: "s2", SessionAge: 2 * time.Second}, s.now)
	if got := word("s1", 13*time.Second); got != "" {
		t.Errorf("the only session left gives way to %q", got)
	}
}
