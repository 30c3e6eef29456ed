// Package tracing makes the spans of a placement, and carries their context in
// calls, in the log of the fleet and in assignments.
//
// It is shared by servers, agents and the command; who makes no span at all
// imports nothing else of OpenTelemetry, and the SDK and the exporter are
// deploy/otlp's alone. No provider is global, and no context shows a library a
// span: those which would trace by themselves (containerd's client) stay silent,
// and what is sent is what is listed.
//
// It promises: a zero Tracer makes no span, allocates nothing and passes the
// context of others on; a context that somebody else wrote is bounded, checked
// and never a reason to refuse anything; whether a trace is kept is decided
// once, where it begins; no text of a span is longer than maxText or has a
// control character.
//
// What the spans are is listed in names.go, and told in docs/traces.md.
package tracing

import (
	"context"
	"strings"
	"time"
	"unicode"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	oteltrace "go.opentelemetry.io/otel/trace"
)

// maxText is how long a reason or an attribute may be, in bytes.
const maxText = 512

// scope names this program as the maker of its spans.
const scope = "redoubt.dev/redoubt"

// Tracer makes spans; the zero one makes none.
type Tracer struct {
	t    oteltrace.Tracer
	base []attribute.KeyValue
}

// Provider is where spans go; deploy/otlp has one.
type Provider = oteltrace.TracerProvider

// New makes a tracer whose spans all have the attributes base, pairs of key and
// value. Without a provider it makes no spans.
func New(p Provider, base ...string) Tracer {
	if p == nil {
		return Tracer{}
	}
	return Tracer{t: p.Tracer(scope), base: pairs(base)}
}

// On tells whether spans are made.
func (t Tracer) On() bool { return t.t != nil }

// Kind is on which side of a call or message a span is.
type Kind = oteltrace.SpanKind

const (
	Internal = oteltrace.SpanKindInternal
	Server   = oteltrace.SpanKindServer
	Client   = oteltrace.SpanKindClient
	Producer = oteltrace.SpanKindProducer
	Consumer = oteltrace.SpanKindConsumer
)

// Start is how a span begins. The zero value: now, as a part of the span of its
// context, or else as a trace of its own.
type Start struct {
	Kind Kind
	// At, if set, is when it began.
	At time.Time
	// Parent, if set, is what it is a part of, instead of its context's.
	Parent Parent
	// Link, if set, makes it the begin of a trace of its own that names another.
	Link Parent
}

// Start begins a span, and gives ctx it. Who gets it ends it.
func (t Tracer) Start(ctx context.Context, name string, s Start) (context.Context, Span) {
	if t.t == nil {
		if s.Link != "" {
			return ctx, Span{}
		}
		return ctx, Span{given: s.Parent}
	}
	options := make([]oteltrace.SpanStartOption, 0, 4)
	options = append(options, oteltrace.WithAttributes(t.base...))
	if s.Kind != 0 {
		options = append(options, oteltrace.WithSpanKind(s.Kind))
	}
	if !s.At.IsZero() {
		options = append(options, oteltrace.WithTimestamp(s.At))
	}
	within := context.Background()
	switch above, _ := ctx.Value(here{}).(Span); {
	case s.Link != "":
		options = append(options, oteltrace.WithNewRoot(), oteltrace.WithLinks(oteltrace.Link{SpanContext: s.Link.context()}))
	case s.Parent != "":
		within = oteltrace.ContextWithRemoteSpanContext(within, s.Parent.context())
	case above.s != nil:
		within = oteltrace.ContextWithSpan(within, above.s)
	case above.given != "":
		within = oteltrace.ContextWithRemoteSpanContext(within, above.given.context())
	}
	_, made := t.t.Start(within, name, options...)
	span := Span{s: made}
	return context.WithValue(ctx, here{}, span), span
}

// Span is one step of a trace. All methods of the zero one do nothing.
type Span struct {
	s oteltrace.Span
	// given is the parent that was given where no span is made.
	given Parent
}

// SpanOf is the span of ctx, for who adds to it and leaves its end to others.
func SpanOf(ctx context.Context) Span {
	if s, _ := ctx.Value(here{}).(Span); s.s != nil {
		return s
	}
	return Span{}
}

// Parent names it, for what is a part of it elsewhere. Where no span is made it
// is the parent that was given.
func (s Span) Parent() Parent {
	if s.s == nil {
		return s.given
	}
	return parentOf(s.s.SpanContext())
}

// Set adds attributes: pairs of key and value. Empty values are left out.
func (s Span) Set(kv ...string) {
	if s.s == nil || !s.s.IsRecording() {
		return
	}
	s.s.SetAttributes(pairs(kv)...)
}

// SetInt adds a number.
func (s Span) SetInt(key string, v int64) {
	if s.s != nil {
		s.s.SetAttributes(attribute.Int64(key, v))
	}
}

// Event notes a moment of it.
func (s Span) Event(name string) {
	if s.s != nil {
		s.s.AddEvent(name)
	}
}

// Fail marks it as failed, and says why.
func (s Span) Fail(reason string) {
	if s.s != nil && s.s.IsRecording() {
		s.s.SetStatus(codes.Error, Clean(reason))
	}
}

// End ends it now.
func (s Span) End() {
	if s.s != nil {
		s.s.End()
	}
}

func pairs(kv []string) []attribute.KeyValue {
	out := make([]attribute.KeyValue, 0, len(kv)/2)
	for i := 0; i+1 < len(kv); i += 2 {
		if v := Clean(kv[i+1]); v != "" {
			out = append(out, attribute.String(kv[i], v))
		}
	}
	return out
}

// Clean cuts a text that others may have had a part in, and takes what is not
// for reading out of it.
func Clean(s string) string {
	if len(s) > maxText {
		s = s[:maxText-3] + "…"
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == unicode.ReplacementChar {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, " "))
}
