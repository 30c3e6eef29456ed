package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"redoubt.dev/redoubt/agent"
	"redoubt.dev/redoubt/agent/store"
	"redoubt.dev/redoubt/control"
	"redoubt.dev/redoubt/deploy/install"
	"redoubt.dev/redoubt/deploy/node"
	"redoubt.dev/redoubt/deploy/systemd"
	"redoubt.dev/redoubt/identity/attest"
)

// installFlags are the flags of every install and uninstall.
type installFlags struct {
	dryRun, noStart bool
	root            string
	timeout         time.Duration
}

func (a *app) installFlags(c *cobra.Command) *installFlags {
	f := &installFlags{}
	c.Flags().BoolVar(&f.dryRun, "dry-run", false, "show every file and command, and do nothing")
	c.Flags().StringVar(&f.root, "root", "", "treat that `DIR` as the host's root, as a package does: nothing joins, starts or stops")
	c.Flags().BoolVarP(&a.quiet, "quiet", "q", false, "no progress and no hints")
	return f
}

// begin checks what may be done, and says what starts and stops daemons.
func (f *installFlags) begin(getuid func() int) (install.Host, install.Systemctl, error) {
	if f.root == "" && !f.dryRun && getuid() != 0 {
		return install.Host{}, nil, errors.New("this changes /usr/local and /etc and needs root: repeat it with sudo, or see with --dry-run what it would do")
	}
	root := f.root
	if root != "" {
		var err error
		if root, err = filepath.Abs(root); err != nil {
			return install.Host{}, nil, err
		}
	}
	if root != "" || f.noStart || !systemd.Running() {
		return install.Host{Root: root}, nil, nil
	}
	return install.Host{}, install.HostSystemctl, nil
}

// notSettings are flags that are for one time, or fixed by the installation.
var notSettings = []string{"help", "config", "data-dir", "token", "token-file", "join", "node", "site", "version"}

// settings are those flags of the daemon that were given, as a configuration
// file has them.
func settings(fs, daemon *pflag.FlagSet) (install.Settings, error) {
	out := install.Settings{}
	var failed error
	fs.Visit(func(f *pflag.Flag) {
		if daemon.Lookup(f.Name) == nil || slices.Contains(notSettings, f.Name) {
			return
		}
		values := []string{f.Value.String()}
		switch v := f.Value.(type) {
		case pflag.SliceValue:
			values = v.GetSlice()
		default:
			if f.Value.Type() == "stringToString" {
				m, err := fs.GetStringToString(f.Name)
				failed = errors.Join(failed, err)
				values = nil
				for k, v := range m {
					values = append(values, k+"="+v)
				}
				slices.Sort(values)
			}
		}
		out[f.Name] = values
	})
	return out, failed
}

// absolute makes the paths that were given absolute: a unit runs elsewhere.
func absolute(fs *pflag.FlagSet, names ...string) error {
	for _, name := range names {
		f := fs.Lookup(name)
		if f == nil || !f.Changed || f.Value.String() == "" {
			continue
		}
		abs, err := filepath.Abs(f.Value.String())
		if err != nil {
			return err
		}
		if err := f.Value.Set(abs); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) agentInstallCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "install", Short: "Make this host a node: install, join, start, or mend that", Args: cobra.NoArgs,
		Long: "Puts this program, a configuration, a unit of systemd, manual pages and\ncompletions in place, joins the fleet and starts the agent. Flags of `redoubt\nagent` go to " + install.Agent.Config + ", which is left alone once it was\nchanged by hand.\n\n" +
			"Run again it upgrades the program and mends what is not as it should be; the\nagent is restarted only if something changed, and containers run on. The token is\nstored nowhere. Where systemd does not run, it says how to start the agent.",
		Example: "  sudo ./redoubt agent install --join 10.0.0.1 --token-file oslo.token\n" +
			"  sudo ./redoubt agent install --token-file oslo.token --dry-run",
	}
	f := a.installFlags(c)
	c.Flags().BoolVar(&f.noStart, "no-start", false, "join, but start and restart nothing")
	c.Flags().DurationVar(&f.timeout, "timeout", time.Minute, "how long to try to join")
	base, settle := a.agentVerb()
	own := base.Flags()
	logFlags(own)
	own.VisitAll(func(f *pflag.Flag) {
		if f.Name != "data-dir" {
			c.Flags().AddFlag(f)
		}
	})
	c.RunE = func(c *cobra.Command, _ []string) (err error) {
		if err := absolute(c.Flags(), "runtimes-dir", "containerd"); err != nil {
			return err
		}
		host, systemctl, err := f.begin(os.Geteuid)
		if err != nil {
			return err
		}
		if a.log, err = a.logger("warn", "text"); err != nil {
			return err
		}
		cfg, err := settle(f.root == "")
		if err != nil {
			return err
		}
		o := install.Options{Host: host, Daemon: install.Agent, Systemctl: systemctl, About: configAbout("agent")}
		if o.Settings, err = settings(c.Flags(), own); err != nil {
			return err
		}
		if f.root == "" {
			join, err := a.joinStep(cfg, f.timeout)
			if err != nil {
				return err
			}
			o.Join = &join
		}
		return a.install(c.Context(), f, o)
	}
	return c
}

