package fleet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"redoubt.dev/redoubt/agent"
	"redoubt.dev/redoubt/integration/net/topology"
	"redoubt.dev/redoubt/isolation/probe"
)

// purge has each agent's own code remove what the node holds on this host. The
// agents must have ended.
func (f *Fleet) purge(ctx context.Context, plan topology.Plan, nodes []string) error {
	var errs []error
	for _, node := range nodes {
		dir := f.File(node)
		if !exists(filepath.Join(dir, "containerd")) && !exists(filepath.Join(dir, "network")) {
			continue // it never got so far
		}
		if !exists(filepath.Join("/run/netns", plan.Namespace(node))) {
			continue // half gone already; force does the rest
		}
		log, err := os.OpenFile(f.Log(node), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		err = topology.In(plan.Namespace(node), func() error {
			return agent.RemoveHost(ctx, agent.HostConfig{
				Node: node, DataDir: dir, Binaries: unpacked(dir),
				Log: slog.New(slog.NewTextHandler(log, nil)),
			})
		})
		log.Close()
		if err != nil {
			errs = append(errs, fmt.Errorf("remove what node %s holds: %w", node, err))
		}
	}
	return errors.Join(errs...)
}

// unpacked finds the runtimes that an agent unpacked below its data directory.
// What the removal does not find it has no container of.
func unpacked(dir string) probe.Binaries {
	found := map[string]string{}
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "runc", "runsc", "redoubt-oci"} {
		found[name] = filepath.Join(dir, "absent", name)
	}
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && (d.Name() == "root" || d.Name() == "netns") {
			return fs.SkipDir
		}
		if _, wanted := found[d.Name()]; wanted && d.Type().IsRegular() {
			if info, err := d.Info(); err == nil && info.Mode()&0o100 != 0 {
				found[d.Name()] = path
			}
		}
		return nil
	})
	return probe.Binaries{
		Containerd: found["containerd"], Shim: found["containerd-shim-runc-v2"],
		Runc: found["runc"], Runsc: found["runsc"], Wrapper: found["redoubt-oci"],
	}
}
