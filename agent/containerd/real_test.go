package containerd

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/agent/driver/conformance"
	"redoubt.dev/redoubt/deploy/runtimes"
	"redoubt.dev/redoubt/isolation"
)

var unpacked = sync.OnceValues(func() (runtimes.Paths, error) {
	b, err := runtimes.Embedded()
	if err != nil {
		return runtimes.Paths{}, err
	}
	dir, err := os.MkdirTemp("", "redoubt-test-parts-")
	if err != nil {
		return runtimes.Paths{}, err
	}
	partsDir = dir
	return b.Unpack(context.Background(), dir)
})

var partsDir string

func TestMain(m *testing.M) {
	if dir := os.Getenv(serveEnv); dir != "" {
		fmt.Fprintln(os.Stderr, serveRegistry(dir))
		os.Exit(1)
	}
	code := m.Run()
	if partsDir != "" {
		os.RemoveAll(partsDir)
	}
	os.Exit(code)
}

// realConfig is a node of its own in a temporary directory, or a skip with the
// reason.
func realConfig(t *testing.T, node string) Config {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	paths, err := unpacked()
	if err != nil {
		t.Skipf("needs the carried runtimes: %v", err)
	}
	// A name of its own for the program, since tests hide it to hold the daemon
	// off.
	containerd := filepath.Join(t.TempDir(), "containerd")
	if err := os.Link(paths.Containerd, containerd); err != nil {
		t.Fatal(err)
	}
	level := slog.LevelInfo
	if testing.Verbose() {
		level = slog.LevelDebug
	}
	return Config{
		Node: isolation.NodeID(fmt.Sprintf("%s-%d", node, os.Getpid())),
		Dir:  t.TempDir(),
		Binaries: Binaries{
			Containerd: containerd, Shim: paths.Shim, Runc: paths.Runc,
			Runsc: paths.Runsc, Wrapper: paths.Wrapper,
		},
		Carried: map[string]string{"carried.redoubt/toolbox:1": paths.ToolboxImage, "carried.redoubt/canary:1": paths.CanaryImage},
		Log:     slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: level})),
	}
}

// node is a running daemon and driver.
type node struct {
	cfg    Config
	daemon *Daemon
	driver *Driver
}

func startNode(t *testing.T, name string) *node {
	t.Helper()
	return startConfig(t, realConfig(t, name))
}

func startConfig(t *testing.T, cfg Config) *node {
	t.Helper()
	n := &node{cfg: cfg}
	var err error
	if n.daemon, err = NewDaemon(cfg); err != nil {
		t.Fatal(err)
	}
	if n.driver, err = NewDriver(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := n.daemon.Run(ctx); err != nil {
			t.Errorf("daemon: %v", err)
		}
	})
	wg.Go(func() { _ = n.driver.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		n.driver.Close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := n.daemon.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		n.nothingLeft(t)
		if t.Failed() {
			data, _ := os.ReadFile(n.daemon.logPath())
			for line := range strings.Lines(string(data)) {
				if !strings.Contains(line, "level=info") {
					t.Logf("containerd said: %s", line)
				}
			}
		}
	})
	ready, cancelReady := context.WithTimeout(ctx, 30*time.Second)
	defer cancelReady()
	if err := n.daemon.Ready(ready); err != nil {
		t.Fatal(err)
	}
	return n
}