// joinStep makes the host a node, or says which it is.
func (a *app) joinStep(cfg node.Config, timeout time.Duration) (install.Step, error) {
	if m, err := agent.Enrolled(cfg.DataDir); err == nil {
		if cfg.Node != "" && cfg.Node != m.Node || cfg.Site != "" && cfg.Site != m.Site {
			return install.Step{}, fmt.Errorf("this host is node %s of site %s already; to make it another, `redoubt agent uninstall --purge` first", m.Node, m.Site)
		}
		return install.Step{Verb: install.Same, What: "node " + m.Node + " of site " + m.Site}, nil
	} else if !errors.Is(err, agent.ErrNotEnrolled) {
		return install.Step{}, err
	}
	token, err := attest.ParseToken(cfg.Token)
	if err != nil {
		return install.Step{}, fmt.Errorf("the join token: %w", err)
	}
	servers := append(slices.Clone(cfg.Join), token.Addresses...)
	slices.Sort(servers)
	servers = slices.Compact(servers)
	return install.Action("join", "the fleet "+token.TrustDomain.Name(), "at "+strings.Join(servers, ", "), func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		m, err := node.Join(ctx, cfg)
		if errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("no server let this host in within %s; can it reach %s? Run the same again when it can: %w", timeout, strings.Join(servers, ", "), err)
		}
		if err == nil {
			a.say("This host is node %s of site %s.", m.Node, m.Site)
		}
		return err
	}), nil
}

func configAbout(daemon string) string {
	return fmt.Sprintf("Settings of `redoubt %s`: the names of its flags, as `redoubt %s --help` lists them.\n"+
		"`redoubt %s install` writes here what it is given, until this file was changed by\nhand; from then on it is yours.\n", daemon, daemon, daemon)
}

func (a *app) serverInstallCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "install", Short: "Make this host a control server: install, begin or join, start", Args: cobra.NoArgs,
		Long: "Puts this program, a configuration, a unit of systemd, manual pages and\n" +
			"completions in place, and starts a control server: the first of a new fleet with\n--trust-domain, or a further one with a token of `redoubt node join-token --role\nserver`. Flags of `redoubt server` go to " + install.Server.Config + ", which is left\nalone once it was changed by hand.\n\n" +
			"Run again it upgrades the program and mends what is not as it should be. Where\nsystemd does not run, it says how to start the server.",
		Example: "  sudo ./redoubt server install --trust-domain fleet.example --address 10.0.0.1\n" +
			"  sudo ./redoubt server install --address 10.0.0.2 --token-file s2.token",
	}
	f := a.installFlags(c)
	c.Flags().BoolVar(&f.noStart, "no-start", false, "begin or join, but start and restart nothing")
	c.Flags().DurationVar(&f.timeout, "timeout", time.Minute, "how long to try to join")
	own := a.serverVerb().Flags()
	logFlags(own)
	own.VisitAll(func(f *pflag.Flag) {
		if f.Name != "data-dir" {
			c.Flags().AddFlag(f)
		}
	})
	id := c.Flags().String("id", "", "this server's `NAME` (default: the host's)")
	domain := c.Flags().String("trust-domain", "", "begin a fleet of that SPIFFE trust `DOMAIN`, for example fleet.example")
	servers := c.Flags().StringSlice("join", nil, "`HOST[:PORT]` of servers' first contact, port 7452 (default: those in the token)")
	adminContext := c.Flags().String("admin-context", "", "`FILE` for the administrator's context of a new fleet (default: the context \"admin\" of this user)")
	token, file := tokenFlags(c.Flags())
	addresses := addressFlags(c)
	c.RunE = func(c *cobra.Command, _ []string) (err error) {
		host, systemctl, err := f.begin(os.Geteuid)
		if err != nil {
			return err
		}
		if a.log, err = a.logger("warn", "text"); err != nil {
			return err
		}
		o := install.Options{Host: host, Daemon: install.Server, Systemctl: systemctl, About: configAbout("server")}
		if o.Settings, err = settings(c.Flags(), own); err != nil {
			return err
		}
		if f.root == "" {
			m := membership{id: *id, domain: *domain, adminContext: *adminContext, timeout: f.timeout, addresses: addresses}
			for _, s := range *servers {
				m.servers = append(m.servers, withPort(s, control.PortEnroll))
			}
			if m.token, err = a.joinToken(*token, *file); err != nil {
				return err
			}
			step, err := a.serverStep(m)
			if err != nil {
				return err
			}
			o.Join = &step
		}
		return a.install(c.Context(), f, o)
	}
	return c
}

