package conformance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"redoubt.dev/redoubt/agent/driver"
)

func (s *suite) start(t *testing.T) {
	spec := s.spec(t, "echo hello; echo oops >&2; "+forever)
	spec.Labels = map[string]string{"instance": "web-1"}
	before := time.Now()
	c := s.mustStart(t, spec)
	if c.ID != spec.ID || c.State != driver.StateRunning || c.Pid <= 0 || c.Orphan || c.Exit != nil {
		t.Errorf("started: %+v", c)
	}
	if c.Runtime != s.Runtime || c.Labels["instance"] != "web-1" || len(c.Labels) != 1 {
		t.Errorf("started: %+v", c)
	}
	if d := c.StartedAt.Sub(before); d < -2*time.Second || d > 30*time.Second {
		t.Errorf("started at %v, which is %v after the call", c.StartedAt, d)
	}
	awaitLog(t, spec, "hello")
	awaitLog(t, spec, "oops")
	if got, ok := find(t, s.Driver, spec.ID); !ok || got.Pid != c.Pid || !got.StartedAt.Equal(c.StartedAt) {
		t.Errorf("listed %+v, started %+v", got, c)
	}
	if info, err := os.Stat(spec.LogPath); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("log: %v %v", info, err)
	}
}

func (s *suite) idempotent(t *testing.T) {
	spec := s.spec(t, "echo once; "+forever)
	c := s.mustStart(t, spec)
	awaitLog(t, spec, "once")
	again := s.mustStart(t, spec)
	if again.Pid != c.Pid || !again.StartedAt.Equal(c.StartedAt) {
		t.Errorf("a second start made %+v of %+v", again, c)
	}
	// Absent and empty are the same.
	spec.Env, spec.Labels = []string{}, map[string]string{}
	if again := s.mustStart(t, spec); again.Pid != c.Pid {
		t.Errorf("a start with empty lists made %+v of %+v", again, c)
	}
	// At once, from many sides.
	var wg sync.WaitGroup
	fresh := s.spec(t, "echo once; "+forever)
	pids := make([]int, 4)
	for i := range pids {
		wg.Go(func() {
			c, err := s.Driver.Start(s.ctx(t), fresh)
			if err != nil {
				t.Errorf("start: %v", err)
			}
			pids[i] = c.Pid
		})
	}
	wg.Wait()
	for _, pid := range pids {
		if pid != pids[0] || pid == 0 {
			t.Errorf("starts at once gave pids %v", pids)
			break
		}
	}
	if log := awaitLog(t, fresh, "once"); strings.Count(log, "once") != 1 {
		t.Errorf("it ran more than once: %q", log)
	}
	spec.Env = []string{"A=1"}
	if _, err := s.Driver.Start(s.ctx(t), spec); !errors.Is(err, driver.ErrConflict) {
		t.Errorf("another spec under a running id: %v", err)
	}
	if now, _ := find(t, s.Driver, spec.ID); now.Pid != c.Pid {
		t.Errorf("the refused start changed %+v to %+v", c, now)
	}
}

func (s *suite) startAfterExit(t *testing.T) {
	spec := s.spec(t, "echo ran; exit 5")
	s.mustStart(t, spec)
	s.awaitExit(t, spec.ID, 5)
	spec.Command = []string{"sh", "-c", "echo again; " + forever}
	c := s.mustStart(t, spec)
	if c.State != driver.StateRunning || c.Exit != nil {
		t.Errorf("after an exit: %+v", c)
	}
	// The log is appended to.
	if log := awaitLog(t, spec, "again"); !strings.Contains(log, "ran") {
		t.Errorf("the log lost what was in it: %q", log)
	}
}

