package conformance

import (
	"errors"
	"testing"
	"time"

	"redoubt.dev/redoubt/agent/driver"
)

func (s *suite) boundaryKilled(t *testing.T) {
	needs(t, s.KillBoundary != nil, "kill the boundary process")
	spec := s.spec(t, forever)
	c := s.mustStart(t, spec)
	s.KillBoundary(t, c)
	if e := s.awaitExit(t, spec.ID, 137); e.OOM {
		t.Errorf("exit %+v", e)
	}
	if again := s.mustStart(t, spec); again.Pid == c.Pid || again.State != driver.StateRunning {
		t.Errorf("started again: %+v", again)
	}
}

func (s *suite) boundaryStopped(t *testing.T) {
	needs(t, s.StopBoundary != nil, "stop the boundary process")
	for _, end := range []string{"stop", "delete"} {
		spec := s.spec(t, forever)
		s.StopBoundary(t, s.mustStart(t, spec))
		began := time.Now()
		var err error
		if end == "stop" {
			err = s.Driver.Stop(s.ctx(t), spec.ID, time.Second)
		} else {
			err = s.Driver.Delete(s.ctx(t), spec.ID)
		}
		if took := time.Since(began); err != nil || took > 30*time.Second {
			t.Errorf("%s of a container whose boundary is stopped: %v after %v", end, err, took)
		}
		if c, ok := find(t, s.Driver, spec.ID); ok && c.State != driver.StateExited {
			t.Errorf("after %s: %+v", end, c)
		}
	}
}

func (s *suite) shimKilled(t *testing.T) {
	needs(t, s.KillShim != nil, "kill a shim")
	spec := s.spec(t, forever)
	c := s.mustStart(t, spec)
	s.KillShim(t, spec.ID)
	now := s.await(t, spec.ID, driver.StateExited)
	if now.Exit == nil || !now.Exit.Lost || now.Exit.Reason == "" {
		t.Errorf("its shim was killed: %+v", now.Exit)
	}
	if again := s.mustStart(t, spec); again.Pid == c.Pid || again.State != driver.StateRunning {
		t.Errorf("started again: %+v", again)
	}
}

func (s *suite) shimStopped(t *testing.T) {
	needs(t, s.StopShim != nil, "stop a shim")
	well, ill, stuck := s.spec(t, forever), s.spec(t, forever), s.spec(t, forever)
	for _, spec := range []driver.Spec{well, ill, stuck} {
		s.mustStart(t, spec)
	}
	s.StopShim(t, ill.ID)
	s.StopShim(t, stuck.ID)
	began := time.Now()
	list, err := s.Driver.List(s.ctx(t))
	if took := time.Since(began); err != nil || took > 10*time.Second {
		t.Fatalf("list beside a stopped shim: %v after %v", err, took)
	}
	for _, c := range list {
		want := map[driver.ID]driver.State{
			well.ID: driver.StateRunning, ill.ID: driver.StateUnknown, stuck.ID: driver.StateUnknown,
		}[c.ID]
		if c.State != want {
			t.Errorf("%s is %v, want %v", c.ID, c.State, want)
		}
	}
	if _, err := s.Driver.Start(s.ctx(t), ill); !errors.Is(err, driver.ErrUnavailable) {
		t.Errorf("start of what does not answer: %v", err)
	}
	if err := s.Driver.Stop(s.ctx(t), stuck.ID, time.Second); err != nil {
		t.Errorf("stop: %v", err)
	}
	if c, _ := find(t, s.Driver, stuck.ID); c.State != driver.StateExited || c.Exit == nil {
		t.Errorf("stopped: %+v", c)
	}
	if err := s.Driver.Delete(s.ctx(t), ill.ID); err != nil {
		t.Errorf("delete: %v", err)
	}
	s.mustStart(t, ill)
}

func (s *suite) restarted(t *testing.T) {
	needs(t, s.RestartRun != nil, "restart the runtime")
	spec := s.spec(t, "i=0; while true; do i=$((i+1)); echo beat-$i; sleep 0.1; done")
	c := s.mustStart(t, spec)
	paused := s.spec(t, forever)
	s.mustStart(t, paused)
	if err := s.Driver.Pause(s.ctx(t), paused.ID); err != nil {
		t.Fatal(err)
	}
	s.RestartRun(t, func() {})
	now := s.await(t, spec.ID, driver.StateRunning)
	if now.Pid != c.Pid || !now.StartedAt.Equal(c.StartedAt) {
		t.Errorf("before %+v, after %+v", c, now)
	}
	s.await(t, paused.ID, driver.StatePaused)
	awaitLog(t, spec, "beat-2")
	if out, code := s.sh(t, spec.ID, "echo works; exit 6"); out != "works\n" || code != 6 {
		t.Errorf("exec after a restart: %q, %d", out, code)
	}
	if again := s.mustStart(t, spec); again.Pid != c.Pid {
		t.Errorf("start after a restart: %+v", again)
	}
	if err := s.Driver.Stop(s.ctx(t), spec.ID, 0); err != nil {
		t.Errorf("stop after a restart: %v", err)
	}
	s.awaitExit(t, spec.ID, 137)
}

