package agent

import (
	"context"
	"sync"
	"time"

	"redoubt.dev/redoubt/agent/reconcile"
	"redoubt.dev/redoubt/agent/store"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
	"redoubt.dev/redoubt/proto/tracing"
)

// resumeFor is how old a run may be whose report an agent that starts takes for
// not yet acknowledged: it cannot know, so its span may be there twice.
const resumeFor = 10 * time.Minute

// placements makes the spans of what this node is to run, starts apart, which
// are the reconciler's. What it keeps is of this life of the agent; the context
// of each placement is on disk with its assignment. mu is a leaf.
type placements struct {
	tracer tracing.Tracer

	mu sync.Mutex
	// known are those that the node is to run, by uid.
	known map[string]*placementTrace
}

type placementTrace struct {
	parent   tracing.Parent
	workload string
	instance string
	runtime  string
	// ready: told once. reporting, if not 0, is the sequence of the status whose
	// acknowledgement is waited for since.
	ready     bool
	reporting uint64
	since     time.Time
}

func newPlacements(t tracing.Tracer) *placements {
	return &placements{tracer: t, known: map[string]*placementTrace{}}
}

// keep forgets what is no longer assigned, and takes in what is.
func (p *placements) keep(assigned map[string]reconcile.Assignment) {
	if !p.tracer.On() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for uid := range p.known {
		if _, ok := assigned[uid]; !ok {
			delete(p.known, uid)
		}
	}
	for uid, a := range assigned {
		if p.known[uid] == nil && a.Trace != "" {
			p.known[uid] = &placementTrace{parent: a.Trace, workload: a.Namespace + "/" + a.Workload, instance: a.Instance, runtime: string(a.Runtime)}
		}
	}
}

// resume takes up what an earlier life of the agent left: what has run for long
// was told then, and what runs since lately may not have been.
func (p *placements) resume(facts []store.Facts, now time.Time) {
	if !p.tracer.On() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range facts {
		t := p.known[f.UID]
		if t == nil || !isReady(f) {
			continue
		}
		t.ready = true
		if age := now.Sub(f.Started); reconcile.OfPlacement(f) && age >= 0 && age < resumeFor {
			t.reporting, t.since = f.Sequence, now
		}
	}
}

func isReady(f store.Facts) bool { return f.Phase == store.Running && f.NotReady == "" }

// storing begins the spans of assignments that are new; the function that it
// returns ends them.
func (p *placements) storing(updated []*redoubtv1.Assignment) func(error) {
	if !p.tracer.On() {
		return func(error) {}
	}
	var spans []tracing.Span
	for _, a := range updated {
		parent := tracing.Parse(a.GetTrace())
		p.mu.Lock()
		t := p.known[a.GetUid()]
		p.mu.Unlock()
		if t != nil || parent == "" || a.GetStop() {
			continue
		}
		_, span := p.tracer.Start(context.Background(), tracing.AssignmentStore, tracing.Start{Kind: tracing.Consumer, Parent: parent})
		span.Set(tracing.KeyWorkload, a.GetNamespace()+"/"+a.GetWorkload(), tracing.KeyInstance, a.GetInstance(), tracing.KeyUID, a.GetUid(), tracing.KeyRuntime, a.GetRuntime())
		spans = append(spans, span)
	}
	return func(err error) {
		for _, span := range spans {
			if err != nil {
				span.Fail(err.Error())
			}
			span.End()
		}
	}
}

// recorded looks for the first run that is ready, and for a refusal.
func (p *placements) recorded(before, f store.Facts, now time.Time) {
	if !p.tracer.On() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.known[f.UID]
	if t == nil {
		return
	}
	switch {
	case f.Phase == store.Rejected && before.Phase != store.Rejected:
		_, span := p.start(tracing.InstanceReject, t, f, now)
		span.Fail(f.Message)
		span.End()
	case isReady(f) && !t.ready && reconcile.OfPlacement(f):
		t.ready, t.reporting, t.since = true, f.Sequence, now
		began := now
		// By the kernel's record, unless a clock was set meanwhile.
		if d := now.Sub(f.Started); d > 0 && d < 24*time.Hour {
			began = f.Started
		}
		_, span := p.start(tracing.InstanceReady, t, f, began)
		span.End()
	}
}

// acknowledged ends the way of a placement: the leader has taken in that its
// instance runs and is ready.
func (p *placements) acknowledged(told []*redoubtv1.InstanceStatus, sent time.Time) {
	if !p.tracer.On() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range told {
		t := p.known[s.GetUid()]
		if t == nil || t.reporting == 0 || s.GetSequence() < t.reporting {
			continue
		}
		t.reporting = 0
		if s.GetPhase() != redoubtv1.InstancePhase_INSTANCE_PHASE_RUNNING || s.GetNotReady() != "" {
			continue // it has ended meanwhile, and that it ran was never told
		}
		if t.since.After(sent) {
			sent = t.since
		}
		_, span := p.tracer.Start(context.Background(), tracing.StatusReport, tracing.Start{Kind: tracing.Producer, Parent: t.parent, At: sent})
		span.Set(tracing.KeyWorkload, t.workload, tracing.KeyInstance, t.instance, tracing.KeyUID, s.GetUid(), tracing.KeyRuntime, t.runtime)
		span.End()
	}
}

func (p *placements) start(name string, t *placementTrace, f store.Facts, at time.Time) (context.Context, tracing.Span) {
	ctx, span := p.tracer.Start(context.Background(), name, tracing.Start{Parent: t.parent, At: at})
	span.Set(tracing.KeyWorkload, t.workload, tracing.KeyInstance, t.instance, tracing.KeyUID, f.UID, tracing.KeyRuntime, t.runtime)
	span.SetInt(tracing.KeyAttempt, int64(f.Attempt))
	return ctx, span
}
