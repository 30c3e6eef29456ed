package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"redoubt.dev/redoubt/deploy/dev"
	"redoubt.dev/redoubt/isolation"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
	"redoubt.dev/redoubt/proto/tracing"
)

func (a *app) devCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "dev", Short: "Run a whole fleet on this machine, for trying things", Args: cobra.NoArgs,
		Long: "Runs a control server and an agent in one process, until it is interrupted. The\ncommands of a second terminal find it without flags. It leaves nothing behind.",
	}
	cfg := dev.Config{}
	c.Flags().StringVar(&cfg.Dir, "data-dir", dev.DefaultDir, "data `DIR`ectory")
	c.Flags().BoolVar(&cfg.Keep, "keep", false, "keep data and containers for the next start")
	c.Flags().StringVar(&cfg.Runtimes, "runtimes", "carried", "carried: those in this program; host: those on PATH")
	traces := tracesFlags(c, "redoubt-dev")
	c.RunE = func(c *cobra.Command, _ []string) error {
		begun := time.Now()
		cfg.Version, cfg.Log, cfg.Context = Version, a.log, a.DevContext
		cfg.Ready = func(n *redoubtv1.Node) {
			fmt.Fprintf(a.Stderr, "Ready in %.1f s. This machine proves:\n\n", time.Since(begun).Seconds())
			for _, f := range n.GetReport().GetFindings() {
				state, note := "unusable", f.GetReason()
				switch f.GetState() {
				case redoubtv1.FindingState_FINDING_STATE_VERIFIED:
					state, note = "verified", f.GetVariant()
				case redoubtv1.FindingState_FINDING_STATE_INSTALLED:
					state = "installed"
				}
				fmt.Fprintf(a.Stderr, "  %-12s %-10s %-10s %s\n", f.GetRuntime(), isolation.Class(f.GetClass()), state, note)
			}
			fmt.Fprintf(a.Stderr, "\nIn a second terminal:\n\n  redoubt run --prefer vm toolbox -- uname -a\n\nInterrupt (Ctrl-C) ends it and leaves nothing behind.\n")
		}
		return a.withTraces(c.Context(), traces, nil, func(ctx context.Context, p tracing.Provider) error {
			cfg.Traces = p
			return dev.Run(ctx, cfg)
		})
	}
	a.daemon(c)
	if f := c.Flags().Lookup("log-level"); f != nil {
		f.DefValue = "warn"
		_ = f.Value.Set("warn")
	}
	return c
}
