package containerd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sys/unix"

	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/isolation"
)

var quiet = slog.New(slog.DiscardHandler)

func (n *node) toolbox(t *testing.T, id driver.ID, runtime isolation.Name, script string) driver.Container {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := n.driver.EnsureImage(ctx, "toolbox", driver.PullIfNotPresent, nil); err != nil {
		t.Fatal(err)
	}
	c, err := n.driver.Start(ctx, driver.Spec{ID: id, Runtime: runtime, Image: "toolbox", Command: []string{"sh", "-c", script}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// runDaemon runs d until the returned function is called.
func runDaemon(t *testing.T, d *Daemon) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	ready, cancelReady := context.WithTimeout(ctx, 30*time.Second)
	defer cancelReady()
	if err := d.Ready(ready); err != nil {
		t.Fatal(err)
	}
	for d.Pid() == 0 { // an older one may answer before this has looked for it
		if ready.Err() != nil {
			t.Fatal("no daemon is known")
		}
		time.Sleep(10 * time.Millisecond)
	}
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("daemon: %v", err)
		}
	}
}

// The daemon and its containers outlive the agent; the next agent adopts both,
// even if the note of the daemon's pid is lost; a second agent is refused.
// TestADaemonOfAnotherRootIsNotOurs: agents with mounts of their own may share a
// kernel, and have the same paths. Who adopted another's daemon would kill it,
// since it does not answer here.
func TestADaemonOfAnotherRootIsNotOurs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts need root")
	}
	cfg := Config{Dir: t.TempDir(), Node: "test-root"}
	d := &Daemon{cfg: cfg}
	for mount, ours := range map[string]bool{"true": true, "mount -t tmpfs tmpfs " + cfg.Dir: false} {
		script := mount + ` && exec -a containerd bash -c 'echo up; read x; :' x --config ` + d.configPath()
		cmd := exec.Command("unshare", "--mount", "--propagation", "private", "bash", "-c", script)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 3)); err != nil {
			t.Fatal(err)
		}
		p, ok := d.find()
		if ok != ours || ok && p.Pid != cmd.Process.Pid {
			t.Errorf("after %q: found %v, pid %d of %d", mount, ok, p.Pid, cmd.Process.Pid)
		}
		in.Close()
		_ = cmd.Wait()
	}
}

