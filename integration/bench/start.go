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
	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/deploy/runtimes"
	"redoubt.dev/redoubt/isolation"
)

const starts = 15

// benchStart measures how long the driver takes from the call to a running
// container, under gVisor against runc, image present.
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
	took := map[isolation.Name]time.Duration{}
	for _, runtime := range []isolation.Name{"runc", "gvisor"} {
		if took[runtime], err = startTimes(ctx, drv, runtime, image); err != nil {
			return nil, err
		}
	}
	return []figure{against("start of a gVisor container, median", ms(took["gvisor"]), "ms", "start of a runc container", ms(took["runc"]))}, nil
}

func startTimes(ctx context.Context, drv *containerd.Driver, runtime isolation.Name, image string) (time.Duration, error) {
	var took []time.Duration
	for i := range starts + 1 {
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		id := driver.ID(fmt.Sprintf("bench-%s-%d", runtime, i))
		if _, err := drv.EnsureImage(ctx, image, "", nil); err != nil {
			cancel()
			return 0, err
		}
		begun := time.Now()
		_, err := drv.Start(ctx, driver.Spec{ID: id, Runtime: runtime, Image: image, Command: []string{"sleep", "60"}})
		if i > 0 { // the first one warms the page cache
			took = append(took, time.Since(begun))
		}
		err = errors.Join(err, drv.Delete(ctx, id))
		cancel()
		if err != nil {
			return 0, err
		}
	}
	return median(took), nil
}
