package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"redoubt.dev/redoubt/control/state"
	"redoubt.dev/redoubt/deploy/node"
	"redoubt.dev/redoubt/deploy/runtimes"
	"redoubt.dev/redoubt/isolation"
	"redoubt.dev/redoubt/isolation/probe"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

func (a *app) doctorCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "doctor", Short: "Prove what isolation this host delivers", Args: cobra.NoArgs,
		Long: "Measures this host and proves each isolation runtime with a canary, as an agent\nwould, and says what is missing and what would help. It needs no fleet and leaves\nnothing behind. Without root it can prove nothing and says only what is there.",
	}
	a.formatted(c)
	c.Flags().BoolVarP(&a.quiet, "quiet", "q", false, "no progress and no hints")
	from := c.Flags().String("runtimes", node.RuntimesCarried, "carried: those in this program; host: those on PATH")
	c.RunE = func(c *cobra.Command, _ []string) error {
		out, err := a.output()
		if err != nil {
			return err
		}
		facts, findings, err := a.examine(c.Context(), *from)
		if err != nil {
			return fmt.Errorf("examine this host: %w", err)
		}
		name, err := os.Hostname()
		if err != nil {
			name = "this host"
		}
		report := state.ReportToProto(&isolation.Report{Host: facts, Findings: findings})
		if out.structured() {
			return out.message(report, nil)
		}
		n := &redoubtv1.Node{Id: name, Report: report, ScoreVersion: isolation.ScoreVersion}
		for _, f := range findings {
			n.Fresh = append(n.Fresh, f.State == isolation.StateVerified)
			n.Scores = append(n.Scores, isolation.Score(f.Class, f.Terms))
		}
		if out.format == "name" {
			return out.table(func(t *table) { findingTable(t, n) })
		}
		return a.showHost(out, n)
	}
	return c
}

// examine proves what it can. Without root, or without the parts, it says so
// and tells what is there.
func (a *app) examine(ctx context.Context, from string) (facts isolation.Host, findings []isolation.Finding, err error) {
	why := ""
	if os.Geteuid() != 0 {
		why = "starting a container needs root: repeat it with sudo"
	}
	if why == "" {
		dir, e := os.MkdirTemp("", "redoubt-doctor-")
		if e != nil {
			return facts, nil, e
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
		a.say("Proving each runtime with a canary; this takes some seconds.")
		facts, findings, err = node.Probe(ctx, node.Config{
			DataDir: dir, Runtimes: from, Node: fmt.Sprintf("doctor-%d", os.Getpid()), Version: Version,
			Log: slog.New(slog.NewTextHandler(a.Stderr, &slog.HandlerOptions{Level: slog.LevelError})),
		})
		if !errors.Is(err, runtimes.ErrNotEmbedded) {
			return facts, findings, err
		}
		why = err.Error()
	}
	a.say("Nothing is proven: %s.", why)
	if facts, err = probe.Host(ctx); err != nil {
		return facts, nil, err
	}
	return facts, probe.Findings(ctx, probe.Inputs{Host: facts}, nil), nil
}
