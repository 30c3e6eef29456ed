package reconcile

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"redoubt.dev/redoubt/agent/health"
	"redoubt.dev/redoubt/agent/store"
)

func probed(a Assignment) Assignment {
	p := &health.Probe{TCP: 80, Period: time.Second, Timeout: time.Second, Success: 1, Failure: 1}
	a.Probes = health.Probes{Liveness: p, Readiness: p}
	return a
}

// say gives a verdict, as the probes would.
func (w *world) say(uid string, v health.Verdict) {
	w.mu.Lock()
	w.sick[uid] = v
	w.mu.Unlock()
	poke(w.unwell)
}

func TestAFailedLivenessProbeRestartsInPlaceWithABackOff(t *testing.T) {
	for _, failed := range []string{"", "stop rd-a"} { // a stop that fails is done again
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.assignments = []Assignment{probed(service("a", "web-1", 1)), service("b", "web-2", 1)}
			refused := 0
			w.fail = func(call string) error {
				if call == failed && refused < 2 {
					refused++
					return errCrash
				}
				return nil
			}
			stop := w.agent()
			defer stop()
			settleFor(time.Second)
			if f := w.fact("a"); f.NotReady == "" || !f.Up {
				t.Errorf("before its probes answered it is %+v", f)
			}
			if f := w.fact("b"); f.NotReady != "" {
				t.Errorf("without probes it is %+v", f)
			}
			w.say("a", health.Verdict{Up: true})
			synctest.Wait()
			if f := w.fact("a"); f.NotReady != "" || f.Phase != store.Running {
				t.Errorf("ready, and recorded as %+v", f)
			}
			const why = "liveness: tcp :80: connection refused, 3 times"
			for restart := uint32(1); restart < 4; restart++ {
				w.say("a", health.Verdict{Up: true, Dead: why})
				synctest.Wait()
				if failed != "" && restart == 1 { // one second, then two
					settleFor(3 * time.Second)
				}
				f := w.fact("a")
				if f.Phase != store.BackOff || f.Restarts != restart || f.Failures != restart || f.Message != why || f.LastEnd != why || f.Condemned != "" {
					t.Fatalf("restart %d is recorded as %+v", restart, f)
				}
				if want := time.Second << (restart - 1); f.Delay != want {
					t.Errorf("restart %d pauses %s, want %s", restart, f.Delay, want)
				}
				w.mu.Lock()
				delete(w.sick, "a")
				w.mu.Unlock()
				settleFor(2 * f.Delay)
				if f := w.fact("a"); f.Phase != store.Running || f.NotReady == "" || f.LastEnd != why {
					t.Fatalf("afterwards it is %+v", f)
				}
			}
			if w.starts["rd-b"] != 1 {
				t.Error("its neighbour was restarted")
			}
		})
	}
}

func TestAJobThatIsCondemnedHasFailedWhateverItsExitCode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.assignments = []Assignment{probed(job("j", "batch-1", Never, 0))}
		stop := w.agent()
		defer stop()
		settleFor(time.Second)
		w.say("j", health.Verdict{Up: true, Dead: "liveness: stuck"})
		settleFor(5 * time.Second)
		wantPhase(t, w, "j", store.Failed)
		if m := w.fact("j").Message; !strings.HasPrefix(m, "liveness: stuck") {
			t.Errorf("it says %q", m)
		}
	})
}

// Neither readiness nor the startup that has succeeded is forgotten with the
// agent, and what had to be restarted still is.
func TestProbesGoOnAfterARestartOfTheAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.assignments = []Assignment{probed(service("a", "web-1", 1))}
		stop := w.agent()
		settleFor(time.Second)
		w.say("a", health.Verdict{Up: true})
		settleFor(time.Second)
		seq := w.fact("a").Sequence
		stop()
		w.mu.Lock()
		clear(w.sick) // the next agent's probes have not answered yet
		w.watched = nil
		w.mu.Unlock()
		settleFor(time.Minute)
		stop = w.agent()
		settleFor(time.Second)
		if f := w.fact("a"); f.NotReady != "" || !f.Up || f.Sequence != seq || w.starts["rd-a"] != 1 {
			t.Errorf("the restart of the agent made it %+v", f)
		}
		w.mu.Lock()
		if len(w.watched) != 1 || !w.watched[0].Before.Up || w.watched[0].Before.NotReady != "" || w.watched[0].Age < time.Minute {
			t.Errorf("its probes begin anew: %+v", w.watched)
		}
		// The agent dies between the decision and the stop.
		w.crashAt = w.count + 2
		w.mu.Unlock()
		w.say("a", health.Verdict{Up: true, Dead: "liveness: stuck"})
		settleFor(time.Second)
		stop()
		if f := w.fact("a"); f.Condemned != "liveness: stuck" || f.Phase != store.Running {
			t.Fatalf("the decision is not on disk: %+v", f)
		}
		w.mu.Lock()
		clear(w.sick)
		w.mu.Unlock()
		stop = w.agent()
		defer stop()
		settleFor(3 * time.Second)
		if f := w.fact("a"); f.Restarts != 1 || f.LastEnd != "liveness: stuck" || w.starts["rd-a"] != 2 {
			t.Errorf("what was decided was not done: %+v", f)
		}
	})
}