func (s *suite) startRefuses(t *testing.T) {
	base := s.spec(t, forever)
	for _, tt := range []struct {
		name   string
		change func(*driver.Spec)
		want   error
		text   string
	}{
		{"an unknown runtime", func(s *driver.Spec) { s.Runtime = "kata-qemu" }, driver.ErrRuntime, "kata-qemu"},
		{"an image that is not there", func(s *driver.Spec) { s.Image = "oci:/nowhere:1" }, driver.ErrImage, "/nowhere"},
		{"an id with detach in it", func(s *driver.Spec) { s.ID = "a-detach-b" }, nil, "detach"},
		{"an id with a slash", func(s *driver.Spec) { s.ID = "a/b" }, nil, "a/b"},
		{"a negative limit", func(s *driver.Spec) { s.Limits.Memory = -1 }, nil, "negative"},
	} {
		spec := base
		tt.change(&spec)
		_, err := s.Driver.Start(s.ctx(t), spec)
		if err == nil || tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	if c, ok := find(t, s.Driver, base.ID); ok {
		t.Errorf("a refused start left %+v", c)
	}
	if s.Simulated {
		return
	}
	missing := s.spec(t, "")
	missing.Command = []string{"/no/such/program"}
	c, err := s.Driver.Start(s.ctx(t), missing)
	if err == nil || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("a program that is not there: %+v, %v", c, err)
	}
	if c, ok := find(t, s.Driver, missing.ID); ok {
		t.Errorf("a failed start left %+v", c)
	}
}

func (s *suite) fastExits(t *testing.T) {
	var specs []driver.Spec
	for i := range 20 {
		stream := [...]string{"", " >&2"}[i%2]
		spec := s.spec(t, fmt.Sprintf("echo said-%d%s; exit %d", i, stream, i+1))
		specs = append(specs, spec)
		s.mustStart(t, spec)
	}
	for i, spec := range specs {
		s.awaitExit(t, spec.ID, i+1)
		awaitLog(t, spec, fmt.Sprintf("said-%d", i))
	}
	if s.Simulated {
		return
	}
	// One stream goes on when the other has ended.
	half := s.spec(t, "exec >&-; sleep 0.3; echo later >&2; exit 4")
	s.mustStart(t, half)
	s.awaitExit(t, half.ID, 4)
	awaitLog(t, half, "later")
}

func (s *suite) stop(t *testing.T) {
	polite := s.spec(t, "trap 'exit 7' TERM; echo ready; while true; do sleep 0.05; done")
	s.mustStart(t, polite)
	awaitLog(t, polite, "ready")
	if err := s.Driver.Stop(s.ctx(t), polite.ID, 20*time.Second); err != nil {
		t.Errorf("stop: %v", err)
	}
	// It has exited when Stop returns.
	if c, _ := find(t, s.Driver, polite.ID); c.State != driver.StateExited || c.Exit == nil || c.Exit.Code != 7 {
		t.Errorf("stopped: %+v %+v", c, c.Exit)
	}
	if err := s.Driver.Stop(s.ctx(t), polite.ID, 0); err != nil {
		t.Errorf("stop of what has exited: %v", err)
	}

	deaf := s.spec(t, "trap '' TERM; echo ready; while true; do sleep 0.05; done")
	s.mustStart(t, deaf)
	awaitLog(t, deaf, "ready")
	began := time.Now()
	if err := s.Driver.Stop(s.ctx(t), deaf.ID, 500*time.Millisecond); err != nil {
		t.Errorf("stop: %v", err)
	}
	if took := time.Since(began); took < 400*time.Millisecond || took > 15*time.Second {
		t.Errorf("stop with half a second of grace took %v", took)
	}
	if c, _ := find(t, s.Driver, deaf.ID); c.State != driver.StateExited || c.Exit.Code != 137 || c.Exit.Reason == "" {
		t.Errorf("stopped: %+v %+v", c, c.Exit)
	}
}

