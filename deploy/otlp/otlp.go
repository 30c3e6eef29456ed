// Package otlp sends spans to an OpenTelemetry collector, over OTLP and HTTP.
//
// It is off unless an endpoint is configured, by a flag or by OpenTelemetry's own
// variables. It is the only importer of the SDK and of the exporter.
//
// It promises that a collector hurts nobody: what waits for it is bounded by
// number (maxHeld) and each span by size (proto/tracing); what does not fit, or is
// not taken in time, is dropped and counted; its answers are cut, its redirects
// are not followed and what it says of errors is told rarely, in one line. It
// promises that nothing of a fleet goes over a network in plain text: http:// is
// for loopback alone. And that what the collector asks to be shown (headers) is
// read from a file of root's or from OpenTelemetry's variables, which are taken
// out of this process's environment so that nothing it starts inherits them; it
// reaches no log.
//
// It leaves what is a span to proto/tracing, and whether one is kept to the
// sampler: the decision is made where a trace begins, and carried on.
package otlp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"

	"redoubt.dev/redoubt/proto/tracing"
)

const (
	// maxHeld is how many spans wait for the collector at most.
	maxHeld = 2048
	// exportWithin is how long one batch may take with all its repeats.
	exportWithin = 20 * time.Second
	// flushWithin is how long the end waits for what is held, unless told.
	flushWithin = 3 * time.Second
	// maxAnswer is how much is read of what a collector answers.
	maxAnswer = 16 << 10
)

// Config is where spans go. Nothing of it is required: what is empty is taken
// from OpenTelemetry's variables, and without an endpoint there either, nothing
// is sent.
type Config struct {
	// Endpoint is a URL; without a path it is completed with /v1/traces.
	Endpoint string
	// HeadersFile holds what the collector asks to be shown, a line each.
	HeadersFile string
	// Sample is the share of traces that is kept, of those that begin here; nil:
	// what OTEL_TRACES_SAMPLER says, else all.
	Sample *float64

	// Service and Version name this program.
	Service, Version string
	// Every is how often batches are sent [5s]; Flush how long the end waits for
	// what is held [3s].
	Every, Flush time.Duration
	Getenv       func(string) string // nil: os.Getenv
	Log          *slog.Logger
}

// Exporter sends spans. Make one with New; Run it once.
type Exporter struct {
	cfg    Config
	to     target
	counts *prometheus.CounterVec
}

// Outcomes of spans, in the metric.
const (
	Exported = "exported" // the collector took it
	Failed   = "failed"   // it was not there, or did not take it
	Dropped  = "dropped"  // too many were waiting
)

// New reads the configuration and starts nothing. It returns nil if no spans
// are to be sent. An error of what the environment says is ErrEnvironment: it
// may be meant for others.
func New(cfg Config) (*Exporter, error) {
	if cfg.Getenv == nil {
		cfg.Getenv = os.Getenv
	}
	if cfg.Flush == 0 {
		cfg.Flush = flushWithin
	}
	to, err := cfg.target()
	if err != nil || to.url == "" {
		return nil, err
	}
	return &Exporter{cfg: cfg, to: to, counts: counter()}, nil
}

func counter() *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "redoubt_trace_spans_total", Help: "Spans by what became of them.",
	}, []string{"outcome"})
	for _, outcome := range []string{Exported, Failed, Dropped} {
		c.WithLabelValues(outcome)
	}
	return c
}

// Metrics are its figures, also of one that sends nothing.
func (e *Exporter) Metrics() prometheus.Collector {
	if e == nil {
		return counter()
	}
	return e.counts
}

// Endpoint is where spans go, for people.
func (e *Exporter) Endpoint() string { return e.to.url }

// Run calls work with a provider, and returns when that has and what it left was
// sent or given up. On a nil Exporter, work gets none.
func (e *Exporter) Run(ctx context.Context, work func(context.Context, tracing.Provider) error) error {
	if e == nil {
		return work(ctx, nil)
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		e.cfg.Log.Warn("tracing", "err", tracing.Clean(err.Error()))
	}))
	inner, err := otlptracehttp.New(ctx,
		otlptracehttp.WithEndpointURL(e.to.url), otlptracehttp.WithHeaders(e.to.headers), otlptracehttp.WithHTTPClient(e.to.client()),
		otlptracehttp.WithMaxResponseSize(maxAnswer), otlptracehttp.WithRetry(otlptracehttp.RetryConfig{
			Enabled: true, InitialInterval: time.Second, MaxInterval: 5 * time.Second, MaxElapsedTime: exportWithin,
		}))
	if err != nil {
		return fmt.Errorf("send traces to %s: %w", e.to.url, err)
	}
	res, err := resource.New(ctx, resource.WithAttributes(attribute.String("service.name", e.cfg.Service), attribute.String("service.version", e.cfg.Version)),
		resource.WithHost(), resource.WithFromEnv())
	if err != nil && !errors.Is(err, resource.ErrPartialResource) {
		e.cfg.Log.Warn("tracing: what spans say of this process is not complete", "err", tracing.Clean(err.Error()))
	}
	ending, kill := context.WithCancel(context.WithoutCancel(ctx))
	defer kill()
	out := &sender{next: inner, counts: e.counts, ending: ending, to: e.to.url, log: e.cfg.Log}
	batch := []sdk.BatchSpanProcessorOption{sdk.WithMaxQueueSize(maxHeld), sdk.WithMaxExportBatchSize(maxHeld / 4), sdk.WithExportTimeout(exportWithin + 10*time.Second)}
	if e.cfg.Every > 0 {
		batch = append(batch, sdk.WithBatchTimeout(e.cfg.Every))
	}
	options := []sdk.TracerProviderOption{sdk.WithResource(res), sdk.WithSpanProcessor(&gate{SpanProcessor: sdk.NewBatchSpanProcessor(out, batch...), out: out})}
	if e.cfg.Sample != nil {
		options = append(options, sdk.WithSampler(sdk.ParentBased(sdk.TraceIDRatioBased(*e.cfg.Sample))))
	}
	provider := sdk.NewTracerProvider(options...)
	err = work(ctx, provider)
	flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), e.cfg.Flush)
	defer cancel()
	if provider.Shutdown(flush) != nil {
		e.cfg.Log.Debug("some spans were not sent before the end", "endpoint", e.to.url, "spans", out.held.Load())
	}
	kill()
	out.turn.Lock() // what was being sent has been given up
	defer out.turn.Unlock()
	return err
}

// ClearEnvironment takes secrets of OpenTelemetry's out of this process's
// environment, after New has read them.
func ClearEnvironment() {
	for _, entry := range os.Environ() {
		if name, _, _ := strings.Cut(entry, "="); slices.Contains(secretVariables, name) {
			os.Unsetenv(name)
		}
	}
}

var secretVariables = []string{"OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_METRICS_HEADERS", "OTEL_EXPORTER_OTLP_LOGS_HEADERS"}
