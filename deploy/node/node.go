// Package node puts a node together: the runtimes that this program carries, or
// the host's own, the host's containers and network, its identity, and the
// agent on top.
//
// Run is one agent's life as a process or a part of one. Stopping it leaves
// containers running, for the next Run to adopt. Remove ends them and takes all
// that the node has on the host away, its data directory apart; it may be called
// after a crash of anything, and again.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"redoubt.dev/redoubt/agent"
	"redoubt.dev/redoubt/agent/canary"
	"redoubt.dev/redoubt/agent/driver/fake"
	"redoubt.dev/redoubt/agent/session"
	"redoubt.dev/redoubt/deploy/runtimes"
	"redoubt.dev/redoubt/identity"
	"redoubt.dev/redoubt/isolation"
	"redoubt.dev/redoubt/isolation/probe"
	"redoubt.dev/redoubt/proto/tracing"
)

// GossipPort is where a site's agents gossip.
const GossipPort = 7453

// DefaultRegistries is where a host keeps what it knows of image registries.
const DefaultRegistries = "/etc/redoubt/registries"

// Where runtimes come from.
const (
	RuntimesCarried = "carried"
	RuntimesHost    = "host"
)

// The drivers.
const (
	DriverContainerd = "containerd"
	DriverFake       = "fake" // in memory; proves nothing
)

// Config of a node.
type Config struct {
	DataDir string
	// RuntimesDir is where carried runtimes are unpacked; several nodes of one
	// host may share it. Empty: DataDir/runtimes.
	RuntimesDir string
	Runtimes    string // RuntimesCarried (also "") or RuntimesHost
	// AllowRuntimes are the only runtimes that the node offers, whatever else is
	// there; none: all.
	AllowRuntimes []isolation.Name
	// Containerd is the socket of a daemon that is there already; empty: a
	// private one.
	Containerd string
	Driver     string // DriverContainerd (also "") or DriverFake

	// Node, Site, Token and Join are for the first start; see agent.Enroll.
	Node, Site string
	Token      string // a secret
	Join       []string

	GossipBind, GossipAdvertise string
	AllowHostPaths              []string
	InsecureRegistries          []string
	// Registries is the directory of credentials, mirrors and roots; "" is
	// DefaultRegistries.
	Registries string
	Images     agent.ImageLimits
	Labels     map[string]string
	ProbeEvery time.Duration
	MaxExecs   int // at once; 0: the agent's default
	Version    string
	// Registry, if set, takes this agent's metrics.
	Registry prometheus.Registerer
	// Traces, if set, makes this agent's spans.
	Traces tracing.Provider
	Log    *slog.Logger
	// Ready, if set, is called once the node has its identity and its host, and
	// begins to work: it may have no session for long yet.
	Ready func(agent.Member)
}

// Join enrols the node if it has not joined yet, and says who it is. It tries
// until ctx ends, or the fleet refuses.
func Join(ctx context.Context, cfg Config) (agent.Member, error) {
	if err := cfg.settle(); err != nil {
		return agent.Member{}, err
	}
	return join(ctx, cfg)
}

func join(ctx context.Context, cfg Config) (agent.Member, error) {
	member, err := agent.Enrolled(cfg.DataDir)
	switch {
	case err == nil && cfg.Node != "" && cfg.Node != member.Node:
		return member, fmt.Errorf("%s belongs to node %s, not %s: give this one another --data-dir", cfg.DataDir, member.Node, cfg.Node)
	case err == nil && cfg.Site != "" && cfg.Site != member.Site:
		return member, fmt.Errorf("node %s is enrolled at site %s, not %s: enrol it again with a token that names it", member.Node, member.Site, cfg.Site)
	case errors.Is(err, agent.ErrNotEnrolled) && cfg.Token != "":
		// An id that this machine has already is not worth a token.
		if cfg.Node != "" && cfg.Driver != DriverFake && os.Geteuid() == 0 {
			if err := agent.NodeFree(cfg.Node, cfg.DataDir); err != nil {
				return member, err
			}
		}
		return agent.Enroll(ctx, agent.Enrolment{
			DataDir: cfg.DataDir, Token: cfg.Token, Node: cfg.Node, Site: cfg.Site, Servers: cfg.Join, Log: cfg.Log,
		})
	}
	return member, err
}