// membership is how a host becomes a server.
type membership struct {
	id, domain, adminContext, token string
	servers                         []string
	timeout                         time.Duration
	addresses                       func() (control.Addresses, error)
}

// serverStep makes the host a server, or says which it is.
func (a *app) serverStep(m membership) (install.Step, error) {
	id, domain, err := control.Member(DefaultServerDir)
	if err == nil {
		return install.Step{Verb: install.Same, What: "server " + id + " of the fleet " + domain}, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return install.Step{}, err
	}
	if m.id == "" {
		if m.id, err = os.Hostname(); err != nil {
			return install.Step{}, err
		}
	}
	switch {
	case m.token != "" && m.domain != "":
		return install.Step{}, errors.New("give --trust-domain to begin a fleet, or a token to join one, not both")
	case m.token == "" && m.domain == "":
		return install.Step{}, errors.New("this host is no server yet: --trust-domain fleet.example begins a fleet; --token-file FILE, from `redoubt node join-token --role server`, joins one")
	}
	at, err := m.addresses()
	if err != nil {
		return install.Step{}, err
	}
	if m.domain != "" {
		return install.Action("begin", "the fleet "+m.domain, "with server "+m.id+" at "+at.API, func(context.Context) error {
			begun, err := a.beginFleet(control.InitConfig{Dir: DefaultServerDir, ID: m.id, TrustDomain: m.domain, Addresses: at, AdminContext: m.adminContext, Log: a.log})
			if err == nil && !begun.running {
				a.say("The administrator's context is %s. Keep it: whoever has it rules the fleet.", begun.context)
			}
			return err
		}), nil
	}
	token, err := attest.ParseToken(m.token)
	if err != nil {
		return install.Step{}, fmt.Errorf("the join token: %w", err)
	}
	servers := append(slices.Clone(m.servers), token.Addresses...)
	slices.Sort(servers)
	servers = slices.Compact(servers)
	return install.Action("join", "the fleet "+token.TrustDomain.Name(), "as server "+m.id+" at "+strings.Join(servers, ", "), func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, m.timeout)
		defer cancel()
		return control.Join(ctx, control.JoinConfig{Dir: DefaultServerDir, ID: m.id, Addresses: at, Servers: m.servers, Token: m.token, Version: Version, Log: a.log})
	}), nil
}

// install plans, shows or does, and says how it goes on.
func (a *app) install(ctx context.Context, f *installFlags, o install.Options) (err error) {
	if o.From, err = os.Executable(); err != nil {
		return err
	}
	if o.Pages, err = a.installedPages(); err != nil {
		return err
	}
	steps, err := install.Install(ctx, o)
	if err != nil {
		return fmt.Errorf("install the %s: %w", o.Daemon.Name, err)
	}
	if f.dryRun {
		a.showSteps(steps)
		return nil
	}
	if err := install.Apply(ctx, steps, a.tellSteps()); err != nil {
		return fmt.Errorf("install the %s: %w; what stands above is done, and running the same again goes on from there", o.Daemon.Name, err)
	}
	changed := slices.ContainsFunc(steps, install.Step.Changes)
	if !changed {
		a.say("Nothing to do: everything is as it should be.")
	}
	if f.root != "" {
		return nil
	}
	if o.Systemctl != nil {
		a.say("Its log: journalctl -u %s", strings.TrimSuffix(o.Daemon.Unit, ".service"))
		return nil
	}
	switch pid := o.Host.Runs(o.Daemon); {
	case pid != "" && changed:
		a.say("\nThe %s that runs here (process %s) was started before this. End it and start it\nanew for the change to count; containers run on:\n\n  kill %s\n  %s", o.Daemon.Name, pid, pid, o.Daemon.Command())
	case pid != "":
		a.say("It runs as process %s.", pid)
	default:
		why := "systemd does not run this host, so nothing has started the " + o.Daemon.Name + "."
		if f.noStart && systemd.Running() {
			why = "Nothing has started the " + o.Daemon.Name + " yet: `systemctl enable --now " + o.Daemon.Unit + "` does."
			a.say("\n%s", why)
			return nil
		}
		a.say("\n%s Start it as root, and have this\nhost's init do so and start it again whenever it ends:\n\n  %s", why, o.Daemon.Command())
	}
	return nil
}

