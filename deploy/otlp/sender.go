package otlp

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	sdk "go.opentelemetry.io/otel/sdk/trace"

	"redoubt.dev/redoubt/proto/tracing"
)

// tellEvery is how often a collector that takes nothing is told of.
const tellEvery = 5 * time.Minute

// gate lets no more spans wait than maxHeld, which is what the library's own queue
// takes: so that each one that is dropped is counted.
type gate struct {
	sdk.SpanProcessor
	out *sender
}

func (g *gate) OnEnd(s sdk.ReadOnlySpan) {
	if !s.SpanContext().IsSampled() {
		return
	}
	if g.out.held.Add(1) > maxHeld {
		g.out.held.Add(-1)
		g.out.counts.WithLabelValues(Dropped).Inc()
		return
	}
	g.SpanProcessor.OnEnd(s)
}

// sender counts what became of the spans that next sends, and tells of it.
type sender struct {
	next   sdk.SpanExporter
	counts *prometheus.CounterVec
	ending context.Context
	to     string
	log    *slog.Logger

	held atomic.Int64
	turn sync.Mutex // held while a batch is being sent
	// of turn
	failing bool
	told    time.Time
}

// ExportSpans never fails: what is amiss with a collector is said here, and not
// for each batch.
func (s *sender) ExportSpans(ctx context.Context, spans []sdk.ReadOnlySpan) error {
	s.turn.Lock()
	defer s.turn.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ending, cancel)()
	err := s.next.ExportSpans(ctx, spans)
	s.held.Add(-int64(len(spans)))
	if err == nil {
		s.counts.WithLabelValues(Exported).Add(float64(len(spans)))
		if s.failing {
			s.log.Info("the collector takes traces again", "endpoint", s.to)
		}
		s.failing = false
		return nil
	}
	s.counts.WithLabelValues(Failed).Add(float64(len(spans)))
	if now := time.Now(); s.ending.Err() == nil && (!s.failing || now.Sub(s.told) > tellEvery) {
		s.told = now
		s.log.Warn("the collector takes no traces; they are dropped until it does", "endpoint", s.to, "err", tracing.Clean(err.Error()))
	}
	s.failing = true
	return nil
}

func (s *sender) Shutdown(ctx context.Context) error { return s.next.Shutdown(ctx) }
