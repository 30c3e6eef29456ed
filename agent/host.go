package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"redoubt.dev/redoubt/agent/canary"
	"redoubt.dev/redoubt/agent/containerd"
	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/agent/network"
	"redoubt.dev/redoubt/agent/reconcile"
	"redoubt.dev/redoubt/agent/registry"
	"redoubt.dev/redoubt/isolation"
	"redoubt.dev/redoubt/isolation/probe"
)

// ImageLimits bounds what images take of a node.
type ImageLimits = containerd.ImageLimits

// HostConfig says what a real host runs on.
type HostConfig struct {
	Node     string
	DataDir  string
	Binaries probe.Binaries
	// Allowed are the only runtimes that the node offers; none: all.
	Allowed []isolation.Name
	// Containerd is the socket of one that is there already; empty: a private
	// one.
	Containerd string
	// Carried maps references that never touch a network to image archives.
	Carried map[string]string
	// Insecure registries are spoken to in plain HTTP.
	Insecure []string
	// Registries is the directory of credentials, mirrors and roots; see
	// agent/registry.
	Registries string
	Images     ImageLimits
	Subnet     netip.Prefix // zero: a free one
	// Metrics, if set, takes what canaries find.
	Metrics *Metrics
	Log     *slog.Logger
}

// RealHost is the real thing: containerd, the node's network, canaries.
type RealHost struct {
	cfg     HostConfig
	claim   *claim
	daemon  *containerd.Daemon
	driver  *containerd.Driver
	network *network.Network
	runner  *canary.Runner
	swept   bool // canaries of an earlier life are gone; the reporter's own
}

func (c HostConfig) containerd() containerd.Config {
	return containerd.Config{
		Node: isolation.NodeID(c.Node), Dir: filepath.Join(c.DataDir, "containerd"),
		Binaries: containerd.Binaries{Containerd: c.Binaries.Containerd, Shim: c.Binaries.Shim,
			Runc: c.Binaries.Runc, Runsc: c.Binaries.Runsc, Wrapper: c.Binaries.Wrapper},
		HostAddress: c.Containerd, Carried: c.Carried, Insecure: c.Insecure,
		Registries: registry.Dir(c.Registries), Images: c.Images, Log: c.Log,
	}
}

func (c HostConfig) network() network.Config {
	return network.Config{Node: c.Node, Dir: filepath.Join(c.DataDir, "network"), Subnet: c.Subnet, Log: c.Log}
}

// OpenHost takes the node's id on this machine, opens its network and prepares
// the rest; it starts nothing. It works in the network namespace of the calling
// thread. Where another agent has the id, the error is ErrNodeHeld.
func OpenHost(ctx context.Context, cfg HostConfig) (_ *RealHost, err error) {
	held, err := claimNode(claimRoot, cfg.Node, cfg.DataDir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, held.release())
		}
	}()
	daemon, err := containerd.NewDaemon(cfg.containerd())
	if err != nil {
		return nil, err
	}
	drv, err := containerd.NewDriver(cfg.containerd())
	if err != nil {
		return nil, err
	}
	net, err := network.Open(ctx, cfg.network())
	if err != nil {
		return nil, errors.Join(err, drv.Close())
	}
	h := &RealHost{cfg: cfg, claim: held, daemon: daemon, driver: drv, network: net}
	h.runner = canary.NewRunner(canary.OnDriver(drv, filepath.Join(cfg.DataDir, "canary")), cfg.Log)
	if cfg.Metrics != nil {
		h.runner.Meter(cfg.Metrics.Canary)
	}
	return h, nil
}

// Close lets go of everything; containers and network stay.
func (h *RealHost) Close() error {
	return errors.Join(h.driver.Close(), h.network.Close(), h.claim.release())
}

// Teardown ends every container and removes all that the node has on the host,
// its data directory apart. Nothing else may be using it.
func (h *RealHost) Teardown(ctx context.Context) error {
	return errors.Join(h.daemon.Shutdown(ctx), h.network.Teardown(ctx), h.driver.Close(), h.claim.release())
}

// RemoveHost is Teardown for a host that nobody has open, as after a crash.
func RemoveHost(ctx context.Context, cfg HostConfig) (err error) {
	held, err := claimNode(claimRoot, cfg.Node, cfg.DataDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, held.release()) }()
	daemon, err := containerd.NewDaemon(cfg.containerd())
	if err != nil {
		return err
	}
	return errors.Join(daemon.Shutdown(ctx), network.Remove(ctx, cfg.network()))
}

// Host is h as an agent takes it.
func (h *RealHost) Host() Host {
	return Host{
		Driver: h.driver, Network: bridge{h.network}, Facts: probe.Host, Findings: h.findings, Measure: h.measure, Dial: h.network.Dial, Inside: h.network.DialInside,
		Egress: h.egress, Warnings: h.network.Warnings,
		KeepImages: h.driver.KeepImages, Run: h.run,
	}
}