func (s *suite) exitWhileDown(t *testing.T) {
	needs(t, s.RestartRun != nil, "restart the runtime")
	good, bad := s.spec(t, "sleep 3; exit 0"), s.spec(t, "sleep 3; exit 42")
	s.mustStart(t, good)
	s.mustStart(t, bad)
	s.RestartRun(t, func() { time.Sleep(4 * time.Second) })
	for id, code := range map[driver.ID]int{good.ID: 0, bad.ID: 42} {
		c := s.await(t, id, driver.StateExited)
		// The truth, or that it is lost; never a wrong code.
		if c.Exit == nil || c.Exit.Code != code && !c.Exit.Lost {
			t.Errorf("%s: exit %+v, want %d", id, c.Exit, code)
		}
		if c.Exit != nil && c.Exit.Lost {
			t.Errorf("%s: the exit code was lost: %+v", id, c.Exit)
		}
	}
}

func (s *suite) orphan(t *testing.T) {
	needs(t, s.LoseTask != nil, "have the runtime lose a container")
	spec := s.spec(t, forever)
	c := s.mustStart(t, spec)
	s.LoseTask(t, spec.ID)
	now, ok := find(t, s.Driver, spec.ID)
	if !ok || !now.Orphan || now.State != driver.StateRunning || now.Pid != c.Pid {
		t.Fatalf("a lost container: %+v, %v; it was %+v", now, ok, c)
	}
	// Never a second beside it.
	again, err := s.Driver.Start(s.ctx(t), spec)
	if err != nil || again.Pid == c.Pid {
		t.Errorf("start over an orphan: %+v, %v", again, err)
	}
	if alive(c.Pid) {
		t.Errorf("pid %d lives beside the new %d", c.Pid, again.Pid)
	}
	s.LoseTask(t, spec.ID)
	if err := s.Driver.Delete(s.ctx(t), spec.ID); err != nil {
		t.Errorf("delete of an orphan: %v", err)
	}
	if alive(again.Pid) {
		t.Errorf("pid %d lives after delete", again.Pid)
	}
	if c, ok := find(t, s.Driver, spec.ID); ok {
		t.Errorf("deleted: %+v", c)
	}
}

func (s *suite) reopen(t *testing.T) {
	needs(t, s.Reopen != nil, "open the same state again")
	running, exited := s.spec(t, forever), s.spec(t, "exit 8")
	running.Labels = map[string]string{"a": "b"}
	c := s.mustStart(t, running)
	s.mustStart(t, exited)
	s.awaitExit(t, exited.ID, 8)

	d := s.Reopen(t)
	now, ok := find(t, d, running.ID)
	if !ok || now.Pid != c.Pid || !now.StartedAt.Equal(c.StartedAt) || now.State != driver.StateRunning || now.Labels["a"] != "b" {
		t.Errorf("before %+v, after %+v", c, now)
	}
	if now, ok := find(t, d, exited.ID); !ok || now.Exit == nil || now.Exit.Code != 8 {
		t.Errorf("exited with 8: %+v", now)
	}
	again, err := d.Start(s.ctx(t), running)
	if err != nil || again.Pid != c.Pid {
		t.Errorf("start after an agent restart: %+v, %v", again, err)
	}
	if err := d.Stop(s.ctx(t), running.ID, 0); err != nil {
		t.Errorf("stop after an agent restart: %v", err)
	}
}

func (s *suite) twoNodes(t *testing.T) {
	needs(t, s.Other != nil, "be another node")
	other := s.Other(t)
	spec := s.spec(t, forever)
	c := s.mustStart(t, spec)
	if seen, ok := find(t, other, spec.ID); ok {
		t.Errorf("the other node sees %+v", seen)
	}
	// The same id on both is two containers.
	if _, err := other.EnsureImage(s.ctx(t), s.Image, driver.PullIfNotPresent, nil); err != nil {
		t.Fatal(err)
	}
	theirs, err := other.Start(s.ctx(t), spec)
	if err != nil || theirs.Pid == c.Pid {
		t.Fatalf("the same id on the other node: %+v, %v", theirs, err)
	}
	if err := other.Delete(s.ctx(t), spec.ID); err != nil {
		t.Errorf("delete on the other node: %v", err)
	}
	if now, ok := find(t, s.Driver, spec.ID); !ok || now.Pid != c.Pid || now.State != driver.StateRunning {
		t.Errorf("after the other node's delete: %+v", now)
	}
}
