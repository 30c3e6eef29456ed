package leader

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/control/placement"
	"redoubt.dev/redoubt/isolation"
)

// recorder is a term that looks at a bench's nodes, and flushes into its state.
type recorder struct {
	*bench
	t    *term
	told map[isolation.NodeID]string
}

func (b *bench) recorder() *recorder {
	return &recorder{b, &term{Leader: &Leader{store: b.store, timing: DefaultTiming(), id: "s1"}, observed: b.o, began: b.now}, map[isolation.NodeID]string{}}
}

// look returns what was told by one look, and keeps it.
func (r *recorder) look() []string {
	r.Helper()
	r.t.nodes(r.store.Snapshot(), r.told, r.now)
	notes := r.t.notes.take()
	var out []string
	for _, e := range notes {
		out = append(out, e.Name+" "+e.Reason)
	}
	if len(notes) > 0 {
		r.apply(noteOperations(notes)...)
	}
	return out
}

func (r *recorder) want(want ...string) {
	r.Helper()
	if got := r.look(); !slices.Equal(got, want) {
		r.Errorf("at %s: told %q, want %q", r.now.Sub(t0), got, want)
	}
}

func TestANodesSilenceIsToldOnceAndItsReturn(t *testing.T) {
	b := newBench(t, "a1", "a2")
	r := b.recorder()
	b.apply(noteOperations([]fleet.Event{{Kind: fleet.EventServer, Name: "s1", Reason: fleet.ReasonLeads, By: fleet.ByLeader}})...)
	r.want()
	b.o.Suspect("a1", "a2", b.now)
	r.want("a1 Suspect")
	r.want()
	b.pass(20, "a2")
	r.want("a1 Silent")
	b.pass(20, "a2")
	r.want()
	// The next term has heard nobody, and repeats nothing while it has not.
	b.o = NewObserved(DefaultTiming(), b.now)
	r = b.recorder()
	r.want()
	b.pass(10, "a2")
	r.want()
	b.pass(10, "a2")
	r.want() // silent still: it was told by the last term
	b.hear("a1", "a2")
	r.want("a1 Back")
	b.pass(20)
	r.want("a1 Disconnected", "a2 Disconnected")
	e, ok := b.store.Snapshot().NodeEvent("a1", fleet.ReasonDisconnected)
	if !ok || !e.Warning || !strings.Contains(e.Message, "its work waits") || e.By != fleet.ByLeader {
		t.Errorf("kept as %+v", e)
	}
}

func TestWhatIsPendingIsToldWhenItStaysSoAndWhenTheReasonChanges(t *testing.T) {
	var n notebook
	var before *fleet.Event
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	look := func(after time.Duration, want int, e ...placement.Explanation) {
		t.Helper()
		now = now.Add(after)
		n.plan(placement.Result{Explanations: e}, now, func(string, string) *fleet.Event { return before })
		if got := n.take(); len(got) != want {
			t.Errorf("told %v, want %d", got, want)
		}
	}
	why := func(code, summary string) placement.Explanation {
		return placement.Explanation{Namespace: "default", Workload: "web", Pending: 1, Summary: summary, Groups: []placement.ReasonGroup{{Code: code}}}
	}
	look(0, 0, why("no-room-memory", "20 MiB short"))
	look(time.Second, 0) // placed with the next plan
	look(time.Second, 0, why("no-room-memory", "20 MiB short"))
	look(2*time.Second, 0, why("no-room-memory", "30 MiB short"))
	look(2*time.Second, 1, why("no-room-memory", "40 MiB short"))
	look(time.Hour, 0, why("no-room-memory", "50 MiB short"))
	look(time.Second, 0, why("suspect", "its session broke"))
	look(time.Second, 0, why("no-room-memory", "50 MiB short"))
	look(time.Hour, 0, why("no-room-memory", "50 MiB short")) // it was told, and the rest has passed
	look(time.Second, 0, why("cordoned", "all are cordoned"))
	look(4*time.Second, 1, why("cordoned", "all are cordoned"))
	look(time.Second, 0)
	look(time.Second, 0, why("cordoned", "all are cordoned"))
	look(4*time.Second, 1, why("cordoned", "all are cordoned"))
	// The next term knows what this one told.
	n, before = notebook{}, &fleet.Event{Reason: fleet.ReasonPending, Message: "all are cordoned"}
	look(0, 0, why("cordoned", "all are cordoned"))
	look(4*time.Second, 0, why("cordoned", "all are cordoned"))
	look(time.Second, 0, why("silent", "all are silent"))
	look(4*time.Second, 1, why("silent", "all are silent"))
}

func TestWhatTheLogDoesNotTakeIsBounded(t *testing.T) {
	var n notebook
	for i := range 3 * notesKept {
		n.add(fleet.Event{Kind: fleet.EventNode, Name: fmt.Sprint(i), Reason: fleet.ReasonSilent})
		n.add(fleet.Event{Kind: fleet.EventNode, Name: "flaps", Reason: fleet.ReasonSuspect})
	}
	notes := n.take()
	if len(notes) != notesKept || notes[len(notes)-1].Name != "flaps" {
		t.Errorf("%d wait", len(notes))
	}
	n.add(fleet.Event{Kind: fleet.EventNode, Name: "newest"})
	n.putBack(notes)
	if notes = n.take(); len(notes) != notesKept || notes[len(notes)-1].Name != "newest" {
		t.Errorf("after a failure %d wait", len(notes))
	}
	for _, op := range noteOperations(notes) {
		if len(op.GetRecordEvents().GetEvents()) > notesAtOnce {
			t.Error("an operation is too large")
		}
	}
}
