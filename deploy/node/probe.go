package node

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"redoubt.dev/redoubt/agent/canary"
	"redoubt.dev/redoubt/agent/containerd"
	"redoubt.dev/redoubt/isolation"
	"redoubt.dev/redoubt/isolation/probe"
)

// Probe measures this host and proves its runtimes once, as an agent would,
// with a containerd of its own in cfg.DataDir. It makes no network, and takes
// all that it made away, but for cfg.DataDir. cfg.Node names what it makes.
func Probe(ctx context.Context, cfg Config) (facts isolation.Host, findings []isolation.Finding, err error) {
	if err := cfg.settle(); err != nil {
		return facts, nil, err
	}
	if facts, err = probe.Host(ctx); err != nil {
		return facts, nil, err
	}
	hc, err := hostConfig(ctx, cfg, cfg.Node)
	if err != nil {
		return facts, nil, err
	}
	b := hc.Binaries
	cc := containerd.Config{
		Node: isolation.NodeID(cfg.Node), Dir: filepath.Join(cfg.DataDir, "containerd"),
		Binaries:    containerd.Binaries{Containerd: b.Containerd, Shim: b.Shim, Runc: b.Runc, Runsc: b.Runsc, Wrapper: b.Wrapper},
		HostAddress: cfg.Containerd, Carried: hc.Carried, Log: cfg.Log,
	}
	daemon, err := containerd.NewDaemon(cc)
	if err != nil {
		return facts, nil, err
	}
	driver, err := containerd.NewDriver(cc)
	if err != nil {
		return facts, nil, err
	}
	running, stop := context.WithCancel(ctx)
	var g errgroup.Group
	g.Go(func() error { return daemon.Run(running) })
	g.Go(func() error { return driver.Run(running) })
	defer func() {
		stop()
		ended := g.Wait()
		if errors.Is(ended, context.Canceled) {
			ended = nil
		}
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, ended, daemon.Shutdown(clean), driver.Close())
	}()
	ready, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := daemon.Ready(ready); err != nil {
		return facts, nil, fmt.Errorf("start a private containerd: %w", err)
	}
	runner := canary.NewRunner(canary.OnDriver(driver, filepath.Join(cfg.DataDir, "canary")), cfg.Log)
	findings = probe.Findings(ctx, probe.Inputs{Host: facts, Binaries: b}, runner)
	return facts, findings, ctx.Err()
}
