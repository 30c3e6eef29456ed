package reconcile

import (
	"context"

	"redoubt.dev/redoubt/agent/store"
	"redoubt.dev/redoubt/proto/tracing"
)

// placementAttempts is how many attempts, none of which came to run, are a part
// of the trace of their placement.
const placementAttempts = 10

// OfPlacement tells whether an attempt is a part of the trace of its placement.
// One that follows a run, or a long row of failures, begins a trace of its own
// that names the placement's: a workload that ends again and again must not make
// one trace grow for ever.
func OfPlacement(f store.Facts) bool { return f.Restarts == 0 && f.Attempt <= placementAttempts }

// traceStart begins the span of one attempt.
func (l *Loop) traceStart(ctx context.Context, f store.Facts, as *Assignment) (context.Context, tracing.Span) {
	if !l.d.Tracer.On() || as.Trace == "" {
		return ctx, tracing.Span{}
	}
	start := tracing.Start{Parent: as.Trace}
	if !OfPlacement(f) {
		start = tracing.Start{Link: as.Trace}
	}
	ctx, span := l.d.Tracer.Start(ctx, tracing.InstanceStart, start)
	span.Set(tracing.KeyWorkload, as.Namespace+"/"+as.Workload, tracing.KeyInstance, as.Instance, tracing.KeyUID, as.UID, tracing.KeyRuntime, string(as.Runtime))
	span.SetInt(tracing.KeyAttempt, int64(f.Attempt))
	return ctx, span
}

// endStep ends the span of a step with what came of it.
func endStep(span tracing.Span, err error) {
	if err != nil {
		span.Fail(err.Error())
	}
	span.End()
}
