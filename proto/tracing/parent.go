package tracing

import (
	"context"
	"encoding/hex"

	oteltrace "go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/metadata"
)

// Parent names a span as a W3C traceparent does: "" or exactly 55 characters,
// version 00, both ids set, and no flag but that of sampling. It is made by
// Parse and by Span.Parent, so that one from elsewhere is never longer or other.
type Parent string

const (
	parentLength = 55
	// header is where a gRPC call carries it. Neither tracestate nor baggage is
	// taken from anybody.
	header = "traceparent"
)

// Parse reads what somebody else wrote. What is no traceparent of version 00
// is none: nothing is ever refused for it, nor decided by it.
func Parse(s string) Parent {
	if len(s) != parentLength || s[:3] != "00-" || s[35] != '-' || s[52] != '-' {
		return ""
	}
	if !id(s[3:35]) || !id(s[36:52]) || !digits(s[53:55]) {
		return ""
	}
	// Flags that this version does not know are dropped.
	if fromHex(s[54])&1 == 1 {
		return Parent(s[:53] + "01")
	}
	return Parent(s[:53] + "00")
}

// id: lower-case hexadecimal digits, not all of them zero.
func id(s string) bool {
	some := false
	for i := range len(s) {
		some = some || s[i] != '0'
	}
	return some && digits(s)
}

func digits(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

func fromHex(c byte) byte {
	if c >= 'a' {
		return c - 'a' + 10
	}
	return c - '0'
}

// parentOf is the other way round.
func parentOf(sc oteltrace.SpanContext) Parent {
	if !sc.IsValid() {
		return ""
	}
	b := make([]byte, 0, parentLength)
	trace, span := sc.TraceID(), sc.SpanID()
	b = append(b, "00-"...)
	b = hex.AppendEncode(b, trace[:])
	b = append(b, '-')
	b = hex.AppendEncode(b, span[:])
	if sc.IsSampled() {
		return Parent(append(b, "-01"...))
	}
	return Parent(append(b, "-00"...))
}

// context is what the library wants; the zero value for none.
func (p Parent) context() oteltrace.SpanContext {
	if Parse(string(p)) == "" {
		return oteltrace.SpanContext{}
	}
	trace, err := oteltrace.TraceIDFromHex(string(p[3:35]))
	if err != nil {
		return oteltrace.SpanContext{}
	}
	span, err := oteltrace.SpanIDFromHex(string(p[36:52]))
	if err != nil {
		return oteltrace.SpanContext{}
	}
	var flags oteltrace.TraceFlags
	if p[54] == '1' {
		flags = oteltrace.FlagsSampled
	}
	return oteltrace.NewSpanContext(oteltrace.SpanContextConfig{TraceID: trace, SpanID: span, TraceFlags: flags, Remote: true})
}

// TraceID is the id that a person looks a trace up by; "" if there is none.
func (p Parent) TraceID() string {
	if Parse(string(p)) == "" {
		return ""
	}
	return string(p[3:35])
}

// here is where a context has its span. It is not where the library has it: others
// that look there, as containerd's client does, would add spans of their own.
type here struct{}

// ContextWith gives ctx p as its span, unless p is none.
func ContextWith(ctx context.Context, p Parent) context.Context {
	if p = Parse(string(p)); p != "" {
		return context.WithValue(ctx, here{}, Span{given: p})
	}
	return ctx
}

// FromContext names the span of ctx.
func FromContext(ctx context.Context) Parent {
	s, _ := ctx.Value(here{}).(Span)
	return s.Parent()
}

// Incoming gives ctx, of a call that is served, the span that the caller named.
func Incoming(ctx context.Context) context.Context {
	if v := metadata.ValueFromIncomingContext(ctx, header); len(v) == 1 {
		return ContextWith(ctx, Parse(v[0]))
	}
	return ctx
}

// Outgoing names the span of ctx to whom ctx is used to call.
func Outgoing(ctx context.Context) context.Context {
	if p := FromContext(ctx); p != "" {
		return metadata.AppendToOutgoingContext(ctx, header, string(p))
	}
	return ctx
}
