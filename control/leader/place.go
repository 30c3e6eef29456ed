package leader

import (
	"context"
	"crypto/rand"
	"time"

	"google.golang.org/grpc/codes"

	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/control/placement"
	"redoubt.dev/redoubt/control/state"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

const (
	// replanEvery is how often time alone (a proof that went stale, a node that
	// fell silent) is a reason to plan.
	replanEvery = 2 * time.Second
	// refusedPause keeps a plan that Apply refuses from being made again at
	// once, when nothing changed in between.
	refusedPause = 200 * time.Millisecond
)

// place plans whenever something changed that a plan rests on, and proposes
// what the plan wants.
func (t *term) place(ctx context.Context) error {
	for {
		ws := state.NewWatchSet()
		view := t.store.Snapshot()
		begun := time.Now()
		in := t.input(view, ws)
		plan := placement.Plan(in, t.policy)
		if t.meter != nil {
			t.meter.Planned(time.Since(begun), pendingReasons(plan))
		}
		t.notes.plan(plan, time.Now(), func(namespace, workload string) *fleet.Event {
			events := view.EventsOf(fleet.EventWorkload, namespace, workload)
			if len(events) == 0 {
				return nil
			}
			return events[len(events)-1]
		})
		placing := t.tracePlan(in, plan, begun)
		ops := planOperations(plan)
		if len(ops) > 0 {
			results, err := t.propose(ctx, ops)
			t.placed(placing, plan, results, err)
			if ctx.Err() != nil {
				return nil
			}
			if err != nil {
				t.log.Warn("a plan could not be proposed; it is made again", "err", err)
				if !sleep(ctx, refusedPause) {
					return nil
				}
				continue
			}
			t.logPlan(plan, results)
			if refused(results) && !sleep(ctx, refusedPause) {
				return nil
			}
			continue
		}
		if !t.waitForChange(ctx, ws, begun) {
			return nil
		}
	}
}

func pendingReasons(p placement.Result) map[string]int {
	reasons := map[string]int{}
	for _, e := range p.Explanations {
		if e.Pending == 0 {
			continue
		}
		code := "other"
		if len(e.Groups) > 0 {
			code = e.Groups[0].Code
		}
		reasons[code] += e.Pending
	}
	return reasons
}

// waitForChange returns when the state or what was heard may have changed, or
// after replanEvery; false if ctx ended. A change alone is planned for at once;
// of many, settle apart, each plan takes what has gathered.
func (t *term) waitForChange(ctx context.Context, ws state.WatchSet, planned time.Time) bool {
	wait, cancel := context.WithTimeout(ctx, replanEvery)
	defer cancel()
	select {
	case <-ws.WatchCh(wait):
	case <-t.observed.Changed():
	}
	return sleep(ctx, settle-time.Since(planned))
}

// planOperations turns a plan into operations, stops first: they make room.
func planOperations(p placement.Result) []*redoubtv1.Operation {
	var ops []*redoubtv1.Operation
	for _, s := range p.Stop {
		ops = append(ops, stopOperation(s.UID, false, s.Why))
	}
	for _, a := range p.Assign {
		a.UID = NewUID()
		ops = append(ops, &redoubtv1.Operation{Operation: &redoubtv1.Operation_Assign{Assign: &redoubtv1.Assign{
			Assignment: state.AssignmentToProto(&a.Assignment), Ordinal: a.Ordinal,
		}}})
	}
	return ops
}

func (t *term) logPlan(p placement.Result, results []*redoubtv1.OperationResult) {
	for i, r := range results {
		ok := codes.Code(r.GetCode()) == codes.OK
		switch {
		case i < len(p.Stop) && ok:
			s := p.Stop[i]
			t.log.Info("stopping instance", "instance", s.Instance, "workload", s.Workload, "node", s.Node, "why", s.Why)
		case i >= len(p.Stop) && ok:
			a := p.Assign[i-len(p.Stop)]
			t.log.Info("placed instance", "instance", a.Instance, "workload", a.Workload, "node", a.Node, "site", a.Site, "runtime", a.Runtime, "why", a.Why)
		default:
			t.log.Info("a stale plan lost; it is made again", "reason", r.GetMessage())
		}
	}
}

func refused(results []*redoubtv1.OperationResult) bool {
	for _, r := range results {
		if codes.Code(r.GetCode()) != codes.OK {
			return true
		}
	}
	return false
}

// uidAlphabet has no "d", so that no uid spells "detach", which runsc's exec
// takes for a flag; 32 characters, so that a byte maps to one without bias.
const uidAlphabet = "abcefghijklmnopqrstuvwxyz0123456"

// NewUID mints the uid of an instance or workload: 20 characters, 100 bits.
func NewUID() string {
	var b [20]byte
	_, _ = rand.Read(b[:]) // never fails since Go 1.24
	for i := range b {
		b[i] = uidAlphabet[b[i]%32]
	}
	return string(b[:])
}