func (s *suite) signal(t *testing.T) {
	spec := s.spec(t, "trap 'echo got-usr1' USR1; trap 'exit 9' INT; echo ready; while true; do sleep 0.05; done")
	s.mustStart(t, spec)
	awaitLog(t, spec, "ready")
	if err := s.Driver.Signal(s.ctx(t), spec.ID, "SIGUSR1"); err != nil {
		t.Errorf("signal: %v", err)
	}
	awaitLog(t, spec, "got-usr1")
	if err := s.Driver.Signal(s.ctx(t), spec.ID, "SIGNONE"); err == nil || !strings.Contains(err.Error(), "SIGNONE") {
		t.Errorf("an unknown signal: %v", err)
	}
	if err := s.Driver.Signal(s.ctx(t), spec.ID, "SIGINT"); err != nil {
		t.Errorf("signal: %v", err)
	}
	s.awaitExit(t, spec.ID, 9)
	if err := s.Driver.Signal(s.ctx(t), spec.ID, "SIGINT"); !errors.Is(err, driver.ErrNotRunning) {
		t.Errorf("signal to what has exited: %v", err)
	}
}

func (s *suite) pause(t *testing.T) {
	spec := s.spec(t, "trap 'exit 7' TERM; i=0; while true; do i=$((i+1)); echo tick; sleep 0.05; done")
	c := s.mustStart(t, spec)
	awaitLog(t, spec, "tick")
	for range 2 { // the second time it is paused already
		if err := s.Driver.Pause(s.ctx(t), spec.ID); err != nil {
			t.Fatalf("pause: %v", err)
		}
	}
	if now := s.await(t, spec.ID, driver.StatePaused); now.Pid != c.Pid {
		t.Errorf("paused: %+v", now)
	}
	time.Sleep(100 * time.Millisecond) // what was on its way to the log
	size := func() int64 {
		info, err := os.Stat(spec.LogPath)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	frozen := size()
	time.Sleep(300 * time.Millisecond)
	if size() != frozen {
		t.Errorf("it went on while paused: %d bytes, then %d", frozen, size())
	}
	if again := s.mustStart(t, spec); again.Pid != c.Pid {
		t.Errorf("start of what is paused: %+v", again)
	}
	for range 2 {
		if err := s.Driver.Resume(s.ctx(t), spec.ID); err != nil {
			t.Fatalf("resume: %v", err)
		}
	}
	s.await(t, spec.ID, driver.StateRunning)
	for deadline := time.Now().Add(10 * time.Second); size() == frozen; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not go on after resume")
		}
	}
	if err := s.Driver.Pause(s.ctx(t), spec.ID); err != nil {
		t.Fatalf("pause: %v", err)
	}
	// What is paused still gets its SIGTERM and its grace.
	if err := s.Driver.Stop(s.ctx(t), spec.ID, 20*time.Second); err != nil {
		t.Errorf("stop of what is paused: %v", err)
	}
	s.awaitExit(t, spec.ID, 7)
}

func (s *suite) oom(t *testing.T) {
	spec := s.spec(t, "echo ready; exec tail /dev/zero")
	spec.Limits.Memory = 32 << 20
	s.mustStart(t, spec)
	e := s.awaitExit(t, spec.ID, 137)
	if !e.OOM || !strings.Contains(e.Reason, "memory limit of 32 MiB") {
		t.Errorf("exit %+v", e)
	}
	// Being killed is not being out of memory.
	killed := s.spec(t, forever)
	killed.Limits.Memory = 32 << 20
	s.mustStart(t, killed)
	if err := s.Driver.Stop(s.ctx(t), killed.ID, 0); err != nil {
		t.Errorf("stop: %v", err)
	}
	if e := s.awaitExit(t, killed.ID, 137); e.OOM {
		t.Errorf("exit %+v", e)
	}
}

