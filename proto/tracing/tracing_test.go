package tracing

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	oteltrace "go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/metadata"
)

const good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

func TestParse(t *testing.T) {
	for text, want := range map[string]Parent{
		good:                                  good,
		strings.TrimSuffix(good, "01") + "00": Parent(strings.TrimSuffix(good, "01") + "00"),
		strings.TrimSuffix(good, "01") + "ff": good, // flags that nobody here knows
		strings.TrimSuffix(good, "01") + "fe": Parent(strings.TrimSuffix(good, "01") + "00"),
		"":                                    "",
		good + "-more":                        "",
		"01" + good[2:]:                       "",
		"ff" + good[2:]:                       "",
		strings.ToUpper(good):                 "",
		"00-00000000000000000000000000000000-b7ad6b7169203331-01":    "",
		"00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01":    "",
		"00-0af7651916cd43dd8448eb211c80319cxb7ad6b7169203331-01":    "",
		"00-0af7651916cd43dd8448eb211c80319\x00-b7ad6b7169203331-01": "",
		strings.Repeat("a", 1<<20):                                   "",
	} {
		if got := Parse(text); got != want {
			t.Errorf("%.60q is read as %q, not %q", text, got, want)
		}
	}
}

// Whatever somebody else wrote: it is a traceparent of 55 characters or none, and
// what is read is read as the same again and means what the library takes it for.
func FuzzParse(f *testing.F) {
	f.Add(good)
	f.Add("")
	f.Add("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-ff")
	f.Fuzz(func(t *testing.T, text string) {
		p := Parse(text)
		if p == "" {
			if FromContext(ContextWith(context.Background(), p)) != "" {
				t.Error("of none comes one")
			}
			return
		}
		if len(p) != parentLength || Parse(string(p)) != p {
			t.Errorf("%q is read as %q and that as %q", text, p, Parse(string(p)))
		}
		if back := FromContext(ContextWith(context.Background(), p)); back != p || parentOf(p.context()) != p {
			t.Errorf("%q comes back as %q, and the library has it as %q", p, back, parentOf(p.context()))
		}
	})
}

// one call of everything that a start does.
func busy(t Tracer, ctx context.Context) {
	ctx, span := t.Start(ctx, InstanceStart, Start{Parent: good, Kind: Consumer})
	span.Set(KeyWorkload, "default/web", KeyInstance, "web-1")
	span.SetInt(KeyAttempt, 1)
	SpanOf(ctx).Event(EventRecorded)
	span.Fail("no")
	span.End()
}

// TestOffAllocatesNothing: where nothing is traced, nothing is paid.
func TestOffAllocatesNothing(t *testing.T) {
	var off Tracer
	if n := testing.AllocsPerRun(1000, func() { busy(off, context.Background()) }); n != 0 {
		t.Errorf("a span that is not made takes %v allocations", n)
	}
	if New(nil, "a", "b").On() {
		t.Error("a tracer without a provider is on")
	}
}

func BenchmarkOff(b *testing.B) {
	b.ReportAllocs()
	var off Tracer
	for b.Loop() {
		busy(off, context.Background())
	}
}

func BenchmarkOn(b *testing.B) {
	b.ReportAllocs()
	on := New(sdk.NewTracerProvider())
	for b.Loop() {
		busy(on, context.Background())
	}
}

