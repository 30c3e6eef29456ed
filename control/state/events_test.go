package state

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"redoubt.dev/redoubt/control/fleet"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// said lists events as "name Reason ×N: message".
func said(events []*fleet.Event) string {
	var b strings.Builder
	for _, e := range events {
		fmt.Fprintf(&b, "%s %s", e.Name, e.Reason)
		if e.Count > 1 {
			fmt.Fprintf(&b, " ×%d", e.Count)
		}
		fmt.Fprintf(&b, ": %s\n", e.Message)
	}
	return b.String()
}

func (m *machine) events() []*fleet.Event {
	events, _ := m.Snapshot().EventsAfter(0, EventsInAll)
	return events
}

// A server that knows no events must be able to take every snapshot, until the
// entry that only a fleet of servers that know them proposes.
func TestNoEventIsKeptBeforeEveryVoterKnowsOfThem(t *testing.T) {
	m := newMachine(t)
	m.fleet()
	m.ok(opWorkload(workload("web", "Service", "sandbox", 0)), Created)
	m.ok(opAssign(m.plan(1, "web", "n1", "gvisor")), Created)
	if m.Snapshot().EventsKept() || len(m.events()) != 0 {
		t.Fatalf("kept: %s", said(m.events()))
	}
	if RequiredLevel(&redoubtv1.Command{Operations: []*redoubtv1.Operation{opStop(1, false)}}) != BaseLevel ||
		RequiredLevel(&redoubtv1.Command{Operations: []*redoubtv1.Operation{opStop(1, false), opEvents()}}) != EventsLevel {
		t.Error("the level that events need is not asked for")
	}
	m.ok(opEvents(), Created)
	m.ok(opStopWorkload("web"), Changed)
	if !m.Snapshot().EventsKept() || len(m.events()) != 1 {
		t.Fatalf("not kept: %s", said(m.events()))
	}
}

func TestWhatIsDoneIsNoted(t *testing.T) {
	m := newMachine(t)
	m.fleet()
	m.ok(opEvents(nodeEvent("n1", "Suspect")), Created)
	status := func(node string, n int, s *redoubtv1.InstanceStatus) {
		t.Helper()
		i, _ := m.Snapshot().Instance(nil, uid(n))
		s.Uid, s.Fence = uid(n), FenceToProto(i.Fence)
		m.ok(&redoubtv1.Operation{Operation: &redoubtv1.Operation_PutStatus{PutStatus: &redoubtv1.PutStatus{Node: node, Statuses: []*redoubtv1.InstanceStatus{s}}}}, Changed)
	}
	backoff := redoubtv1.InstancePhase_INSTANCE_PHASE_BACKOFF
	m.ok(opWorkload(workload("web", "Service", "container", 0)), Created)
	m.ok(opAssign(m.plan(1, "web", "n1", "gvisor")), Created)
	status("n1", 1, &redoubtv1.InstanceStatus{Sequence: 1, Phase: running, Runtime: "gvisor", Pid: 7, NotReady: "startup: tcp :80 has not succeeded yet"})
	// It comes up: no news, until it is.
	status("n1", 1, &redoubtv1.InstanceStatus{Sequence: 2, Phase: running, Runtime: "gvisor", Pid: 7, NotReady: "readiness: tcp :80 has not succeeded yet"})
	status("n1", 1, &redoubtv1.InstanceStatus{Sequence: 3, Phase: running, Runtime: "gvisor", Pid: 7})
	status("n1", 1, &redoubtv1.InstanceStatus{Sequence: 4, Phase: running, Runtime: "gvisor", Pid: 7, NotReady: "readiness: tcp :80: connection refused, 3 times"})
	status("n1", 1, &redoubtv1.InstanceStatus{Sequence: 5, Phase: backoff, Restarts: 1, LastEnd: "exited with code 3", BackOff: durationpb.New(1e9)})
	// The pause was missed, the restart is not.
	status("n1", 1, &redoubtv1.InstanceStatus{Sequence: 9, Phase: running, Runtime: "gvisor", Pid: 9, Restarts: 3, LastEnd: "exited with code 4"})
	m.ok(opStop(1, true), Changed)
	yes := true
	m.ok(opMark("n1", nil, &yes), Changed)
	m.ok(opAssign(m.plan(2, "web", "n2", "runc")), Created)
	m.ok(opReport(report("n1", "oslo", 2, 1000, 256<<20)), Changed)
	weaker := report("n2", "lab", 2, 1000, 256<<20)
	weaker.Findings[1].State = redoubtv1.FindingState_FINDING_STATE_UNUSABLE
	m.ok(opReport(weaker), Changed)
	m.no(opAssign(m.plan(2, "web", "n2", "runc")), codes.AlreadyExists, "is taken")
	m.ok(opStopWorkload("web"), Changed)
	want := `n1 Suspect:
web Applied: a new Service, revision 9
web-1 Placed: on n1 in oslo under gvisor (systrap), class sandbox;
web-1 Started: under gvisor, pid 7
web-1 Ready: its probes succeed
web-1 NotReady: readiness: tcp :80: connection refused, 3 times
web-1 Restarted ×2: exited with code 4; restart 3
web-1 Started ×2: under gvisor, pid 9
web-1 Lost: because
n1 Lost: silent for so long that its work is replaced
web-2 Placed: on n2 in lab under runc, class container;
web-2 Moved: in place of web-1, which is lost on n1
web-2 ClassChanged: container, where web-1 had sandbox
n1 Back: it was given up as lost and is heard again
n2 ClassChanged: strongest proven class: container, was sandbox; verified: runc is container
web StopRequested: its instances end, then it is forgotten
`
	got := strings.ReplaceAll(strings.ReplaceAll(said(m.events()), ": \n", ":\n"), "; \n", ";\n")
	// What is repeated stands where it was last.
	want = strings.Replace(want, "web-1 Started: under gvisor, pid 7\n", "", 1)
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	for _, e := range m.events() {
		if e.Reason == fleet.ReasonApplied && e.By != "user/ann" || e.Reason == fleet.ReasonRestarted && (e.By != fleet.ByAgent || e.Node != "n1" || !e.Warning) {
			t.Errorf("%+v", e)
		}
		if e.Reason == fleet.ReasonRestarted && !e.First.Before(e.Last) {
			t.Errorf("first %v, last %v", e.First, e.Last)
		}
	}
	if e, ok := m.Snapshot().NodeEvent("n1", fleet.ReasonSilent, fleet.ReasonLost); !ok || e.Reason != fleet.ReasonLost {
		t.Errorf("the last that was made of n1: %+v", e)
	}
}

