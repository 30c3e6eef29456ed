package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/agent/store"
	"redoubt.dev/redoubt/isolation"
)

func settleFor(d time.Duration) { time.Sleep(d); synctest.Wait() }

func wantPhase(t *testing.T, w *world, uid string, want store.Phase) {
	t.Helper()
	if f := w.fact(uid); f.Phase != want {
		t.Fatalf("%s is %q (%s), want %q; calls: %s", uid, f.Phase, f.Message, want, strings.Join(w.calls, ", "))
	}
}

func TestStoresBeforeItActs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.assignments = []Assignment{service("a", "web-1", 1)}
		// A disk that takes nothing: nothing may happen on the node.
		w.fail = func(call string) error {
			if strings.HasPrefix(call, "put ") {
				return errors.New("no space left on device")
			}
			return nil
		}
		stop := w.agent()
		settleFor(time.Minute)
		if w.starts["rd-a"] != 0 || len(w.networks) != 0 || slices.ContainsFunc(w.calls, func(c string) bool { return strings.HasPrefix(c, "image") }) {
			t.Errorf("the agent acted on what it could not store: %v", w.calls)
		}
		w.set(func() { w.fail = nil })
		settleFor(time.Minute)
		wantPhase(t, w, "a", store.Running)
		stop()
	})
}

// TestCrashAtEveryStep kills the agent at each of its calls in turn, before and
// after its effect, through the life of a service, a job and a stop, and starts
// it again. world checks at every call that nothing runs twice, that nothing
// starts unstored, and that nothing is final before it is gone.
func TestCrashAtEveryStep(t *testing.T) {
	for _, after := range []bool{false, true} {
		for at := 1; ; at++ {
			crashed := false
			t.Run(fmt.Sprintf("call %d after=%v", at, after), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t)
					w.assignments = []Assignment{service("a", "web-1", 1), job("j", "batch-1", OnFailure, 2)}
					w.crashAt, w.after = at, after
					stop := w.agent()
					revive := func() {
						settleFor(20 * time.Second)
						w.mu.Lock()
						dead := w.dead
						w.mu.Unlock()
						if dead {
							crashed = true
							stop()
							stop = w.agent()
							settleFor(20 * time.Second)
						}
					}
					revive()
					wantPhase(t, w, "a", store.Running)
					wantPhase(t, w, "j", store.Running)
					if n := w.starts["rd-a"]; n != 1 {
						t.Errorf("a was started %d times", n)
					}
					pid := w.fact("a").Pid
					w.exit("j", 3)
					revive()
					wantPhase(t, w, "j", store.Running)
					if f := w.fact("j"); f.Failures != 1 || f.Restarts != 1 {
						t.Errorf("one failure was counted %d times, %d restarts", f.Failures, f.Restarts)
					}
					w.exit("j", 0)
					revive()
					wantPhase(t, w, "j", store.Succeeded)
					if w.starts["rd-j"] != 2 {
						t.Errorf("the job was started %d times, want 2", w.starts["rd-j"])
					}
					if f := w.fact("a"); f.Pid != pid || w.starts["rd-a"] != 1 {
						t.Errorf("a was touched: pid %d, was %d", f.Pid, pid)
					}
					w.set(func() { w.assignments[0].Stop = true })
					revive()
					wantPhase(t, w, "a", store.Stopped)
					w.set(func() { w.assignments = nil })
					revive()
					if len(w.facts)+len(w.containers)+len(w.networks) != 0 {
						t.Errorf("left over: %v %v %v", w.facts, w.containers, w.networks)
					}
					stop()
				})
			})
			if !crashed {
				if at < 15 {
					t.Fatalf("only %d calls were made: the story does not reach what it is about", at)
				}
				break
			}
		}
	}
}

func TestRestartOfTheAgentTouchesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.assignments = []Assignment{service("a", "web-1", 1)}
		stop := w.agent()
		settleFor(time.Second)
		before := *w.containers["rd-a"]
		seq := w.fact("a").Sequence
		stop()
		settleFor(time.Hour)
		stop = w.agent()
		settleFor(time.Minute)
		stop()
		if c := *w.containers["rd-a"]; c.Pid != before.Pid || !c.StartedAt.Equal(before.StartedAt) {
			t.Errorf("container changed: %+v, was %+v", c, before)
		}
		if w.fact("a").Sequence != seq {
			t.Errorf("status changed although nothing happened")
		}
	})
}

