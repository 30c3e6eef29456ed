package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"redoubt.dev/redoubt/control"
	"redoubt.dev/redoubt/control/leader"
	"redoubt.dev/redoubt/deploy/install"
	"redoubt.dev/redoubt/proto/tracing"
)

// DefaultServerDir is a server's data directory.
const DefaultServerDir = "/var/lib/redoubt/server"

func (a *app) serverCommand() *cobra.Command {
	c := a.serverVerb()
	a.daemon(c)
	c.AddCommand(a.serverInitCommand(), a.serverJoinCommand(), a.serverRecoverCommand(), a.serverAdminCommand(), a.serverInstallCommand(), a.uninstallCommand(install.Server))
	return c
}

// serverVerb is the verb with its own flags alone.
func (a *app) serverVerb() *cobra.Command {
	c := &cobra.Command{
		Use: "server", Short: "Run a control server", Args: nounArgs,
		Long: "Runs the control server of a data directory that `redoubt server init` or\n`redoubt server join` has made. SIGTERM hands leadership over and stops it.\nOne that was removed from the fleet says so and ends with exit code 4.",
	}
	cfg := control.Config{Timing: leader.DefaultTiming()}
	f := c.Flags()
	f.StringVar(&cfg.Dir, "data-dir", DefaultServerDir, "the server's data `DIR`ectory")
	ttl := f.Duration("svid-ttl", time.Hour, "lifetime of the certificates of servers and nodes")
	f.DurationVar(&cfg.UserTTL, "user-ttl", 7*24*time.Hour, "lifetime of users' certificates")
	f.DurationVar(&cfg.RenewWindow, "renew-window", 30*24*time.Hour, "how long after its certificate's end an enrolled node may renew")
	f.DurationVar(&cfg.Timing.Heartbeat, "heartbeat", cfg.Timing.Heartbeat, "how often agents speak; a node is silent after three times that")
	f.DurationVar(&cfg.Timing.FreshFor, "fresh-for", cfg.Timing.FreshFor, "how long a canary's proof counts")
	metrics := metricsFlag(c)
	traces := tracesFlags(c, "redoubt-server")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if *ttl < 20*time.Second {
			return fmt.Errorf("--svid-ttl %s: at least 20s, so that a renewal can be tried more than once", *ttl)
		}
		if cfg.Timing.Heartbeat < 100*time.Millisecond {
			return fmt.Errorf("--heartbeat %s: at least 100ms", cfg.Timing.Heartbeat)
		}
		cfg.ServerTTL, cfg.NodeTTL = *ttl, *ttl
		cfg.Timing.SilentAfter = 3 * cfg.Timing.Heartbeat
		cfg.Timing.LostMargin = max(cfg.Timing.SilentAfter, 5*time.Second)
		cfg.Version, cfg.Log = Version, a.log
		cfg.Ready = func() { a.log.Info("serving") }
		err := a.supervised(c.Context(), func(ctx context.Context, ready func(string)) error {
			cfg.Started = func() { ready("listening") }
			return withMetrics(ctx, *metrics, func(ctx context.Context, reg prometheus.Registerer) error {
				return a.withTraces(ctx, traces, reg, func(ctx context.Context, p tracing.Provider) error {
					cfg.Registry, cfg.LogTail, cfg.Traces = reg, a.recent.tail, p
					return control.Run(ctx, cfg)
				})
			})
		})
		if errors.Is(err, control.ErrRemoved) {
			// Its supervisor must tell this from a failure: a restart is no use.
			return exitCode{exitRemoved, err}
		}
		return err
	}
	return c
}

// addressFlags are where a server is reached.
func addressFlags(c *cobra.Command) func() (control.Addresses, error) {
	host := c.Flags().String("address", "", "this host's `IP` or name, as agents and other servers reach it")
	api := c.Flags().String("api-address", "", "host:port of the API (default: --address and port 7450)")
	raft := c.Flags().String("raft-address", "", "host:port between servers (default: --address and port 7451)")
	enroll := c.Flags().String("enroll-address", "", "host:port of first contact (default: --address and port 7452)")
	return func() (control.Addresses, error) {
		if *host == "" && (*api == "" || *raft == "" || *enroll == "") {
			return control.Addresses{}, errors.New("say where this server is reached: --address IP")
		}
		at := control.AddressesAt(*host)
		for _, f := range []struct {
			name, value string
			to          *string
		}{{"api-address", *api, &at.API}, {"raft-address", *raft, &at.Raft}, {"enroll-address", *enroll, &at.Enroll}} {
			if f.value == "" {
				continue
			}
			if _, _, err := net.SplitHostPort(f.value); err != nil {
				return at, fmt.Errorf("--%s %q is not host:port", f.name, f.value)
			}
			*f.to = f.value
		}
		return at, nil
	}
}

