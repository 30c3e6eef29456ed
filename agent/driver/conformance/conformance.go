// Package conformance is the one suite that every driver.Driver must pass: the
// fake in memory, and containerd with each runtime. What the interface
// promises is tested here and nowhere else; what only one implementation has
// is tested beside it.
//
// Run needs an image with busybox's sh, cat, sleep, tail, ps, stty and id.
package conformance

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/isolation"
)

// Harness is an implementation and the means to hurt it. A means that is nil
// is not to be had; the tests that need it skip with a line that says so.
type Harness struct {
	Driver  driver.Driver
	Runtime isolation.Name
	Variant string
	Image   string
	Dir     string // for logs and mounts
	// Sandbox: the workload runs behind a process that is not its own.
	Sandbox bool
	// Simulated: nothing really runs, so what a process would see from inside
	// cannot be looked at.
	Simulated bool

	// Reopen makes a second Driver on the same state, as a restarted agent
	// does; the first is used no more until the test has ended.
	Reopen func(t *testing.T) driver.Driver
	// Other is another node's driver on the same kernel.
	Other func(t *testing.T) driver.Driver

	KillBoundary func(t *testing.T, c driver.Container) // SIGKILL
	StopBoundary func(t *testing.T, c driver.Container) // SIGSTOP
	KillShim     func(t *testing.T, id driver.ID)
	StopShim     func(t *testing.T, id driver.ID)
	RestartRun   func(t *testing.T, whileDown func()) // kill the runtime daemon, do, have it back
	LoseTask     func(t *testing.T, id driver.ID)     // the runtime forgets a container that lives
	// Leftovers lists what a deleted container left on the host.
	Leftovers func(t *testing.T, id driver.ID) []string
}

type suite struct {
	Harness
	n int
}

// Run runs the whole suite.
func Run(t *testing.T, h Harness) {
	s := open(t, h)
	s.life(t)
	s.harm(t)
}

// RunLife runs the part in which nothing of the implementation breaks.
func RunLife(t *testing.T, h Harness) { open(t, h).life(t) }

// RunHarm runs the part in which the implementation is hurt. It mostly waits
// for deadlines.
func RunHarm(t *testing.T, h Harness) { open(t, h).harm(t) }

func open(t *testing.T, h Harness) *suite {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := h.Driver.EnsureImage(ctx, h.Image, driver.PullIfNotPresent, nil); err != nil {
		t.Fatalf("image: %v", err)
	}
	return &suite{Harness: h}
}

func (s *suite) life(t *testing.T) {
	s.each(t, []test{
		{"start", s.start},
		{"start is idempotent", s.idempotent},
		{"start after exit", s.startAfterExit},
		{"start refuses", s.startRefuses},
		{"twenty fast exits", s.fastExits},
		{"stop", s.stop},
		{"signal", s.signal},
		{"pause", s.pause},
		{"out of memory", s.oom},
		{"stats and limits", s.stats},
		{"exec", s.exec},
		{"exec with a terminal", s.execTerminal},
		{"exec is signalled", s.execSignal},
		{"exec ends with its context", s.execContext},
		{"many short execs", s.execFast},
		{"exec is cut short anywhere", s.execCut},
		{"inside", s.inside},
		{"list", s.list},
		{"changed", s.changed},
		{"what is not there", s.absent},
		{"delete of anything", s.deleteAnything},
	})
}

func (s *suite) harm(t *testing.T) {
	s.each(t, []test{
		{"the boundary is killed", s.boundaryKilled},
		{"the boundary is stopped", s.boundaryStopped},
		{"the shim is killed", s.shimKilled},
		{"the shim is stopped", s.shimStopped},
		{"the runtime is restarted", s.restarted},
		{"exit while the runtime is down", s.exitWhileDown},
		{"orphan", s.orphan},
		{"agent restart", s.reopen},
		{"two nodes", s.twoNodes},
	})
}

type test struct {
	name string
	run  func(*testing.T)
}

func (s *suite) each(t *testing.T, list []test) {
	for _, tt := range list {
		t.Run(tt.name, tt.run)
	}
}

// spec is a container that runs a shell script, with an id of its own, deleted
// at the end of the test.
func (s *suite) spec(t *testing.T, script string) driver.Spec {
	t.Helper()
	s.n++
	id := driver.ID(fmt.Sprintf("conf-%d", s.n))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
		defer cancel()
		if err := s.Driver.Delete(ctx, id); err != nil {
			t.Errorf("delete %s: %v", id, err)
		}
		if s.Leftovers != nil {
			if left := s.Leftovers(t, id); len(left) > 0 {
				t.Errorf("%s left on the host: %q", id, left)
			}
		}
	})
	return driver.Spec{
		ID: id, Runtime: s.Runtime, Variant: s.Variant, Image: s.Image,
		Command: []string{"sh", "-c", script},
		LogPath: filepath.Join(s.Dir, string(id)+".log"),
	}
}

const forever = "sleep 1000"

func (s *suite) ctx(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func (s *suite) mustStart(t *testing.T, spec driver.Spec) driver.Container {
	t.Helper()
	c, err := s.Driver.Start(s.ctx(t), spec)
	if err != nil {
		t.Fatalf("start %s: %v", spec.ID, err)
	}
	return c
}

func find(t *testing.T, d driver.Driver, id driver.ID) (driver.Container, bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	list, err := d.List(ctx)
	if err != nil {
		t.Fatalf("list: %v", err)
	}
	for _, c := range list {
		if c.ID == id {
			return c, true
		}
	}
	return driver.Container{}, false
}

// await polls until id is in state; what it is then is returned.
func (s *suite) await(t *testing.T, id driver.ID, state driver.State) driver.Container {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		c, ok := find(t, s.Driver, id)
		if ok && c.State == state && !c.Orphan {
			return c
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is not %v after 30 s but %+v (there: %v)", id, state, c, ok)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (s *suite) awaitExit(t *testing.T, id driver.ID, code int) driver.Exit {
	t.Helper()
	c := s.await(t, id, driver.StateExited)
	if c.Exit == nil {
		t.Fatalf("%s exited without saying how", id)
	}
	if c.Exit.Code != code || c.Exit.Lost {
		t.Fatalf("%s: exit %+v, want code %d", id, *c.Exit, code)
	}
	if c.Pid != 0 {
		t.Errorf("%s exited and has pid %d", id, c.Pid)
	}
	if d := time.Since(c.Exit.At); d < -time.Minute || d > 5*time.Minute {
		t.Errorf("%s: exited at %v", id, c.Exit.At)
	}
	return *c.Exit
}

// awaitLog polls until the log of spec has text in it.
func awaitLog(t *testing.T, spec driver.Spec, text string) string {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		data, _ := os.ReadFile(spec.LogPath)
		if strings.Contains(string(data), text) {
			return string(data)
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: no %q in the log: %q", spec.ID, text, data)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// sh runs a script inside and returns what it wrote.
func (s *suite) sh(t *testing.T, id driver.ID, script string) (string, int) {
	t.Helper()
	var out strings.Builder
	code, err := s.Driver.Exec(s.ctx(t), id, driver.ExecSpec{Command: []string{"sh", "-c", script}},
		driver.Streams{Stdout: &out, Stderr: &out})
	if err != nil {
		t.Fatalf("exec %q in %s: %v", script, id, err)
	}
	return out.String(), code
}

func needs(t *testing.T, have bool, what string) {
	t.Helper()
	if !have {
		t.Skipf("this implementation has no way to %s", what)
	}
}