func TestServiceBacksOffDoublingAndBeginsAnewAfterTenMinutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.assignments = []Assignment{service("a", "web-1", 1)}
		stop := w.agent()
		defer stop()
		settleFor(time.Second)
		want := time.Second
		for range 12 {
			w.exit("a", 1)
			synctest.Wait()
			f := w.fact("a")
			if f.Phase != store.BackOff || f.Delay != want {
				t.Fatalf("delay is %s, want %s", f.Delay, want)
			}
			if d := f.NotBefore.At - w.now().At; d < want*9/10 || d > want*11/10 {
				t.Fatalf("starts again in %s, want about %s", d, want)
			}
			settleFor(want * 8 / 10)
			wantPhase(t, w, "a", store.BackOff)
			settleFor(want*3/10 + time.Millisecond)
			wantPhase(t, w, "a", store.Running)
			want = min(2*want, 5*time.Minute)
		}
		settleFor(11 * time.Minute)
		w.exit("a", 1)
		synctest.Wait()
		if f := w.fact("a"); f.Delay != time.Second {
			t.Fatalf("after a steady run the delay is %s", f.Delay)
		}
	})
}

func TestJobRules(t *testing.T) {
	for _, tc := range []struct {
		name   string
		r      Restart
		limit  uint32
		exits  []int
		want   store.Phase
		starts int
	}{
		{"success", OnFailure, 3, []int{0}, store.Succeeded, 1},
		{"fails, then succeeds", OnFailure, 3, []int{1, 2, 0}, store.Succeeded, 3},
		{"fails beyond the limit", OnFailure, 2, []int{1, 1, 1}, store.Failed, 3},
		{"no failure is borne", OnFailure, 0, []int{1}, store.Failed, 1},
		{"never restarts", Never, 3, []int{1}, store.Failed, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.assignments = []Assignment{job("j", "batch-1", tc.r, tc.limit)}
				stop := w.agent()
				defer stop()
				for _, code := range tc.exits {
					settleFor(10 * time.Second)
					wantPhase(t, w, "j", store.Running)
					w.exit("j", code)
				}
				settleFor(10 * time.Second)
				wantPhase(t, w, "j", tc.want)
				if w.starts["rd-j"] != tc.starts {
					t.Errorf("%d starts, want %d", w.starts["rd-j"], tc.starts)
				}
				if f := w.fact("j"); f.ExitCode != tc.exits[len(tc.exits)-1] {
					t.Errorf("exit code is %d", f.ExitCode)
				}
			})
		})
	}
}

// A job may end before the start that made it has returned. The loop sees it
// exited meanwhile and must let the start finish: cut short, it would take the
// container away, and the job would run a second time.
func TestAnExitDuringItsOwnStartIsCountedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.assignments = []Assignment{job("j", "batch-1", Never, 0)}
		w.late = func(ctx context.Context) error {
			w.exit("j", 7)
			if w.starts["rd-j"] > 3 {
				return nil // it ran too often; let the test end and say so
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Second):
				return nil
			}
		}
		stop := w.agent()
		defer stop()
		settleFor(time.Minute)
		wantPhase(t, w, "j", store.Failed)
		if w.starts["rd-j"] != 1 {
			t.Errorf("it ran %d times", w.starts["rd-j"])
		}
		if f := w.fact("j"); f.ExitCode != 7 {
			t.Errorf("exit code is %d", f.ExitCode)
		}
	})
}

func TestAProgramThatCannotBeRunCountsLikeAnExit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.assignments = []Assignment{job("j", "batch-1", Never, 0), service("s", "web-1", 1)}
		w.fail = func(call string) error {
			if strings.HasPrefix(call, "start ") {
				return &driver.CommandError{Code: 127, Reason: `the program "x" is not there`}
			}
			return nil
		}
		stop := w.agent()
		defer stop()
		settleFor(10 * time.Second)
		wantPhase(t, w, "j", store.Failed)
		if f := w.fact("j"); f.ExitCode != 127 || f.Message != `the program "x" is not there` {
			t.Errorf("told as %d %q", f.ExitCode, f.Message)
		}
		if f := w.fact("s"); f.Phase != store.BackOff || f.Restarts == 0 || f.Message == "" {
			t.Errorf("a service is told as %+v", f)
		}
	})
}

func TestStuckInstanceBlocksNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.assignments = []Assignment{service("a", "web-1", 1), service("b", "web-2", 1)}
		w.hang = func(ctx context.Context, call string) {
			if call == "start rd-a" {
				<-ctx.Done()
			}
		}
		stop := w.agent()
		defer stop()
		settleFor(time.Second)
		wantPhase(t, w, "b", store.Running)
		wantPhase(t, w, "a", store.Starting)
		w.exit("b", 1)
		settleFor(5 * time.Second)
		wantPhase(t, w, "b", store.Running)
		// A stuck start ends with its deadline and is told.
		settleFor(2 * time.Minute)
		if f := w.fact("a"); f.Restarts != 0 || f.Message == "" && f.Phase == store.BackOff {
			t.Errorf("a stuck start is told as %+v", f)
		}
		// and a stop does not wait for it.
		w.set(func() { w.assignments[0].Stop = true })
		settleFor(time.Second)
		wantPhase(t, w, "a", store.Stopped)
	})
}

func TestNothingUnknownIsSweptWithoutAuthority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.complete = false
		w.containers["rd-x"] = &driver.Container{ID: "rd-x", State: driver.StateRunning, Pid: 7}
		w.containers["canary-1"] = &driver.Container{ID: "canary-1", State: driver.StateRunning, Pid: 8}
		w.networks["y"] = ""
		stop := w.agent()
		defer stop()
		settleFor(time.Minute)
		if len(w.containers) != 2 || len(w.networks) != 1 {
			t.Fatal("something was swept although no complete set of assignments was ever stored")
		}
		w.set(func() { w.complete = true })
		settleFor(time.Minute)
		if w.containers["rd-x"] != nil || len(w.networks) != 0 {
			t.Error("what is not assigned was not swept")
		}
		if w.containers["canary-1"] == nil {
			t.Error("what is not an instance was swept")
		}
	})
}

func TestOfTwoTheOlderStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.assignments = []Assignment{service("old", "web-1", 5)}
		stop := w.agent()
		defer stop()
		settleFor(time.Second)
		w.set(func() { w.assignments = append(w.assignments, service("new", "web-1", 9)) })
		settleFor(5 * time.Second)
		wantPhase(t, w, "old", store.Stopped)
		wantPhase(t, w, "new", store.Running)
		if msg := w.fact("old").Message; !strings.Contains(msg, "fence 9") {
			t.Errorf("old says %q", msg)
		}
	})
}

func TestRejectsBelowTheFloor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		weak := service("a", "web-1", 1)
		weak.Runtime, weak.Variant, weak.Floor = "runc", "", isolation.ClassSandbox
		gone := service("b", "web-2", 1)
		gone.Variant = "kvm"
		w.assignments = []Assignment{weak, gone}
		stop := w.agent()
		defer stop()
		settleFor(time.Second)
		wantPhase(t, w, "a", store.Rejected)
		wantPhase(t, w, "b", store.Rejected)
		if m := w.fact("a").Message; m != "runc gives container here, below the floor sandbox" {
			t.Errorf("a says %q", m)
		}
		if m := w.fact("b").Message; m != "gvisor (kvm) is not on this node" {
			t.Errorf("b says %q", m)
		}
		if len(w.starts) != 0 {
			t.Error("it was started all the same")
		}
	})
}

func TestAfterARebootItProvesBeforeItStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.assignments = []Assignment{service("a", "web-1", 1)}
		stop := w.agent()
		settleFor(time.Second)
		stop()
		w.boot, w.containers, w.proven, w.offline = "boot-2", map[driver.ID]*driver.Container{}, false, true
		stop = w.agent()
		defer stop()
		settleFor(time.Minute)
		if w.starts["rd-a"] != 1 {
			t.Fatal("started before the runtimes were proven in this boot")
		}
		if m := w.fact("a").Message; !strings.Contains(m, "proven") {
			t.Errorf("it says %q", m)
		}
		w.set(func() { w.proven = true })
		settleFor(11 * time.Second)
		wantPhase(t, w, "a", store.Running)
		if f := w.fact("a"); f.Restarts != 1 || f.Failures != 0 {
			t.Errorf("a reboot was counted as %d restarts, %d failures", f.Restarts, f.Failures)
		}
	})
}

