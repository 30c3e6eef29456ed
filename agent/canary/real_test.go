package canary

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"redoubt.dev/redoubt/agent/containerd"
	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/deploy/runtimes"
	"redoubt.dev/redoubt/isolation"
	"redoubt.dev/redoubt/isolation/probe"
)

// realNode is a private containerd with the carried runtimes, or a skip.
func realNode(t *testing.T) (driver.Driver, probe.Binaries) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	bundle, err := runtimes.Embedded()
	if err != nil {
		t.Skipf("needs the carried runtimes: %v", err)
	}
	paths, err := bundle.Unpack(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if paths.CanaryImage == "" {
		t.Skip("needs the carried canary image")
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	cfg := containerd.Config{
		Node: isolation.NodeID(fmt.Sprintf("canary-test-%d", os.Getpid())), Dir: t.TempDir(),
		Binaries: containerd.Binaries{Containerd: paths.Containerd, Shim: paths.Shim, Runc: paths.Runc,
			Runsc: paths.Runsc, Wrapper: paths.Wrapper},
		Carried: map[string]string{Image: paths.CanaryImage, "carried.redoubt/toolbox:1": paths.ToolboxImage},
		Log:     log,
	}
	daemon, err := containerd.NewDaemon(cfg)
	if err != nil {
		t.Fatal(err)
	}
	d, err := containerd.NewDriver(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := daemon.Run(ctx); err != nil {
			t.Errorf("containerd: %v", err)
		}
	})
	wg.Go(func() { _ = d.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		d.Close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := daemon.Shutdown(ctx); err != nil {
			t.Errorf("stop containerd: %v", err)
		}
	})
	return d, probe.Binaries{Containerd: paths.Containerd, Shim: paths.Shim, Runc: paths.Runc,
		Runsc: paths.Runsc, Wrapper: paths.Wrapper}
}

func TestRealRuntimesAreProvenAndMeasured(t *testing.T) {
	d, binaries := realNode(t)
	dir := filepath.Join(t.TempDir(), "canaries")
	r := NewRunner(OnDriver(d, dir), slog.New(slog.NewTextHandler(t.Output(), nil)))
	host, err := probe.Host(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	found := probe.Findings(t.Context(), probe.Inputs{Host: host, Binaries: binaries}, r)
	by := map[isolation.Name]isolation.Finding{}
	for _, f := range found {
		t.Logf("%-11s %-8s %-9s %-9s %+v %q %q", f.Runtime, f.Variant, f.Class, f.State, f.Terms, f.Reason, f.Fix)
		if _, ok := by[f.Runtime]; !ok || f.Variant == "systrap" {
			by[f.Runtime] = f
		}
	}
	for name, most := range map[isolation.Name]int{"runc": probe.ContainerCalls - 1, "gvisor": probe.SandboxCalls} {
		f := by[name]
		if f.State != isolation.StateVerified {
			t.Errorf("%s: %v: %s", name, f.State, f.Reason)
			continue
		}
		if s := f.Terms.Surface; !s.Measured || s.Syscalls == 0 || s.Syscalls > most || s.Devices != 0 {
			t.Errorf("%s: surface %+v, want at most %d calls and no device", name, s, most)
		}
		if _, ok := r.Age(f.Runtime, f.Variant); !ok || f.Digest == "" || f.Version == "" {
			t.Errorf("%s: age, digest or version is missing: %+v", name, f)
		}
	}
	if left, err := d.List(t.Context()); err != nil || len(left) != 0 {
		t.Errorf("canaries left: %v, %v", left, err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("output left: %v", left)
	}
	if by["gvisor"].State == isolation.StateVerified {
		t.Run("a live workload under gVisor", func(t *testing.T) { liveSentry(t, d, by["gvisor"].Digest) })
	}
}

// liveSentry measures a workload as the agent does after a start.
func liveSentry(t *testing.T, d driver.Driver, digest string) {
	const image = "carried.redoubt/toolbox:1"
	if _, err := d.EnsureImage(t.Context(), image, driver.PullIfNotPresent, nil); err != nil {
		t.Fatal(err)
	}
	c, err := d.Start(t.Context(), driver.Spec{ID: "measured-sleep", Runtime: "gvisor", Variant: "systrap",
		Image: image, Command: []string{"/bin/sleep", "60"}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Delete(context.WithoutCancel(t.Context()), c.ID) }()
	m, err := Measure(t.Context(), c.Pid, "gvisor", isolation.ClassSandbox, digest)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("class %v, %d calls (%d by argument, %d filters, %d threads), helpers %v, levels %.2f",
		m.Class, m.Process.Seccomp.Reachable, m.Process.Seccomp.ByArgument, m.Process.Seccomp.Filters,
		m.Process.Seccomp.Threads, m.Helpers, m.Terms.Sandbox)
	if m.Class != isolation.ClassSandbox || m.Reason != "" || len(m.Helpers) == 0 {
		t.Errorf("got %v %q, helpers %v", m.Class, m.Reason, m.Helpers)
	}
	for _, never := range []string{"bpf", "mount", "socket", "open", "openat"} {
		if slices.Contains(m.Process.Seccomp.Calls, never) {
			t.Errorf("the sentry reaches %s", never)
		}
	}
	m, err = Measure(t.Context(), c.Pid, "gvisor", isolation.ClassSandbox, "sha256:"+strings.Repeat("0", 64))
	if err != nil {
		t.Fatal(err)
	}
	if m.Class == isolation.ClassSandbox || m.Reason == "" {
		t.Errorf("a foreign boundary process counts as a sandbox: %+v", m)
	}
}