func TestDaemonIsAdopted(t *testing.T) {
	cfg := realConfig(t, "adopt")
	first, err := NewDaemon(cfg)
	if err != nil {
		t.Fatal(err)
	}
	stop := runDaemon(t, first)
	pid := first.Pid()

	second, err := NewDaemon(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "in use by another agent") || !strings.Contains(err.Error(), cfg.Dir) {
		t.Errorf("a second agent on the directory: %v", err)
	}
	drv, err := NewDriver(cfg)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{cfg: cfg, daemon: first, driver: drv}
	c := n.toolbox(t, "stays", "gvisor", "sleep 1000")
	drv.Close()
	stop()
	for i, lose := range []bool{false, true} {
		if lose {
			if err := os.Remove(first.pidPath()); err != nil {
				t.Fatal(err)
			}
		}
		next, err := NewDaemon(cfg)
		if err != nil {
			t.Fatal(err)
		}
		stop := runDaemon(t, next)
		if next.Pid() != pid {
			t.Errorf("agent %d has daemon %d, the first had %d", i+2, next.Pid(), pid)
		}
		if !(process{c.Pid, mustProcess(t, c.Pid).Start}).alive() {
			t.Error("the container is gone")
		}
		stop()
	}
	// Shutdown needs no Run.
	last, err := NewDaemon(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := last.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if err := last.Shutdown(ctx); err != nil {
		t.Errorf("again: %v", err)
	}
	n.nothingLeft(t)
}

// An agent that carries another containerd, or another shim, runs its own: the
// older one ends and containers run on. The same program elsewhere is adopted.
func TestAnotherVersionsDaemonIsReplaced(t *testing.T) {
	t.Parallel() // it mostly waits
	cfg := realConfig(t, "another")
	daemon, err := NewDaemon(cfg)
	if err != nil {
		t.Fatal(err)
	}
	stop := runDaemon(t, daemon)
	pid := daemon.Pid()
	drv, err := NewDriver(cfg)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{cfg: cfg, daemon: daemon, driver: drv}
	c := n.toolbox(t, "stays", "gvisor", "sleep 1000")
	drv.Close()
	stop()
	lives := mustProcess(t, c.Pid)

	copied := func(from, add string) string {
		t.Helper()
		text, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(t.TempDir(), filepath.Base(from))
		if err := os.WriteFile(to, append(text, add...), 0o755); err != nil {
			t.Fatal(err)
		}
		return to
	}
	for _, step := range []struct {
		what     string
		change   func(*Config)
		replaced bool
	}{
		{"the same elsewhere", func(c *Config) {
			c.Binaries.Containerd, c.Binaries.Shim = copied(cfg.Binaries.Containerd, ""), copied(cfg.Binaries.Shim, "")
		}, false},
		{"another containerd", func(c *Config) { c.Binaries.Containerd = copied(cfg.Binaries.Containerd, "another") }, true},
		{"another shim", func(c *Config) { c.Binaries.Shim = copied(cfg.Binaries.Shim, "another") }, true},
	} {
		step.change(&cfg)
		next, err := NewDaemon(cfg)
		if err != nil {
			t.Fatal(err)
		}
		stop := runDaemon(t, next)
		if replaced := next.Pid() != pid; replaced != step.replaced {
			t.Errorf("%s: replaced %v; want %v", step.what, replaced, step.replaced)
		}
		pid = next.Pid()
		if !lives.alive() {
			t.Fatalf("%s: the container is gone", step.what)
		}
		if drv, err = NewDriver(cfg); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		code, err := drv.Exec(ctx, "stays", driver.ExecSpec{Command: []string{"true"}}, driver.Streams{})
		cancel()
		drv.Close()
		if err != nil || code != 0 {
			t.Errorf("%s: exec in the container: %d %v", step.what, code, err)
		}
		stop()
	}
	last, err := NewDaemon(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := last.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	n.nothingLeft(t)
}

func mustProcess(t *testing.T, pid int) process {
	t.Helper()
	p, err := findProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A daemon that is stopped, as by a debugger or a full disk, is replaced, and
// the containers do not notice.
func TestHungDaemonIsReplaced(t *testing.T) {
	t.Parallel() // it mostly waits
	n := startNode(t, "hung")
	c := n.toolbox(t, "stays", "gvisor", "sleep 1000")
	pid := n.daemon.Pid()
	send(t, pid, unix.SIGSTOP)
	deadline := time.Now().Add(60 * time.Second)
	for n.daemon.Pid() == pid {
		if time.Now().After(deadline) {
			t.Fatal("a daemon that does not answer stays")
		}
		time.Sleep(100 * time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := n.daemon.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	list, err := n.driver.List(ctx)
	if err != nil || len(list) != 1 || list[0].Pid != c.Pid || list[0].State != driver.StateRunning {
		t.Errorf("after: %+v, %v", list, err)
	}
}

// Whatever state the node was left in by a crash, one Shutdown leaves nothing.
func TestShutdownAfterACrash(t *testing.T) {
	cfg := realConfig(t, "crash")
	d, err := NewDaemon(cfg)
	if err != nil {
		t.Fatal(err)
	}
	stop := runDaemon(t, d)
	drv, err := NewDriver(cfg)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{cfg: cfg, daemon: d, driver: drv}
	n.toolbox(t, "runs", "gvisor", "sleep 1000")
	n.toolbox(t, "plain", "runc", "sleep 1000")
	stopped := n.toolbox(t, "stopped", "gvisor", "sleep 1000")
	n.toolbox(t, "lost", "gvisor", "sleep 1000")
	lost := n.shim(t, "lost")
	drv.Close()
	stop() // the agent is gone,
	send(t, d.Pid(), unix.SIGKILL)
	send(t, lost, unix.SIGKILL) // and the daemon, a shim,
	send(t, stopped.Pid, unix.SIGSTOP)
	send(t, n.shim(t, "plain"), unix.SIGSTOP) // and two do not answer
	next, err := NewDaemon(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := next.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	n.nothingLeft(t)
}

// A runtime that is called gVisor and runs the workload on the host's kernel is
// found before the workload's first instruction.
func TestDowngradeIsRefused(t *testing.T) {
	cfg := realConfig(t, "down")
	dir := t.TempDir()
	cfg.Binaries.Wrapper = filepath.Join(dir, "wrapper")
	script := "#!/bin/sh\nexec " + cfg.Binaries.Runc + " \"$@\"\n"
	if err := os.WriteFile(cfg.Binaries.Wrapper, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	n := startConfig(t, cfg)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := n.driver.EnsureImage(ctx, "toolbox", driver.PullIfNotPresent, nil); err != nil {
		t.Fatal(err)
	}
	witness := filepath.Join(dir, "witness")
	_, err := n.driver.Start(ctx, driver.Spec{
		ID: "claims", Runtime: "gvisor", Image: "toolbox",
		Command: []string{"sh", "-c", "echo ran > /w/witness; sleep 1000"},
		Mounts:  []driver.Mount{{HostPath: dir, Path: "/w"}},
	})
	if !errors.Is(err, driver.ErrDowngrade) {
		t.Fatalf("start: %v", err)
	}
	if exists(witness) {
		t.Error("the workload ran")
	}
	if left := n.leftovers(t, "claims"); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	if list, err := n.driver.List(ctx); err != nil || len(list) > 0 {
		t.Errorf("listed %+v, %v", list, err)
	}
}

func push(t *testing.T, ref string, img v1.Image) string {
	t.Helper()
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, img); err != nil {
		t.Fatal(err)
	}
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

func randomImage(t *testing.T, change func(*v1.Config)) v1.Image {
	t.Helper()
	img, err := random.Image(100_000, 3)
	if err != nil {
		t.Fatal(err)
	}
	file, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", goarch
	change(&file.Config)
	if img, err = mutate.ConfigFile(img, file); err != nil {
		t.Fatal(err)
	}
	return img
}

func TestPull(t *testing.T) {
	n := startNode(t, "pull")
	srv := httptest.NewServer(registry.New(registry.Logger(nolog())))
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()

	ref := host + "/team/app:1"
	want := push(t, ref, randomImage(t, func(c *v1.Config) {
		c.Cmd = []string{"/x"}
		c.Labels = map[string]string{"dev.gvisor.flag.host-uds": "all"}
	}))
	var mu sync.Mutex
	var stages []string
	var last int64
	got, err := n.driver.EnsureImage(ctx, ref, driver.PullIfNotPresent, func(stage string, done, total int64) {
		mu.Lock()
		defer mu.Unlock()
		stage, parts, _ := strings.Cut(stage, "; ")
		if !slices.Contains(stages, stage) {
			stages = append(stages, stage)
		}
		if stage == "pull" {
			if !strings.HasSuffix(parts, " of 5 parts") { // three layers, the config and the manifest
				t.Errorf("progress %q", parts)
			}
			if done < last || done > total {
				t.Errorf("progress %d of %d after %d", done, total, last)
			}
			last = done
		}
	})
	if err != nil || got != want {
		t.Fatalf("pull: %s, %v; want %s", got, err, want)
	}
	if strings.Join(stages, " ") != "pull unpack" || last == 0 {
		t.Errorf("progress %q up to %d", stages, last)
	}
	img, config, err := n.driver.unpacked(ctx, ref)
	if err != nil || len(config.Labels) != 0 || strings.Join(config.Cmd, "") != "/x" {
		t.Errorf("config %+v, %v", config, err)
	}
	for k := range img.Labels() {
		if strings.HasPrefix(k, "dev.gvisor") {
			t.Errorf("label %s", k)
		}
	}

	// What is there is used; Always asks again.
	newer := push(t, ref, randomImage(t, func(*v1.Config) {}))
	if got, err := n.driver.EnsureImage(ctx, ref, driver.PullIfNotPresent, nil); err != nil || got != want {
		t.Errorf("present: %s, %v", got, err)
	}
	if got, err := n.driver.EnsureImage(ctx, ref, driver.PullAlways, nil); err != nil || got != newer {
		t.Errorf("always: %s, %v; want %s", got, err, newer)
	}
	// A digest is what it says, whatever the tag says now.
	if got, err := n.driver.EnsureImage(ctx, host+"/team/app@"+want, driver.PullAlways, nil); err != nil || got != want {
		t.Errorf("by digest: %s, %v; want %s", got, err, want)
	}

	missing := host + "/team/app:2"
	_, err = n.driver.EnsureImage(ctx, missing, driver.PullIfNotPresent, nil)
	if !errors.Is(err, driver.ErrImage) || !strings.Contains(err.Error(), missing) || !strings.Contains(err.Error(), "404") || !strings.Contains(err.Error(), "oci:/") {
		t.Errorf("a tag that is not there: %v", err)
	}
	_, err = n.driver.EnsureImage(ctx, missing, driver.PullNever, nil)
	if !errors.Is(err, driver.ErrImage) || !strings.Contains(err.Error(), "Never") {
		t.Errorf("never: %v", err)
	}
	if _, err = n.driver.EnsureImage(ctx, missing, "Sometimes", nil); err == nil || !strings.Contains(err.Error(), "Sometimes") {
		t.Errorf("an unknown policy: %v", err)
	}
	_, err = n.driver.EnsureImage(ctx, "carried.redoubt/other:1", driver.PullIfNotPresent, nil)
	if !errors.Is(err, driver.ErrImage) || !strings.Contains(err.Error(), "carried.redoubt/toolbox:1") {
		t.Errorf("an image that is not carried: %v", err)
	}
	_, err = n.driver.EnsureImage(ctx, "127.0.0.1:1/app:1", driver.PullIfNotPresent, nil)
	if !errors.Is(err, driver.ErrImage) || !strings.Contains(err.Error(), "cannot be reached") {
		t.Errorf("a registry that is not there: %v", err)
	}

	huge := push(t, host+"/huge:1", randomImage(t, func(c *v1.Config) { c.Env = []string{"X=" + strings.Repeat("x", 9<<20)} }))
	_, err = n.driver.EnsureImage(ctx, host+"/huge:1", driver.PullIfNotPresent, nil)
	if !errors.Is(err, driver.ErrImage) || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("a huge config (%s): %v", huge, err)
	}
}

// A carried image never touches a network and is replaced with the agent.
func TestCarriedImageIsReplaced(t *testing.T) {
	n := startNode(t, "carried")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	first, err := n.driver.EnsureImage(ctx, "toolbox", driver.PullNever, nil)
	if err != nil {
		t.Fatal(err)
	}
	cfg := n.cfg
	cfg.Carried = map[string]string{"carried.redoubt/toolbox:1": cfg.Carried["carried.redoubt/canary:1"]}
	d, err := NewDriver(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	second, err := d.EnsureImage(ctx, "toolbox", driver.PullIfNotPresent, nil)
	if err != nil || second == first {
		t.Errorf("first %s, second %s, %v", first, second, err)
	}
}

// Starting is quick: this fails only when something is badly wrong, and prints
// what it took.
func TestStartLatency(t *testing.T) {
	n := startNode(t, "quick")
	for _, runtime := range []isolation.Name{"runc", "gvisor"} {
		var took []time.Duration
		for i := range 10 {
			id := driver.ID(fmt.Sprintf("%s-%d", runtime, i))
			n.toolbox(t, "warm", runtime, "exit 0")
			began := time.Now()
			_, err := n.driver.Start(t.Context(), driver.Spec{ID: id, Runtime: runtime, Image: "toolbox", Command: []string{"sleep", "1000"}})
			if err != nil {
				t.Fatal(err)
			}
			took = append(took, time.Since(began))
			if err := n.driver.Delete(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		slices.Sort(took)
		t.Logf("%s: start p50 %v, max %v", runtime, took[5], took[9])
		if took[5] > 5*time.Second {
			t.Errorf("%s: start takes %v", runtime, took[5])
		}
	}
}