func TestOfflineAFallenProofHoldsInsteadOfRejecting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.assignments = []Assignment{service("a", "web-1", 1)}
		stop := w.agent()
		defer stop()
		settleFor(time.Second)
		w.set(func() {
			w.offline = true
			w.findings[0].State, w.findings[0].Reason = isolation.StateUnusable, "runsc is gone"
		})
		settleFor(time.Minute)
		wantPhase(t, w, "a", store.Running) // what runs is left running
		w.exit("a", 1)
		settleFor(time.Minute)
		wantPhase(t, w, "a", store.BackOff)
		if m := w.fact("a").Message; !strings.Contains(m, "runsc is gone") {
			t.Errorf("it says %q", m)
		}
		w.set(func() { w.offline = false })
		settleFor(time.Second)
		wantPhase(t, w, "a", store.Rejected)
	})
}

func TestLease(t *testing.T) {
	safe := func() Assignment {
		a := service("a", "web-1", 1)
		a.StopAfter = time.Minute
		return a
	}
	renew := func(w *world) { w.set(func() { w.lease.Renewed = store.Moment{Boot: w.boot, At: time.Since(epoch)} }) }

	t.Run("ends a Safe instance, and no other", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.assignments = []Assignment{safe(), service("b", "web-2", 1)}
			stop := w.agent()
			defer stop()
			settleFor(time.Second)
			if w.starts["rd-a"] != 0 {
				t.Fatal("started without a lease")
			}
			renew(w)
			settleFor(59 * time.Second)
			wantPhase(t, w, "a", store.Running)
			settleFor(time.Second + time.Millisecond)
			if s := w.state("a"); s == driver.StateRunning {
				t.Fatal("outlived its lease")
			}
			settleFor(time.Hour)
			wantPhase(t, w, "a", store.Stopped)
			wantPhase(t, w, "b", store.Running)
			// What has ended may have been replaced: it does not rise again.
			renew(w)
			settleFor(time.Minute)
			wantPhase(t, w, "a", store.Stopped)
		})
	})
	t.Run("holds over a restart of the agent", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.assignments = []Assignment{safe()}
			renew(w)
			stop := w.agent()
			settleFor(time.Second)
			stop()
			settleFor(2 * time.Minute)
			if w.state("a") != driver.StateRunning {
				t.Fatal("ended without an agent")
			}
			stop = w.agent()
			defer stop()
			settleFor(time.Second)
			wantPhase(t, w, "a", store.Stopped)
		})
	})
	t.Run("a reboot waits for contact", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.assignments = []Assignment{safe()}
			renew(w)
			stop := w.agent()
			settleFor(time.Second)
			stop()
			w.boot, w.containers = "boot-2", map[driver.ID]*driver.Container{}
			stop = w.agent()
			defer stop()
			settleFor(time.Hour)
			if w.starts["rd-a"] != 1 {
				t.Fatal("started in a boot without a lease")
			}
			renew(w)
			settleFor(time.Second)
			wantPhase(t, w, "a", store.Running)
		})
	})
}

func TestRefusalsRejectAndOtherFailuresRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		path := service("c", "web-3", 1)
		path.Container.Mounts = []driver.Mount{{HostPath: "/etc", Path: "/x"}}
		w.assignments = []Assignment{service("a", "web-1", 1), service("b", "web-2", 1), path}
		w.fail = func(call string) error {
			switch call {
			case "attach a":
				return fmt.Errorf("%w: host port 80 is held by web-9", ErrRefused)
			case "image img":
				if time.Since(epoch) < 10*time.Second {
					return fmt.Errorf("%w: registry is down", driver.ErrImage)
				}
			}
			return nil
		}
		stop := w.agent()
		defer stop()
		settleFor(2 * time.Second)
		if f := w.fact("b"); f.Phase != store.BackOff || !strings.Contains(f.Message, "registry is down") || f.Failures != 0 {
			t.Errorf("a missing image is told as %+v", f)
		}
		settleFor(time.Minute)
		wantPhase(t, w, "b", store.Running)
		wantPhase(t, w, "a", store.Rejected)
		wantPhase(t, w, "c", store.Rejected)
		if m := w.fact("c").Message; !strings.Contains(m, "--allow-host-path=/etc") {
			t.Errorf("no remedy in %q", m)
		}
	})
}