// nothingLeft looks for what a node that was shut down left on the host.
func (n *node) nothingLeft(t *testing.T) {
	t.Helper()
	if ids := n.driver.sweep.known(); len(ids) > 0 {
		t.Errorf("left after shutdown: %q", ids)
	}
	for _, m := range n.driver.sweep.cg.mounts {
		if _, err := os.Stat(filepath.Join(m, n.cfg.cgroupParent())); err == nil {
			t.Errorf("left after shutdown: control group %s%s", m, n.cfg.cgroupParent())
		}
	}
	if _, err := os.Stat(n.cfg.runDir()); err == nil {
		t.Errorf("left after shutdown: %s", n.cfg.runDir())
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for _, dir := range []string{n.cfg.runDir(), n.cfg.Dir} {
		if strings.Contains(string(mounts), " "+dir+"/") {
			t.Errorf("left after shutdown: a mount below %s", dir)
		}
	}
	hostProcesses(func(pid int, args []string) {
		line := strings.Join(args, " ")
		if strings.Contains(line, n.cfg.runDir()) || strings.Contains(line, n.cfg.Dir) || strings.Contains(line, n.cfg.namespace()) {
			t.Errorf("left after shutdown: pid %d %s", pid, line)
		}
	})
}

func (n *node) leftovers(t *testing.T, id driver.ID) []string {
	t.Helper()
	var left []string
	for _, m := range n.driver.sweep.cg.mounts {
		if p := filepath.Join(m, n.driver.sweep.group(string(id))); exists(p) {
			left = append(left, p)
		}
	}
	for _, p := range []string{n.cfg.bundle(string(id)), n.cfg.shimSocket(string(id))} {
		if exists(p) {
			left = append(left, p)
		}
	}
	state, _ := filepath.Glob(filepath.Join(n.cfg.runtimeRoot(), n.cfg.namespace(), "*"))
	for _, p := range state {
		base := filepath.Base(p)
		if base == string(id) || strings.HasPrefix(base, string(id)+"_sand") || base == "runsc-"+string(id)+".sock" {
			left = append(left, p)
		}
	}
	fifos, _ := filepath.Glob(n.cfg.runDir() + "/fifo/*")
	left = append(left, fifos...)
	for _, p := range n.driver.sweep.shims(string(id)) {
		left = append(left, fmt.Sprintf("shim %d", p.Pid))
	}
	for _, p := range n.driver.sweep.runtimes(string(id)) {
		left = append(left, fmt.Sprintf("runtime %d", p.Pid))
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	if strings.Contains(string(mounts), n.cfg.bundle(string(id))+"/") {
		left = append(left, "a mount in the bundle")
	}
	return left
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func send(t *testing.T, pid int, sig unix.Signal) {
	t.Helper()
	if err := unix.Kill(pid, sig); err != nil {
		t.Fatalf("signal %v to %d: %v", sig, pid, err)
	}
}

func (n *node) shim(t *testing.T, id driver.ID) int {
	t.Helper()
	shims := n.driver.sweep.shims(string(id))
	if len(shims) != 1 {
		t.Fatalf("%s has shims %v", id, shims)
	}
	return shims[0].Pid
}

// restart kills the daemon, has do done while it is held off, and waits until
// Run has brought it back.
func (n *node) restart(t *testing.T, do func()) {
	t.Helper()
	// Nothing starts while the program is away.
	hidden := n.cfg.Binaries.Containerd + ".hidden"
	if err := os.Rename(n.cfg.Binaries.Containerd, hidden); err != nil {
		t.Fatal(err)
	}
	pid := n.daemon.Pid()
	send(t, pid, unix.SIGKILL)
	do()
	if err := os.Rename(hidden, n.cfg.Binaries.Containerd); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(40 * time.Second)
	for n.daemon.Pid() == pid || !n.daemon.current().alive() {
		if time.Now().After(deadline) {
			t.Fatal("the daemon does not come back")
		}
		time.Sleep(50 * time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := n.daemon.Ready(ctx); err != nil {
		t.Fatal(err)
	}
}

// loseTask makes the daemon forget a living container: it and the shim are
// killed, and the bundle goes, as on a host whose /run was cleared.
func (n *node) loseTask(t *testing.T, id driver.ID) {
	t.Helper()
	shim := n.shim(t, id)
	n.restart(t, func() {
		send(t, shim, unix.SIGKILL)
		for exists(fmt.Sprintf("/proc/%d/exe", shim)) {
			time.Sleep(10 * time.Millisecond)
		}
		if err := unmountBelow(n.cfg.bundle(string(id))); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(n.cfg.bundle(string(id))); err != nil {
			t.Error(err)
		}
	})
}

func TestConformance(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		runtime isolation.Name
		variant string
		sandbox bool
		run     func(*testing.T, conformance.Harness)
	}{
		{"runc", "runc", "", false, conformance.RunLife},
		{"runc hurt", "runc", "", false, conformance.RunHarm},
		{"gvisor", "gvisor", "systrap", true, conformance.RunLife},
		{"gvisor hurt", "gvisor", "systrap", true, conformance.RunHarm},
	} {
		t.Run(tt.name, func(t *testing.T) {
			// Each on a node of its own; those that are hurt mostly wait.
			t.Parallel()
			name := strings.ReplaceAll(tt.name, " ", "-")
			n := startNode(t, "conf-"+name)
			var other *node
			tt.run(t, conformance.Harness{
				Driver: n.driver, Runtime: tt.runtime, Variant: tt.variant, Sandbox: tt.sandbox,
				Image: "toolbox", Dir: t.TempDir(),
				Reopen: func(t *testing.T) driver.Driver {
					d, err := NewDriver(n.cfg)
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { d.Close() })
					return d
				},
				Other: func(t *testing.T) driver.Driver {
					other = startNode(t, "other-"+name)
					return other.driver
				},
				KillBoundary: func(t *testing.T, c driver.Container) { send(t, c.Pid, unix.SIGKILL) },
				StopBoundary: func(t *testing.T, c driver.Container) { send(t, c.Pid, unix.SIGSTOP) },
				KillShim:     func(t *testing.T, id driver.ID) { send(t, n.shim(t, id), unix.SIGKILL) },
				StopShim:     func(t *testing.T, id driver.ID) { send(t, n.shim(t, id), unix.SIGSTOP) },
				RestartRun:   n.restart,
				LoseTask:     n.loseTask,
				Leftovers:    n.leftovers,
			})
		})
	}
}