func TestANewEventIsRefusedWhole(t *testing.T) {
	m := newMachine(t)
	m.fleet()
	m.ok(opEvents(), Created)
	for words, e := range map[string]*redoubtv1.Event{
		"is no kind":       {Kind: "Pod", Name: "x", Reason: "X"},
		"has no namespace": {Kind: "Node", Namespace: "default", Name: "n1", Reason: "X"},
		"reason is empty":  {Kind: "Node", Name: "n1"},
		"is no name":       {Kind: "Node", Name: "n\x00", Reason: "X"},
		"namespace is":     {Kind: "Workload", Name: "web", Workload: "web", Reason: "X"},
		"bytes long":       {Kind: "Node", Name: "n1", Reason: "X", Message: strings.Repeat("x", maxText+1)},
	} {
		m.no(opEvents(nodeEvent("n1", "Silent"), e), codes.InvalidArgument, words)
	}
	var many []*redoubtv1.Event
	for range maxEvents + 1 {
		many = append(many, nodeEvent("n1", "Silent"))
	}
	m.no(opEvents(many...), codes.InvalidArgument, "at most")
}

func TestEventsAreBoundedAndTheNoisyPayFirst(t *testing.T) {
	m := newMachine(t)
	m.fleet()
	m.ok(opEvents(nodeEvent("n1", "Silent"), pendingEvent("quiet", "no room"), pendingEvent("noisy", "no room")), Created)
	first := m.Snapshot().EventSequence()
	batch := func(from, n int, event func(i int) *redoubtv1.Event) {
		t.Helper()
		var op []*redoubtv1.Event
		var ops []*redoubtv1.Operation
		for i := from; i < from+n; i++ {
			if op = append(op, event(i)); len(op) == maxEvents || i == from+n-1 {
				ops, op = append(ops, opEvents(op...)), nil
			}
		}
		for _, r := range m.do(ops...) {
			if r.GetCode() != 0 {
				t.Fatal(r.GetMessage())
			}
		}
	}
	// Ever new instances hide their own past only.
	batch(0, 3*EventsPerObject, func(i int) *redoubtv1.Event {
		e := pendingEvent("noisy", "x")
		e.Kind, e.Name, e.Reason = "Instance", fmt.Sprintf("noisy-%d", i), "Failed"
		return e
	})
	v := m.Snapshot()
	own := v.EventsOf(fleet.EventWorkload, "default", "noisy")
	if len(own) != EventsPerObject+1 || own[0].Name != "noisy" || own[1].Name != fmt.Sprintf("noisy-%d", 2*EventsPerObject) {
		t.Fatalf("%d are kept, from %s", len(own), own[0].Name)
	}
	if len(v.EventsOf(fleet.EventWorkload, "default", "quiet")) != 1 || len(m.events()) != EventsPerObject+3 {
		t.Errorf("its neighbours paid:\n%s", said(m.events()))
	}
	if _, gap := v.EventsAfter(first, 1); !gap {
		t.Error("who read on from there is told of no gap")
	}
	if after, gap := v.EventsAfter(v.EventSequence()-1, 10); gap || len(after) != 1 {
		t.Errorf("the newest: %d, gap %v", len(after), gap)
	}
	// One namespace with ever new workloads pays before the others; a repeated
	// event costs nothing.
	other := func(ns string) func(i int) *redoubtv1.Event {
		return func(i int) *redoubtv1.Event {
			e := pendingEvent(fmt.Sprintf("w%d", i), "x")
			e.Namespace = ns
			return e
		}
	}
	batch(0, EventsPerNamespace+9, other("loud"))
	batch(EventsPerNamespace, 9, other("loud"))
	count := map[string]int{}
	for _, e := range m.events() {
		count[e.Namespace]++
	}
	if count["loud"] != EventsPerNamespace || count["default"] != EventsPerObject+2 || count[""] != 1 {
		t.Errorf("kept by namespace: %v", count)
	}
	for i := range 3 {
		batch(0, EventsPerNamespace, other(fmt.Sprintf("ns%d", i)))
	}
	if n := len(m.events()); n != EventsInAll {
		t.Errorf("%d are kept, want %d", n, EventsInAll)
	}
	// What was restored is bounded alike.
	fresh := newMachine(t)
	if err := fresh.restoreFrom(snapshotBytes(m.Store)); err != nil {
		t.Fatal(err)
	}
	fresh.index = m.index
	m.ok(opEvents(other("late")(1)), Created)
	fresh.ok(opEvents(other("late")(1)), Created)
	if !bytes.Equal(snapshotBytes(m.Store), snapshotBytes(fresh.Store)) {
		t.Error("after a restore other events are forgotten")
	}
	if n := len(fresh.events()); n != EventsInAll {
		t.Errorf("after a restore %d are kept", n)
	}
}
