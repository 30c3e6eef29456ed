package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"redoubt.dev/redoubt/deploy/otlp"
	"redoubt.dev/redoubt/proto/tracing"
)

// tracingFlags say where the spans of a daemon go.
type tracingFlags struct {
	cfg    otlp.Config
	sample float64
	given  func() bool // that sample was
}

func tracesFlags(c *cobra.Command, service string) *tracingFlags {
	t := &tracingFlags{cfg: otlp.Config{Service: service}}
	f := c.Flags()
	f.StringVar(&t.cfg.Endpoint, "tracing-endpoint", "", "send traces by OTLP to the collector at `URL`, such as https://otel.example:4318 (default: OTEL_EXPORTER_OTLP_ENDPOINT, else not at all)")
	f.StringVar(&t.cfg.HeadersFile, "tracing-headers-file", "", "`FILE`, for its owner alone, of headers to show the collector, a \"Name: value\" a line")
	f.Float64Var(&t.sample, "tracing-sample", 1, "`SHARE` of the traces beginning here that is kept, 0 to 1")
	t.given = func() bool { return f.Changed("tracing-sample") }
	return t
}

// withTraces runs a daemon with what makes its spans; nil: none are made. Where
// OpenTelemetry's variables are set for others and are not fit for this, the
// daemon says so and runs without.
func (a *app) withTraces(ctx context.Context, t *tracingFlags, reg prometheus.Registerer, run func(context.Context, tracing.Provider) error) error {
	if t.given() {
		if !(t.sample >= 0 && t.sample <= 1) {
			return fmt.Errorf("--tracing-sample %v: it is a share, from 0 to 1", t.sample)
		}
		t.cfg.Sample = &t.sample
	}
	t.cfg.Version, t.cfg.Getenv, t.cfg.Log = Version, a.Getenv, a.log
	out, err := otlp.New(t.cfg)
	otlp.ClearEnvironment()
	if errors.Is(err, otlp.ErrEnvironment) && t.cfg.Endpoint == "" {
		a.log.Warn("no traces are sent", "err", err)
		out, err = nil, nil
	}
	if err != nil {
		return err
	}
	if reg != nil {
		if err := reg.Register(out.Metrics()); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	if out != nil {
		a.log.Info("sending traces", "endpoint", out.Endpoint())
	}
	return out.Run(ctx, run)
}

// traced makes a verb the begin of a trace, where OpenTelemetry's variables say
// where to send it, or a part of the one that TRACEPARENT names. It never keeps
// the verb from its work.
func (a *app) traced(c *cobra.Command) {
	run := c.RunE
	c.RunE = func(c *cobra.Command, args []string) error {
		ctx := tracing.ContextWith(c.Context(), tracing.Parse(a.Getenv("TRACEPARENT")))
		log, err := a.logger("error", "text")
		if err != nil {
			return err
		}
		out, err := otlp.New(otlp.Config{Service: "redoubt", Version: Version, Getenv: a.Getenv, Flush: time.Second, Log: log})
		if err != nil {
			a.say("no trace is sent: %v", err)
		}
		return out.Run(ctx, func(ctx context.Context, p tracing.Provider) error {
			ctx, span := tracing.New(p).Start(ctx, tracing.Command+" "+c.Name(), tracing.Start{Kind: tracing.Client})
			defer span.End()
			c.SetContext(ctx)
			err := run(c, args)
			if err != nil {
				// What it says may repeat a file's content.
				span.Fail("it failed")
			}
			return err
		})
	}
}
