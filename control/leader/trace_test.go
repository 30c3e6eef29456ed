package leader

import (
	"strings"
	"testing"
	"time"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/grpc/codes"

	"redoubt.dev/redoubt/control/placement"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
	"redoubt.dev/redoubt/proto/tracing"
)

const applied tracing.Parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

// tracedBench is a bench whose placements are traced.
type tracedBench struct {
	*bench
	term *term
	kept *tracetest.InMemoryExporter
}

func newTracedBench(t *testing.T, nodes ...string) *tracedBench {
	kept := tracetest.NewInMemoryExporter()
	b := &tracedBench{bench: newBench(t, nodes...), kept: kept}
	b.term = &term{Leader: &Leader{store: b.store, timing: DefaultTiming(), tracer: tracing.New(sdk.NewTracerProvider(sdk.WithSyncer(kept)))}, observed: b.o}
	return b
}

func (b *tracedBench) putTraced(w *redoubtv1.Workload, trace tracing.Parent) {
	b.Helper()
	b.apply(&redoubtv1.Operation{Operation: &redoubtv1.Operation_PutWorkload{PutWorkload: &redoubtv1.PutWorkload{Workload: w, User: "admin", Uid: NewUID(), Trace: string(trace)}}})
}

// placeTraced plans and applies as the place loop does, the plan made at.
func (b *tracedBench) placeTraced(at time.Time) {
	b.Helper()
	in := b.input()
	plan := placement.Plan(in, placement.Policy{})
	placing := b.term.tracePlan(in, plan, at)
	ops := planOperations(plan)
	b.apply(ops...)
	results := make([]*redoubtv1.OperationResult, len(ops))
	for i := range results {
		results[i] = &redoubtv1.OperationResult{}
	}
	b.term.placed(placing, plan, results, nil)
}

func (b *tracedBench) last() tracetest.SpanStub {
	b.Helper()
	spans := b.kept.GetSpans()
	if len(spans) == 0 {
		b.Fatal("there is no span")
	}
	return spans[len(spans)-1]
}

// TestAReplacementIsATraceOfItsOwn: the first instance is a part of the apply's
// trace, the one that takes a lost one's place begins one that names it, and so does
// what is placed long after the apply.
func TestAReplacementIsATraceOfItsOwn(t *testing.T) {
	b := newTracedBench(t, "o1", "o2")
	b.putTraced(b.service(1, nil), applied)
	b.placeTraced(b.now)
	first := b.instances()[0]
	span := b.last()
	if span.Name != tracing.InstancePlace || span.Parent.SpanID().String() != string(applied[36:52]) || len(span.Links) != 0 {
		t.Errorf("the first placement is %s below %s, linked to %v", span.Name, span.Parent.SpanID(), span.Links)
	}
	if p := tracing.Parse(first.Trace); p.TraceID() != applied.TraceID() || string(p[36:52]) != span.SpanContext.SpanID().String() {
		t.Errorf("the assignment carries %s, its placement is %s", p, span.SpanContext.SpanID())
	}

	b.apply(&redoubtv1.Operation{Operation: &redoubtv1.Operation_StopAssignment{StopAssignment: &redoubtv1.StopAssignment{Uid: first.UID, Lost: true, Why: "silent"}}})
	b.placeTraced(b.now)
	second := b.instances()[1]
	if first.UID == second.UID {
		second = b.instances()[0]
	}
	span = b.last()
	if span.Parent.IsValid() || len(span.Links) != 1 || span.Links[0].SpanContext.SpanID().String() != first.Trace[36:52] {
		t.Errorf("the replacement is below %s, linked to %v", span.Parent.SpanID(), span.Links)
	}
	if p := tracing.Parse(second.Trace); p == "" || p.TraceID() == applied.TraceID() || p.TraceID() != span.SpanContext.TraceID().String() {
		t.Errorf("the replacement carries %q", p)
	}

	late := newTracedBench(t, "o1")
	late.putTraced(late.service(1, nil), applied)
	late.placeTraced(late.now.Add(ofItsApply + time.Second))
	span = late.last()
	if span.Parent.IsValid() || len(span.Links) != 1 || span.Links[0].SpanContext.TraceID().String() != applied.TraceID() {
		t.Errorf("what is placed long afterwards is below %s, linked to %v", span.Parent.SpanID(), span.Links)
	}
}

// TestWhatIsNotKeptIsNotKeptAnywhere: an apply that is not sampled is carried on as
// such.
func TestWhatIsNotKeptIsNotKeptAnywhere(t *testing.T) {
	b := newTracedBench(t, "o1")
	b.putTraced(b.service(1, nil), applied[:53]+"00")
	b.placeTraced(b.now)
	if n := len(b.kept.GetSpans()); n != 0 {
		t.Errorf("%d spans of a trace that is not kept", n)
	}
	if got := b.instances()[0].Trace; tracing.Parse(got).TraceID() != applied.TraceID() || !strings.HasSuffix(got, "-00") {
		t.Errorf("the assignment carries %q", got)
	}
	// Without tracing here, what the caller traces is passed on.
	off := newTracedBench(t, "o1")
	off.term.tracer = tracing.Tracer{}
	off.putTraced(off.service(1, nil), applied)
	off.placeTraced(off.now)
	if got := off.instances()[0].Trace; got != string(applied) {
		t.Errorf("without tracing, the assignment carries %q", got)
	}
}

func TestAPlanThatLostSaysSo(t *testing.T) {
	b := newTracedBench(t, "o1")
	b.putTraced(b.service(1, nil), applied)
	in := b.input()
	plan := placement.Plan(in, placement.Policy{})
	b.term.placed(b.term.tracePlan(in, plan, b.now), plan, []*redoubtv1.OperationResult{{Code: uint32(codes.FailedPrecondition), Message: "the node is cordoned"}}, nil)
	if s := b.last(); !strings.Contains(s.Status.Description, "the node is cordoned") {
		t.Errorf("its span says %q", s.Status.Description)
	}
}