func (a *app) serverInitCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "init", Short: "Begin a fleet: make its first server's data directory", Args: cobra.NoArgs,
		Long: "Makes the data directory of a fleet's first server and the context of its first\nadministrator. It starts nothing: `redoubt server` does.",
	}
	cfg := control.InitConfig{}
	f := c.Flags()
	f.StringVar(&cfg.Dir, "data-dir", DefaultServerDir, "the server's data `DIR`ectory")
	f.StringVar(&cfg.ID, "id", "", "this server's `NAME` (default: the host's)")
	f.StringVar(&cfg.TrustDomain, "trust-domain", "", "SPIFFE trust `DOMAIN` of the fleet, for example fleet.example")
	f.StringVar(&cfg.AdminContext, "admin-context", "", "`FILE` for the administrator's context (default: the context \"admin\" of this user)")
	f.DurationVar(&cfg.UserTTL, "user-ttl", 7*24*time.Hour, "lifetime of the administrator's certificate; it renews itself while in use")
	addresses := addressFlags(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		at, err := addresses()
		if err != nil {
			return err
		}
		cfg.Addresses = at
		if cfg.TrustDomain == "" {
			return errors.New("name the fleet's trust domain: --trust-domain fleet.example")
		}
		if cfg.ID == "" {
			if cfg.ID, err = os.Hostname(); err != nil {
				return err
			}
		}
		cfg.Log = a.log
		begun, err := a.beginFleet(cfg)
		if err != nil {
			return err
		}
		switch {
		case begun.running:
			a.say("The fleet %s has begun before, and its server %s runs: nothing was changed.", cfg.TrustDomain, cfg.ID)
			a.say("If the administrator's context is lost: redoubt server admin-context FILE --data-dir %s", cfg.Dir)
			return nil
		case begun.before:
			a.say("The fleet %s has begun before, with server %s; its administrator has a new context.", cfg.TrustDomain, cfg.ID)
		default:
			a.say("Fleet %s begins with server %s.", cfg.TrustDomain, cfg.ID)
		}
		a.say("Start it:    redoubt server --data-dir %s", cfg.Dir)
		a.say("Administer:  redoubt node list --context %s", begun.context)
		return nil
	}
	a.daemon(c)
	return c
}

func (a *app) serverJoinCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "join", Short: "Join a fleet: make another server's data directory", Args: cobra.NoArgs,
		Long: "Admits this host as a control server with a token of `redoubt node join-token\n--role server`, and makes its data directory. It starts nothing: `redoubt server`\ndoes. Once that runs and has caught up, the leader gives it a vote.",
	}
	cfg := control.JoinConfig{}
	f := c.Flags()
	f.StringVar(&cfg.Dir, "data-dir", DefaultServerDir, "the server's data `DIR`ectory")
	f.StringVar(&cfg.ID, "id", "", "this server's `NAME` (default: the host's)")
	f.StringSliceVar(&cfg.Servers, "join", nil, "`HOST:PORT` of servers' first contact (default: those in the token)")
	token, file := tokenFlags(f)
	addresses := addressFlags(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		at, err := addresses()
		if err != nil {
			return err
		}
		cfg.Addresses = at
		if cfg.Token, err = a.joinToken(*token, *file); err != nil {
			return err
		}
		if cfg.Token == "" {
			return errors.New("give the join token: --token-file FILE, from `redoubt node join-token --role server`")
		}
		if cfg.ID == "" {
			if cfg.ID, err = os.Hostname(); err != nil {
				return err
			}
		}
		cfg.Version, cfg.Log = Version, a.log
		if err := control.Join(c.Context(), cfg); err != nil {
			return err
		}
		a.say("Server %s is admitted. Start it: redoubt server --data-dir %s", cfg.ID, cfg.Dir)
		return nil
	}
	a.daemon(c)
	return c
}

func (a *app) serverAdminCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "admin-context FILE", Short: "Write a new context of the first administrator", Args: names(1, 1, "the file to write"),
		Long: "Signs a new context of the administrator with this server's authority: for the\nhost's root, when the old one was lost or has expired. The server need not run.",
	}
	dir := c.Flags().String("data-dir", DefaultServerDir, "the server's data `DIR`ectory")
	ttl := c.Flags().Duration("user-ttl", 7*24*time.Hour, "lifetime of its certificate")
	c.RunE = func(_ *cobra.Command, args []string) error {
		return control.WriteAdminContext(*dir, args[0], *ttl)
	}
	return c
}