func (h *RealHost) egress(uid string) (out []EgressCount, err error) {
	counts, err := h.network.EgressCounts(uid)
	for _, c := range counts {
		out = append(out, EgressCount(c))
	}
	return out, err
}

func (h *RealHost) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	part := func(name string, run func(context.Context) error) {
		g.Go(func() error {
			if err := run(ctx); err != nil && ctx.Err() == nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	}
	part("containerd", h.daemon.Run)
	part("driver", h.driver.Run)
	part("network", h.network.Run)
	return g.Wait()
}

func (h *RealHost) findings(ctx context.Context, facts isolation.Host) ([]isolation.Finding, error) {
	ready, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := h.daemon.Ready(ready); err != nil {
		return nil, err
	}
	if !h.swept {
		if err := sweepCanaries(ctx, h.driver); err != nil {
			return nil, err
		}
		h.swept = true
	}
	return probe.Findings(ctx, probe.Inputs{Host: facts, Binaries: h.cfg.Binaries, Allowed: h.cfg.Allowed}, h.runner), nil
}

// sweepCanaries removes canaries that an earlier life of the agent left.
func sweepCanaries(ctx context.Context, d driver.Driver) error {
	list, err := d.List(ctx)
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	for _, c := range list {
		if c.Labels[canary.Label] != "" {
			if err := d.Delete(ctx, c.ID); err != nil {
				return fmt.Errorf("remove an old canary: %w", err)
			}
		}
	}
	return nil
}

func (h *RealHost) measure(ctx context.Context, c driver.Container, f isolation.Finding) (reconcile.Measurement, error) {
	m, err := canary.Measure(ctx, c.Pid, c.Runtime, f.Class, f.Digest)
	if err != nil {
		return reconcile.Measurement{}, err
	}
	if m.Class < f.Class {
		h.cfg.Log.Warn("a live boundary is weaker than proven", "runtime", string(c.Runtime), "pid", c.Pid, "class", m.Class.String(), "promised", f.Class.String(), "reason", m.Reason)
	}
	out := reconcile.Measurement{Terms: measured(m.Terms)}
	if m.Class >= f.Class {
		// The boundary is the one that the canary ran in: so is its kernel.
		out.Kernel = h.runner.Kernel(f.Runtime, f.Variant)
	}
	return out, nil
}

// bridge is the node's network as the reconciler takes it.
type bridge struct{ n *network.Network }

func (b bridge) Attach(ctx context.Context, uid string, s reconcile.NetworkSpec) (reconcile.Attachment, error) {
	spec := network.Spec{Instance: uid, Hostname: s.Hostname, None: s.None, Policy: network.Policy{
		Workload: s.Workload, AllowFrom: s.Rules.AllowFrom, Limited: s.Rules.Limited,
	}}
	for _, r := range s.Rules.Egress {
		rule := network.EgressRule{CIDR: r.CIDR, Protocol: r.Protocol}
		for _, p := range r.Ports {
			rule.Ports = append(rule.Ports, network.PortRange(p))
		}
		spec.Policy.Egress = append(spec.Policy.Egress, rule)
	}
	for _, p := range s.Ports {
		port := network.Port{Container: p.Container, Host: p.Host, Protocol: p.Protocol}
		if p.HostIP != "" {
			ip, err := netip.ParseAddr(p.HostIP)
			if err != nil {
				return reconcile.Attachment{}, fmt.Errorf("%w: hostIP %q: %w", reconcile.ErrRefused, p.HostIP, err)
			}
			port.HostIP = ip
		}
		spec.Ports = append(spec.Ports, port)
	}
	at, err := b.n.Attach(ctx, spec)
	if errors.Is(err, network.ErrPortHeld) || errors.Is(err, network.ErrInvalid) {
		return reconcile.Attachment{}, fmt.Errorf("%w: %w", reconcile.ErrRefused, err)
	}
	if err != nil {
		return reconcile.Attachment{}, err
	}
	return reconcile.Attachment{Netns: at.Netns, Address: addressText(at.Address), ResolvConf: at.ResolvConf, Hosts: at.Hosts}, nil
}

func addressText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func (b bridge) Detach(ctx context.Context, uid string) error { return b.n.Detach(ctx, uid) }

func (b bridge) Attached() map[string]string {
	out := map[string]string{}
	for uid, at := range b.n.Attached() {
		out[uid] = addressText(at.Address)
	}
	return out
}

func (b bridge) Sweep(ctx context.Context, keep func(string) bool) error { return b.n.Sweep(ctx, keep) }