func (s *suite) stats(t *testing.T) {
	spec := s.spec(t, "while true; do :; done")
	spec.Limits = driver.Limits{CPUMillis: 200, Memory: 64 << 20, Pids: 64}
	s.mustStart(t, spec)
	time.Sleep(300 * time.Millisecond)
	a, err := s.Driver.Stats(s.ctx(t), spec.ID)
	if err != nil {
		t.Fatalf("stats: %v", err)
	}
	began := time.Now()
	time.Sleep(2 * time.Second)
	b, err := s.Driver.Stats(s.ctx(t), spec.ID)
	if err != nil {
		t.Fatalf("stats: %v", err)
	}
	used, took := b.CPU-a.CPU, time.Since(began)
	if used <= 0 || used > took*32/100 { // 0.2 of a core, and some room
		t.Errorf("a busy loop with 0.2 of a core used %v in %v", used, took)
	}
	if b.Memory <= 0 || b.Memory > 128<<20 || b.Pids < 1 {
		t.Errorf("stats %+v", b)
	}
	if err := s.Driver.Stop(s.ctx(t), spec.ID, 0); err != nil {
		t.Errorf("stop: %v", err)
	}
	if _, err := s.Driver.Stats(s.ctx(t), spec.ID); !errors.Is(err, driver.ErrNotRunning) {
		t.Errorf("stats of what has exited: %v", err)
	}
}

func (s *suite) list(t *testing.T) {
	a, b := s.spec(t, forever), s.spec(t, "exit 3")
	s.mustStart(t, b)
	s.mustStart(t, a)
	s.awaitExit(t, b.ID, 3)
	list, err := s.Driver.List(s.ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for i, c := range list {
		if i > 0 && list[i-1].ID >= c.ID {
			t.Errorf("not sorted: %s, %s", list[i-1].ID, c.ID)
		}
		if c.ID == a.ID || c.ID == b.ID {
			seen++
		}
	}
	if seen != 2 {
		t.Errorf("list %+v", list)
	}
}

func (s *suite) changed(t *testing.T) {
	spec := s.spec(t, "sleep 0.3; exit 4")
	s.mustStart(t, spec)
	deadline := time.After(20 * time.Second)
	for {
		select {
		case <-s.Driver.Changed():
		case <-deadline:
			t.Fatal("an exit was not told within 20 s")
		}
		if c, _ := find(t, s.Driver, spec.ID); c.State == driver.StateExited {
			return
		}
	}
}

func (s *suite) absent(t *testing.T) {
	ctx := s.ctx(t)
	const id = "conf-absent"
	_, statsErr := s.Driver.Stats(ctx, id)
	_, execErr := s.Driver.Exec(ctx, id, driver.ExecSpec{Command: []string{"true"}}, driver.Streams{})
	for op, err := range map[string]error{
		"stop": s.Driver.Stop(ctx, id, 0), "signal": s.Driver.Signal(ctx, id, "SIGTERM"),
		"pause": s.Driver.Pause(ctx, id), "resume": s.Driver.Resume(ctx, id),
		"stats": statsErr, "exec": execErr,
	} {
		if !errors.Is(err, driver.ErrNotFound) || !strings.Contains(err.Error(), id) {
			t.Errorf("%s: %v", op, err)
		}
	}
	if err := s.Driver.Delete(ctx, id); err != nil {
		t.Errorf("delete: %v", err)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := s.Driver.Start(gone, s.spec(t, forever)); err == nil {
		t.Error("a start with a context that has ended succeeded")
	}
}

func (s *suite) deleteAnything(t *testing.T) {
	ctx := s.ctx(t)
	running, exited, paused := s.spec(t, forever), s.spec(t, "exit 1"), s.spec(t, forever)
	for _, spec := range []driver.Spec{running, exited, paused} {
		s.mustStart(t, spec)
	}
	s.awaitExit(t, exited.ID, 1)
	if err := s.Driver.Pause(ctx, paused.ID); err != nil {
		t.Errorf("pause: %v", err)
	}
	for _, spec := range []driver.Spec{running, exited, paused} {
		for range 2 {
			if err := s.Driver.Delete(ctx, spec.ID); err != nil {
				t.Errorf("delete %s: %v", spec.ID, err)
			}
		}
		if c, ok := find(t, s.Driver, spec.ID); ok {
			t.Errorf("deleted: %+v", c)
		}
	}
}
