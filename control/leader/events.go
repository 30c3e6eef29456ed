package leader

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"redoubt.dev/redoubt/control/consensus"
	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/control/placement"
	"redoubt.dev/redoubt/control/state"
	"redoubt.dev/redoubt/isolation"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

const (
	// notesEvery is how often, at most, what was found goes to the log, in one
	// entry: what operations do is noted by Apply and costs none.
	notesEvery = 2 * time.Second
	// pendingFor a workload must have been pending for one reason before it is
	// told: most are placed with the next plan.
	pendingFor = 3 * time.Second
	// notesKept bounds what waits for the log while it takes nothing.
	notesKept = 1024
	// notesAtOnce is how many events one operation takes.
	notesAtOnce = 256
	// oldVoterPause: some voter knows no events yet, and upgrades take their time.
	oldVoterPause = 30 * time.Second
)

// notebook holds what this term found and the log does not have yet.
type notebook struct {
	mu      sync.Mutex
	notes   []fleet.Event
	pending map[string]pendingNote // by workload key
}

type pendingNote struct {
	why   string // for now
	since time.Time
	told  string // what was told last, "" if nothing was
}

func (n *notebook) add(e fleet.Event) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i, o := range n.notes { // the newest word of the same
		if o.Kind == e.Kind && o.Namespace == e.Namespace && o.Name == e.Name && o.Reason == e.Reason {
			n.notes = append(slices.Delete(n.notes, i, i+1), e)
			return
		}
	}
	if len(n.notes) >= notesKept {
		n.notes = n.notes[1:]
	}
	n.notes = append(n.notes, e)
}

func (n *notebook) take() []fleet.Event {
	n.mu.Lock()
	defer n.mu.Unlock()
	notes := n.notes
	n.notes = nil
	return notes
}

func (n *notebook) putBack(notes []fleet.Event) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.notes = append(notes, n.notes...)
	n.notes = n.notes[max(len(n.notes)-notesKept, 0):]
}

// plan takes in what a plan left pending at now. The words of a reason change
// with every look; what is told again is another reason. last is the newest event
// of a workload: what an earlier term told is not told again.
func (n *notebook) plan(p placement.Result, now time.Time, last func(namespace, workload string) *fleet.Event) {
	var tell []fleet.Event
	n.mu.Lock()
	if n.pending == nil {
		n.pending = map[string]pendingNote{}
	}
	still := map[string]bool{}
	for _, e := range p.Explanations {
		if e.Pending == 0 {
			continue
		}
		k := e.Namespace + "/" + e.Workload
		still[k] = true
		why := fmt.Sprint(e.Pending)
		for _, g := range e.Groups {
			why += " " + g.Code
		}
		note := n.pending[k]
		if note.why != why {
			note.why, note.since = why, now
		}
		if now.Sub(note.since) >= pendingFor && why != note.told {
			first := note.told == ""
			note.told = why
			n.pending[k] = note
			if was := last(e.Namespace, e.Workload); first && was != nil && was.Reason == fleet.ReasonPending && was.Message == e.Summary {
				continue
			}
			tell = append(tell, fleet.Event{
				Kind: fleet.EventWorkload, Namespace: e.Namespace, Name: e.Workload, Workload: e.Workload,
				Warning: true, Reason: fleet.ReasonPending, Message: e.Summary, By: fleet.ByLeader,
			})
		}
		n.pending[k] = note
	}
	for k := range n.pending {
		if !still[k] {
			delete(n.pending, k)
		}
	}
	n.mu.Unlock()
	for _, e := range tell {
		n.add(e)
	}
}

// nodeReasons are how an event tells what the leader makes of a node.
var nodeReasons = []string{fleet.ReasonSuspect, fleet.ReasonSilent, fleet.ReasonDisconnected, fleet.ReasonLost, fleet.ReasonBack, fleet.ReasonJoined}

// nodes compares what is made of each node now with what its events say, so that
// a new leader goes on where the last one stopped.
// told is what was made of each when it was looked at last.
func (t *term) nodes(view *state.View, told map[isolation.NodeID]string, now time.Time) {
	for _, n := range view.Nodes(nil) {
		v := t.observed.View(n.ID, n.Site, n.Report != nil, n.Lost, now)
		e := fleet.Event{Kind: fleet.EventNode, Name: string(n.ID), Node: string(n.ID), By: fleet.ByLeader, Message: v.Hint}
		switch v.State {
		case fleet.NodeSuspect:
			if !v.Heard && now.Sub(t.began) < t.timing.SilentAfter {
				continue // this term has not had the time to hear it
			}
			e.Reason = fleet.ReasonSuspect
		case fleet.NodeSilent:
			e.Reason, e.Warning = fleet.ReasonSilent, true
		case fleet.NodeDisconnected:
			e.Reason, e.Warning = fleet.ReasonDisconnected, true
		case fleet.NodeReady:
			e.Reason, e.Message = fleet.ReasonBack, "it is heard again"
		default:
			continue
		}
		if told[n.ID] == e.Reason {
			continue
		}
		told[n.ID] = e.Reason
		last, ok := view.NodeEvent(n.ID, nodeReasons...)
		switch {
		case ok && last.Reason == e.Reason:
			continue
		case e.Reason == fleet.ReasonBack && (!ok || last.Reason == fleet.ReasonJoined):
			continue // it was never away
		}
		t.notes.add(e)
	}
}

// record tells what this term finds, until ctx ends.
func (t *term) record(ctx context.Context) error {
	t.notes.add(fleet.Event{
		Kind: fleet.EventServer, Name: t.id, Reason: fleet.ReasonLeads, Message: fmt.Sprintf("term %d", t.number), By: fleet.ByLeader,
	})
	told := map[isolation.NodeID]string{}
	for wait := settle; ; wait = min(notesEvery, t.timing.SilentAfter) {
		if !sleep(ctx, wait) {
			return nil
		}
		ws := state.NewWatchSet()
		view := t.store.Snapshot()
		view.Servers(ws)
		if view.EventsKept() {
			t.nodes(view, told, time.Now())
		}
		notes := t.notes.take()
		if len(notes) == 0 {
			continue
		}
		_, err := t.propose(ctx, noteOperations(notes))
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, consensus.ErrFeatureLevel):
			t.notes.putBack(notes)
			t.log.Debug("no events are kept until every voter knows of them", "err", err)
			// A server says what it knows when it begins or is upgraded.
			pause, cancel := context.WithTimeout(ctx, oldVoterPause)
			_ = ws.WatchCtx(pause)
			cancel()
		default:
			// What was kept all the same is counted once too often.
			t.notes.putBack(notes)
			t.log.Debug("events could not be kept; it is tried again", "err", err)
		}
	}
}

func noteOperations(notes []fleet.Event) (ops []*redoubtv1.Operation) {
	for part := range slices.Chunk(notes, notesAtOnce) {
		op := &redoubtv1.RecordEvents{}
		for _, e := range part {
			op.Events = append(op.Events, state.EventToProto(&e))
		}
		ops = append(ops, &redoubtv1.Operation{Operation: &redoubtv1.Operation_RecordEvents{RecordEvents: op}})
	}
	return ops
}
