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

const aboutStart = `
From the call to a running container, by the agent's driver and by containerd's own
client with the specification that the driver made, in turn on one daemon, the image
being there. Both make a snapshot, the container, its namespaces and its control
groups. The driver also notes the start before the workload runs, so that it can be taken
up after a crash, and looks at the task and at the sandbox's process.`

// benchStart measures how long the driver takes from the call to a running
// container, in turn with containerd's own client and the same specification,
// image present, and gVisor against runc.
func benchStart(ctx context.Context, set settings, out *result) error {
	return withDriver(ctx, func(p *pairs) error {
		alone := map[isolation.Name]time.Duration{}
		for _, runtime := range []isolation.Name{"runc", "gvisor"} {
			ours, theirs, err := p.run(ctx, runtime, set.of(50, 10), 1)
			if err != nil {
				return err
			}
			alone[runtime] = median(ours)
			note, err := p.note(ctx, runtime, set.of(30, 10))
			if err != nil {
				return err
			}
			out.add(paired("start of a "+string(runtime)+" container by the driver, median", ours, theirs, "containerd's client with the same specification"),
				against("one note in containerd's store, as the driver makes one a start, "+string(runtime), ms(note), "ms", "what the driver's start takes more", ms(median(ours)-median(theirs))))
			out.Plots = append(out.Plots, plot{
				Title: "one " + string(runtime) + " container", X: "ms", Y: "% of starts that took at most so long",
				Lines: []curve{spread("by the driver", ours), spread("by containerd's client", theirs)},
			})
			if ours, theirs, err = p.run(ctx, runtime, set.of(10, 3), together); err != nil {
				return err
			}
			out.add(paired(fmt.Sprintf("start of %d %s containers at once", together, runtime), ours, theirs, "containerd's client with the same specifications"))
		}
		out.add(against("start of a gVisor container, median", ms(alone["gvisor"]), "ms", "start of a runc container", ms(alone["runc"])))
		return nil
	})
}

// together is how many are started at once.
const together = 10

// withDriver has a daemon, a driver and containerd's client up while do works.
func withDriver(ctx context.Context, do func(*pairs) error) (err error) {
	if os.Getuid() != 0 {
		return errors.New("it needs root: it starts containers")
	}
	bundle, err := runtimes.Embedded()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(".", ".demo-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	paths, err := bundle.Unpack(ctx, filepath.Join(dir, "parts"))
	if err != nil {
		return err
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
		return err
	}
	drv, err := containerd.NewDriver(cfg)
	if err != nil {
		return err
	}
	begun := time.Now()
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
		return err
	}
	took := time.Since(begun)
	bare, err := bareClient(cfg)
	if err != nil {
		return err
	}
	defer bare.Close()
	if _, err := drv.EnsureImage(ctx, image, "", nil); err != nil {
		return err
	}
	return do(&pairs{drv: drv, bare: bare, namespace: "redoubt-" + string(cfg.Node), node: string(cfg.Node), dir: cfg.Dir, image: image, began: took})
}
