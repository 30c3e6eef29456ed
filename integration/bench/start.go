package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"redoubt.dev/redoubt/agent/containerd"
	"redoubt.dev/redoubt/deploy/runtimes"
	"redoubt.dev/redoubt/isolation"
)

// benchStart measures how long the driver takes from the call to a running
// container, in turn with containerd's own client and the same specification,
// image present, and gVisor against runc.
func benchStart(ctx context.Context) (out []figure, err error) {
	if os.Getuid() != 0 {
		return nil, errors.New("needs root")
	}
	bundle, err := runtimes.Embedded()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(".", ".demo-bench")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	paths, err := bundle.Unpack(ctx, filepath.Join(dir, "parts"))
	if err != nil {
		return nil, err
	}
	const image = "carried.redoubt/toolbox:1"
	cfg := containerd.Config{
		Node: isolation.NodeID(fmt.Sprintf("bench-%d", os.Getpid())), Dir: filepath.Join(dir, "containerd"),
		Binaries: containerd.Binaries{Containerd: paths.Containerd, Shim: paths.Shim, Runc: paths.Runc, Runsc: paths.Runsc, Wrapper: paths.Wrapper},
		Carried:  map[string]string{image: paths.ToolboxImage},
		Log:      slog.New(slog.DiscardHandler),
	}
	daemon, err := containerd.NewDaemon(cfg)
	if err != nil {
		return nil, err
	}
	drv, err := containerd.NewDriver(cfg)
	if err != nil {
		return nil, err
	}
	runCtx, cancel := context.WithCancel(ctx)
	var parts sync.WaitGroup
	parts.Go(func() { _ = daemon.Run(runCtx) })
	parts.Go(func() { _ = drv.Run(runCtx) })
	defer func() {
		cancel()
		parts.Wait()
		end, stop := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer stop()
		err = errors.Join(err, drv.Close(), daemon.Shutdown(end))
	}()
	ready, stop := context.WithTimeout(ctx, 30*time.Second)
	defer stop()
	if err := daemon.Ready(ready); err != nil {
		return nil, err
	}
	bare, err := bareClient(cfg)
	if err != nil {
		return nil, err
	}
	defer bare.Close()
	if _, err := drv.EnsureImage(ctx, image, "", nil); err != nil {
		return nil, err
	}
	p := pairs{drv: drv, bare: bare, namespace: "redoubt-" + string(cfg.Node), image: image}
	alone := map[isolation.Name]time.Duration{}
	for _, runtime := range []isolation.Name{"runc", "gvisor"} {
		ours, theirs, err := p.run(ctx, runtime, startPairs, 1)
		if err != nil {
			return nil, err
		}
		alone[runtime] = median(ours)
		out = append(out, paired("start of a "+string(runtime)+" container by the driver, median", ours, theirs, "containerd's client with the same specification"))
		if ours, theirs, err = p.run(ctx, runtime, rounds, together); err != nil {
			return nil, err
		}
		out = append(out, paired(fmt.Sprintf("start of %d %s containers at once", together, runtime), ours, theirs, "containerd's client with the same specifications"))
	}
	return append(out, against("start of a gVisor container, median", ms(alone["gvisor"]), "ms", "start of a runc container", ms(alone["runc"]))), nil
}

const (
	startPairs = 50
	rounds     = 5
	together   = 10
)