// A server that makes no spans passes on what others make.
func TestOffPassesOthersContextsOn(t *testing.T) {
	var off Tracer
	ctx := Incoming(metadata.NewIncomingContext(context.Background(), metadata.Pairs("traceparent", good)))
	ctx, span := off.Start(ctx, APIApply, Start{Kind: Server})
	span.End()
	if FromContext(ctx) != good {
		t.Errorf("it passes %q on", FromContext(ctx))
	}
	md, _ := metadata.FromOutgoingContext(Outgoing(ctx))
	if v := md.Get("traceparent"); len(v) != 1 || v[0] != good {
		t.Errorf("it calls with %q", v)
	}
	if _, span := off.Start(context.Background(), InstancePlace, Start{Parent: good}); span.Parent() != good {
		t.Errorf("a placement names %q", span.Parent())
	}
	if _, span := off.Start(context.Background(), InstancePlace, Start{Link: good}); span.Parent() != "" {
		t.Errorf("a replacement names %q, and is no part of it", span.Parent())
	}
	twice := metadata.NewIncomingContext(context.Background(), metadata.Pairs("traceparent", good, "traceparent", good))
	if FromContext(Incoming(twice)) != "" {
		t.Error("of two contexts one is taken")
	}
}

// TestTheBeginDecidesWhatIsKept: one that was not sampled where it began is not
// anywhere else, whatever the sampler there says.
func TestTheBeginDecidesWhatIsKept(t *testing.T) {
	kept := tracetest.NewInMemoryExporter()
	on := New(sdk.NewTracerProvider(sdk.WithSyncer(kept)), KeyNode, "n1")
	for _, p := range []Parent{good, Parse(good[:53] + "00")} {
		_, span := on.Start(context.Background(), InstanceStart, Start{Parent: p})
		if span.Parent()[53:] != p[53:] || span.Parent().TraceID() != p.TraceID() {
			t.Errorf("below %s is %s", p, span.Parent())
		}
		span.End()
	}
	if n := len(kept.GetSpans()); n != 1 {
		t.Errorf("%d spans are kept of one that is to be kept and one that is not", n)
	}
	_, span := on.Start(context.Background(), InstancePlace, Start{Link: good, At: time.Unix(1, 0)})
	span.End()
	s := kept.GetSpans()[1]
	if s.Parent.IsValid() || len(s.Links) != 1 || parentOf(s.Links[0].SpanContext) != good || s.SpanContext.TraceID().String() == Parent(good).TraceID() {
		t.Errorf("what begins anew has the parent %v and links %v", s.Parent, s.Links)
	}
	if !s.StartTime.Equal(time.Unix(1, 0)) || len(s.Attributes) != 1 || s.Attributes[0].Value.AsString() != "n1" {
		t.Errorf("it begins at %s with %v", s.StartTime, s.Attributes)
	}
}

// TestLibrariesAreShownNoSpan: containerd's client adds spans of its own, with
// attributes that nobody here has looked at, to the one that it finds in a context.
func TestLibrariesAreShownNoSpan(t *testing.T) {
	on := New(sdk.NewTracerProvider())
	ctx, span := on.Start(ContextWith(context.Background(), good), ContainerStart, Start{})
	defer span.End()
	if oteltrace.SpanContextFromContext(ctx).IsValid() {
		t.Error("a library finds the span")
	}
	inner, part := on.Start(ctx, BoundaryMeasure, Start{})
	defer part.End()
	if SpanOf(ctx) != span || SpanOf(inner) != part || part.Parent().TraceID() != Parent(good).TraceID() {
		t.Error("what is its own is not found")
	}
}

func TestTextsAreCutAndCleaned(t *testing.T) {
	kept := tracetest.NewInMemoryExporter()
	on := New(sdk.NewTracerProvider(sdk.WithSyncer(kept)))
	_, span := on.Start(context.Background(), InstanceStart, Start{})
	hostile := "\x1b[2J\xff\x00" + strings.Repeat("é", 1<<16)
	span.Set(KeyImage, hostile, KeySite, "")
	span.Fail(errors.New(hostile).Error())
	span.End()
	s := kept.GetSpans()[0]
	if len(s.Attributes) != 1 {
		t.Errorf("an empty value is an attribute: %v", s.Attributes)
	}
	for _, text := range []string{s.Attributes[0].Value.AsString(), s.Status.Description} {
		if len(text) > maxText || !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) {
			t.Errorf("%d bytes: %.40q", len(text), text)
		}
	}
}