// Run enrols the node if it has not joined yet, and runs its agent until ctx
// ends.
func Run(ctx context.Context, cfg Config) (err error) {
	if err := cfg.settle(); err != nil {
		return err
	}
	member, err := join(ctx, cfg)
	if err != nil {
		return err
	}
	disk, err := identity.OpenDisk(agent.IdentityDir(cfg.DataDir), cfg.Log)
	if err != nil {
		return err
	}
	defer disk.Close()
	metrics := agent.NewMetrics()
	host, closeHost, err := open(ctx, cfg, member.Node, metrics)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeHost()) }()
	if cfg.Registry != nil {
		if err := cfg.Registry.Register(metrics); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	a, err := agent.New(agent.Config{
		Member: member, DataDir: cfg.DataDir, Version: cfg.Version, Labels: cfg.Labels,
		GossipBind: cfg.GossipBind, GossipAdvertise: cfg.GossipAdvertise,
		ProbeEvery: cfg.ProbeEvery, AllowHostPaths: cfg.AllowHostPaths, Session: session.Config{Execs: cfg.MaxExecs},
	}, agent.Deps{Host: host, Identity: disk, Metrics: metrics, Traces: cfg.Traces, Log: cfg.Log})
	if err != nil {
		return err
	}
	if cfg.Ready != nil {
		cfg.Ready(member)
	}
	return a.Run(ctx)
}

// settle makes the directories absolute: containerd and its shims do not run
// where this process does.
func (c *Config) settle() error {
	for _, dir := range []*string{&c.DataDir, &c.RuntimesDir, &c.Registries} {
		if *dir == "" {
			continue
		}
		abs, err := filepath.Abs(*dir)
		if err != nil {
			return fmt.Errorf("directory %s: %w", *dir, err)
		}
		*dir = abs
	}
	return nil
}

// open opens the host under the node.
func open(ctx context.Context, cfg Config, node string, metrics *agent.Metrics) (agent.Host, func() error, error) {
	if cfg.Driver == DriverFake {
		host := agent.FakeHost(fake.New())
		all := host.Findings
		host.Findings = func(ctx context.Context, facts isolation.Host) ([]isolation.Finding, error) {
			found, err := all(ctx, facts)
			probe.SwitchOff(found, cfg.AllowRuntimes)
			return found, err
		}
		return host, func() error { return nil }, nil
	}
	if os.Geteuid() != 0 {
		return agent.Host{}, nil, errors.New("an agent runs containers and needs root: start it with sudo")
	}
	hc, err := hostConfig(ctx, cfg, node)
	if err != nil {
		return agent.Host{}, nil, err
	}
	hc.Metrics = metrics
	host, err := agent.OpenHost(ctx, hc)
	if err != nil {
		return agent.Host{}, nil, err
	}
	return host.Host(), host.Close, nil
}

// hostConfig unpacks the runtimes.
func hostConfig(ctx context.Context, cfg Config, node string) (agent.HostConfig, error) {
	bundle, err := runtimes.Embedded()
	if err != nil {
		return agent.HostConfig{}, err
	}
	dir := cfg.RuntimesDir
	if dir == "" {
		dir = filepath.Join(cfg.DataDir, "runtimes")
	}
	take := bundle.Unpack
	switch cfg.Runtimes {
	case "", RuntimesCarried:
	case RuntimesHost:
		take = bundle.Host
	default:
		return agent.HostConfig{}, fmt.Errorf("runtimes: %q is neither carried nor host; which runtimes the node offers is said by allow-runtime", cfg.Runtimes)
	}
	paths, err := take(ctx, dir)
	if err != nil {
		return agent.HostConfig{}, err
	}
	for _, name := range paths.Repaired {
		cfg.Log.Warn("an unpacked runtime was damaged and has been replaced", "part", name, "dir", dir)
	}
	for name, reason := range paths.Missing {
		cfg.Log.Warn("the host has no such runtime", "part", name, "reason", reason)
	}
	registries := cfg.Registries
	if registries == "" {
		registries = DefaultRegistries
	}
	return agent.HostConfig{
		Node: node, DataDir: cfg.DataDir, Containerd: cfg.Containerd,
		Binaries: probe.Binaries{
			Containerd: paths.Containerd, Shim: paths.Shim, Runc: paths.Runc, Runsc: paths.Runsc,
			Wrapper: paths.Wrapper, Crun: paths.Crun,
		},
		Allowed:  cfg.AllowRuntimes,
		Carried:  map[string]string{ToolboxImage: paths.ToolboxImage, canary.Image: paths.CanaryImage},
		Insecure: cfg.InsecureRegistries, Registries: registries, Images: cfg.Images, Log: cfg.Log,
	}, nil
}

// ToolboxImage is the reference of the carried toolbox; people write "toolbox".
const ToolboxImage = "carried.redoubt/toolbox:1"

// Remove ends the containers of the node in DataDir and removes what it has on
// the host. Nothing may be running there. A node that never enrolled has
// nothing.
func Remove(ctx context.Context, cfg Config) error {
	if err := cfg.settle(); err != nil {
		return err
	}
	member, err := agent.Enrolled(cfg.DataDir)
	if errors.Is(err, agent.ErrNotEnrolled) {
		return nil
	}
	if err != nil {
		return err
	}
	if cfg.Driver == DriverFake {
		return nil
	}
	hc, err := hostConfig(ctx, cfg, member.Node)
	if err != nil {
		return err
	}
	return agent.RemoveHost(ctx, hc)
}
