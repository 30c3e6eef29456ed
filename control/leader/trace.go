package leader

import (
	"cmp"
	"context"
	"slices"
	"time"

	"google.golang.org/grpc/codes"

	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/control/placement"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
	"redoubt.dev/redoubt/proto/tracing"
)

// ofItsApply is how long after an apply what is placed is a part of its trace. A
// placement of later follows from something else, and begins a trace of its own
// that names the apply's.
const ofItsApply = time.Hour

// placing is one assignment of a plan on its way into the log.
type placing struct {
	span  tracing.Span
	since time.Time // what asked for it; zero: nothing did just now
}

// tracePlan begins a span for each assignment of plan, and writes its context
// into the assignment: before it is proposed, so that Apply decides nothing.
func (t *term) tracePlan(in placement.Input, plan placement.Result, begun time.Time) []placing {
	if len(plan.Assign) == 0 {
		return nil
	}
	workloads := map[string]placement.Workload{}
	for _, w := range in.Workloads {
		workloads[w.Spec.Key()] = w
	}
	out := make([]placing, len(plan.Assign))
	replacing := map[string]int{} // how many of a workload's have been given a predecessor
	for i := range plan.Assign {
		a := &plan.Assign[i].Assignment
		key := a.Namespace + "/" + a.Workload
		w, ok := workloads[key]
		if !ok || w.StoredWorkload == nil {
			continue
		}
		start := tracing.Start{At: begun, Parent: tracing.Parse(w.Trace)}
		if gone := givenUp(w); len(gone) > 0 {
			start.Link = tracing.Parse(cmp.Or(gone[replacing[key]%len(gone)].Trace, w.Trace))
			replacing[key]++
		} else if begun.Sub(w.Updated) > ofItsApply {
			start.Link = start.Parent
		} else {
			out[i].since = w.Updated
		}
		if start.Link != "" {
			start.Parent = ""
		}
		_, span := t.tracer.Start(context.Background(), tracing.InstancePlace, start)
		span.Set(tracing.KeyWorkload, key, tracing.KeyInstance, a.Instance, tracing.KeyNode, string(a.Node),
			tracing.KeySite, string(a.Site), tracing.KeyRuntime, string(a.Runtime))
		span.SetInt(tracing.KeyRevision, int64(a.Revision))
		span.Event(tracing.EventPlanned)
		a.Trace = string(span.Parent())
		out[i].span = span
	}
	return out
}

// givenUp are the instances of a workload's revision that are lost or have failed,
// so that another takes their place, the youngest first. One that its node refused
// is none of them: it has yet to be placed.
func givenUp(w placement.Workload) []*fleet.Instance {
	var gone []*fleet.Instance
	for _, i := range w.Instances {
		if i.Revision != w.Revision {
			continue
		}
		switch i.Status.Phase {
		case fleet.InstanceLost, fleet.InstanceFailed:
			gone = append(gone, i)
		}
	}
	slices.SortFunc(gone, func(a, b *fleet.Instance) int { return b.Fence.Compare(a.Fence) })
	return gone
}

// placed ends what tracePlan began.
func (t *term) placed(all []placing, plan placement.Result, results []*redoubtv1.OperationResult, err error) {
	for i, p := range all {
		switch at := len(plan.Stop) + i; {
		case err != nil:
			p.span.Fail("not known to be placed: " + err.Error())
		case at >= len(results):
		case codes.Code(results[at].GetCode()) != codes.OK:
			p.span.Fail("a stale plan, made again: " + results[at].GetMessage())
		default:
			p.span.Event(tracing.EventCommitted)
			if t.meter != nil && !p.since.IsZero() {
				t.meter.Placed(max(0, time.Since(p.since)))
			}
		}
		p.span.End()
	}
}

// firstRun is an instance that a node says for the first time to run.
type firstRun struct {
	op       int // the operation that records it
	instance *fleet.Instance
	notReady string
}

// firstRuns finds them in what is about to be recorded.
func (t *term) firstRuns(ops []*redoubtv1.Operation) []firstRun {
	if t.meter == nil && !t.tracer.On() {
		return nil
	}
	var out []firstRun
	view := t.store.Snapshot()
	for j, op := range ops {
		for _, s := range op.GetPutStatus().GetStatuses() {
			if s.GetPhase() != redoubtv1.InstancePhase_INSTANCE_PHASE_RUNNING || s.GetRestarts() > 0 {
				continue
			}
			i, ok := view.Instance(nil, s.GetUid())
			if !ok || i.Status.Phase != fleet.InstanceAssigned && i.Status.Phase != fleet.InstanceStarting && i.Status.Phase != fleet.InstanceBackoff {
				continue
			}
			out = append(out, firstRun{op: j, instance: i, notReady: s.GetNotReady()})
		}
	}
	return out
}

// running tells that they run, once that is recorded.
func (t *term) running(ran []firstRun, results []*redoubtv1.OperationResult, heard time.Time) {
	for _, r := range ran {
		i := r.instance
		recorded := codes.Code(results[r.op].GetCode()) == codes.OK
		if t.meter != nil && recorded {
			t.meter.Ran(max(0, time.Since(i.Created)))
		}
		parent := tracing.Parse(i.Trace)
		if parent == "" {
			continue
		}
		_, span := t.tracer.Start(context.Background(), tracing.InstanceRunning, tracing.Start{At: heard, Parent: parent})
		span.Set(tracing.KeyWorkload, i.Namespace+"/"+i.Workload, tracing.KeyInstance, i.Instance, tracing.KeyNode, string(i.Node),
			tracing.KeySite, string(i.Site), tracing.KeyRuntime, string(i.Runtime), tracing.KeyNotReady, r.notReady)
		if !recorded {
			span.Fail(results[r.op].GetMessage())
		}
		span.End()
	}
}