func (a *app) uninstallCommand(d install.Daemon) *cobra.Command {
	c := &cobra.Command{
		Use: "uninstall", Short: "Stop the " + d.Name + " and take away what install put here", Args: cobra.NoArgs,
		Example: "  sudo redoubt " + d.Name + " uninstall --dry-run --purge\n  sudo redoubt " + d.Name + " uninstall --purge",
	}
	f := a.installFlags(c)
	var purge *bool
	if d == install.Agent {
		c.Long = "Stops the agent and removes the unit, the program, manual pages and completions.\nThe configuration and " + d.Data + " stay, and containers run on, for a\nlater install to adopt. --purge ends the containers and leaves nothing: no files,\nprocesses, mounts, control groups, links or rules.\n\nThe fleet goes on listing the node, as silent."
		purge = c.Flags().Bool("purge", false, "end its containers, and remove its data and configuration too")
	} else {
		c.Long = "Stops the server and removes the unit, the program, manual pages and completions.\nThe configuration and " + d.Data + " stay. --purge removes them too: the\nserver's key and its copy of the fleet's state. Of the only server, that is the\nfleet. Contexts of users stay.\n\nBefore that, on a fleet that lives on: `redoubt operator raft remove ID`."
		purge = c.Flags().Bool("purge", false, "remove its key, its state and its configuration too")
	}
	c.RunE = func(c *cobra.Command, _ []string) error {
		host, systemctl, err := f.begin(os.Geteuid)
		if err != nil {
			return err
		}
		if a.log, err = a.logger("error", "text"); err != nil {
			return err
		}
		o := install.Options{Host: host, Daemon: d, Systemctl: systemctl, Purge: *purge}
		if f.root == "" && systemctl == nil && !f.dryRun {
			if pid := host.Runs(d); pid != "" {
				return fmt.Errorf("the %s runs here as process %s, and systemd does not: end it first (kill %s, and whatever would start it again), then repeat this", d.Name, pid, pid)
			}
		}
		if *purge && f.root == "" && d == install.Agent {
			end, err := a.endStep(d)
			if err != nil {
				return err
			}
			o.End = &end
		}
		steps, err := install.Uninstall(c.Context(), o)
		if err != nil {
			return err
		}
		if f.dryRun {
			a.showSteps(steps)
			return nil
		}
		if err := install.Apply(c.Context(), steps, a.tellSteps()); err != nil {
			return fmt.Errorf("uninstall the %s: %w; what stands above is done, and running the same again goes on from there", d.Name, err)
		}
		if !slices.ContainsFunc(steps, install.Step.Changes) {
			a.say("Nothing to do: no %s is installed here.", d.Name)
		}
		return nil
	}
	return c
}

// endStep ends the node's containers and removes what it has on the host.
func (a *app) endStep(d install.Daemon) (install.Step, error) {
	m, err := agent.Enrolled(d.Data)
	if errors.Is(err, agent.ErrNotEnrolled) {
		return install.Step{Verb: install.Same, What: "no containers", Note: "this host has joined no fleet"}, nil
	}
	if err != nil {
		return install.Step{}, err
	}
	cfg := node.Config{DataDir: d.Data, Log: a.log}
	given, err := readConfig(d.Config)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return install.Step{}, err
	}
	for name, to := range map[string]*string{"runtimes": &cfg.Runtimes, "runtimes-dir": &cfg.RuntimesDir, "containerd": &cfg.Containerd, "driver": &cfg.Driver} {
		if v := given[name].values; len(v) == 1 {
			*to = v[0]
		}
	}
	return install.Action("end", "the containers of node "+m.Node, "with their mounts, control groups, links and rules", func(ctx context.Context) error {
		return removeNode(ctx, cfg)
	}), nil
}

// removeNode takes away what a node has on the host, if no agent is at work.
func removeNode(ctx context.Context, cfg node.Config) error {
	lock, err := store.AcquireLock(cfg.DataDir)
	if errors.Is(err, store.ErrInUse) {
		return fmt.Errorf("an agent still works on it: %w", err)
	}
	if err != nil {
		return err
	}
	return errors.Join(node.Remove(ctx, cfg), lock.Release())
}
