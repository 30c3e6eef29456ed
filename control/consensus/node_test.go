package consensus

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

func TestAcknowledgedSurvivesTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := three(t)
		defer s.stopAll()
		first := s.leader()
		mustPropose(t, first, role("k1", "ann"))
		s.cut(first)
		second := s.leader(first)
		if !has(second, "ann") {
			t.Fatal("the new leader does not know what the old one acknowledged")
		}
		mustPropose(t, second, role("k2", "bob"))
		s.heal(first)
		eventually(t, "the old leader catches up", func() bool { return has(first, "bob") })
	})
}

func TestOutcomeUnknownThenDoneOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := three(t)
		defer s.stopAll()
		old := s.leader()
		s.cut(old)
		_, err := old.Propose(within(t, time.Minute), role("k1", "ann"))
		if !errors.Is(err, ErrOutcomeUnknown) {
			t.Fatalf("proposing while cut off: %v, want ErrOutcomeUnknown", err)
		}
		lead := s.leader(old)
		r := mustPropose(t, lead, role("k1", "ann"))
		again := mustPropose(t, lead, role("k1", "ann"))
		if r.Duplicate || !again.Duplicate || again.Index != r.Index || again.Results[0].GetResult() != "created" {
			t.Fatalf("first %+v, again %+v: want the first results", r, again)
		}
		s.heal(old)
		eventually(t, "the old leader follows", func() bool { return has(old, "ann") && !old.IsLeader() })
		_, err = old.Propose(within(t, time.Second), role("k2", "bob"))
		var e *NotLeaderError
		if !errors.As(err, &e) || e.LeaderID != lead.id || e.LeaderAddress != "at-"+lead.id || !errors.Is(err, ErrNotLeader) {
			t.Fatalf("a follower answered %v, want the leader's name", err)
		}
	})
}

func TestADeadlineLeavesTheOutcomeUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := three(t)
		defer s.stopAll()
		lead := s.leader()
		s.cut(lead)
		_, err := lead.Propose(within(t, 20*time.Millisecond), role("k1", "ann"))
		if !errors.Is(err, ErrOutcomeUnknown) || !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v", err)
		}
	})
}

func TestADeposedLeaderRefusesReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := three(t)
		defer s.stopAll()
		lead := s.leader()
		if err := lead.VerifyRead(within(t, time.Second)); err != nil {
			t.Fatalf("the leader refuses a read: %v", err)
		}
		for _, m := range s.m {
			if m != lead {
				if err := m.VerifyRead(within(t, time.Second)); !errors.Is(err, ErrNotLeader) {
					t.Fatalf("follower %s: %v", m.id, err)
				}
			}
		}
		s.cut(lead)
		synctest.Wait() // answers that were under way have come in
		// It still believes that it leads: nobody has told it otherwise.
		if !lead.IsLeader() {
			t.Fatal("the test is void: the leader stepped down already")
		}
		if err := lead.VerifyRead(within(t, 10*time.Second)); !errors.Is(err, ErrNotLeader) {
			t.Fatalf("cut off, the leader answered a read: %v", err)
		}
	})
}

func TestLeadRunsWithinTheTerm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := three(t)
		defer s.stopAll()
		lead := s.leader()
		ctx, cancel := context.WithCancel(context.Background())
		var mu sync.Mutex
		var terms []uint64
		running := 0
		done := make(chan error, 1)
		go func() {
			done <- lead.Lead(ctx, func(ctx context.Context, term uint64) error {
				mu.Lock()
				terms, running = append(terms, term), running+1
				mu.Unlock()
				<-ctx.Done()
				mu.Lock()
				running--
				mu.Unlock()
				return ctx.Err()
			})
		}()
		count := func() (int, int) { mu.Lock(); defer mu.Unlock(); return running, len(terms) }
		eventually(t, "it runs", func() bool { r, _ := count(); return r == 1 })
		s.cut(lead)
		eventually(t, "it ends with the term", func() bool { r, _ := count(); return r == 0 })
		other := s.leader(lead)
		s.heal(lead)
		if err := other.Transfer(within(t, 5*time.Second)); err != nil {
			t.Fatal(err)
		}
		for s.leader() != lead { // until it is its turn again
			if err := s.leader().Transfer(within(t, 5*time.Second)); err != nil && !errors.Is(err, ErrNotLeader) {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		eventually(t, "it runs again", func() bool { r, n := count(); return r == 1 && n >= 2 })
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		mu.Lock()
		defer mu.Unlock()
		for i := 1; i < len(terms); i++ {
			if terms[i] <= terms[i-1] {
				t.Fatalf("terms %v do not grow", terms)
			}
		}
	})
}

func TestACleanStopHandsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := three(t)
		defer s.stopAll()
		lead := s.leader()
		at := time.Now()
		lead.stop()
		delete(s.m, lead.id)
		s.leader()
		if d := time.Since(at); d > 900*time.Millisecond {
			t.Fatalf("a leader after %s: that is an election by silence, not a hand-over", d)
		}
		if _, err := lead.Propose(within(t, time.Second), role("k", "ann")); !errors.Is(err, ErrStopped) {
			t.Fatalf("stopped, Propose says %v", err)
		}
	})
}

func TestALaggingServerInstallsASnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &servers{t: t, m: map[string]*member{}}
		small := func(c *Config) { c.SnapshotEvery, c.Trailing = 10, 5 }
		a := s.start("a", true, small)
		defer s.stopAll()
		s.leader()
		mustPropose(t, a, initCommand())
		for i := range 60 {
			mustPropose(t, a, role("k"+user(i), user(i)))
		}
		if err := a.Snapshot(within(t, 5*time.Second)); err != nil {
			t.Fatal(err)
		}
		low, err := a.kept.Logs.FirstIndex()
		if err != nil || low < 40 {
			t.Fatalf("the log begins at %d (%v): the test is void", low, err)
		}
		b := s.start("b", false, small)
		if _, err := a.AddNonvoter(within(t, 5*time.Second), "b", "at-b"); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the new server has it all", func() bool { return has(b, user(0)) && has(b, user(59)) })
		again := mustPropose(t, a, role("k"+user(3), user(3)))
		if !again.Duplicate {
			t.Fatal("a command id was forgotten over a snapshot")
		}
	})
}

func TestARestartKeepsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := three(t)
		defer s.stopAll()
		mustPropose(t, s.leader(), role("k1", "ann"))
		// All of them first: with two stopped nobody tells the third.
		for _, m := range s.m {
			eventually(t, "all have it", func() bool { return has(m, "ann") })
		}
		for _, m := range s.m {
			m.stop()
		}
		for _, id := range []string{"a", "b", "c"} {
			s.start(id, false, nil)
		}
		lead := s.leader()
		if !has(lead, "ann") {
			t.Fatal("lost by a restart of all")
		}
		if !mustPropose(t, lead, role("k1", "ann")).Duplicate {
			t.Fatal("a command id was forgotten over a restart")
		}
	})
}

// A server ends when it is told to, whatever it is being asked at that moment,
// and whoever asked learns of it.
func TestAServerThatIsAskedToTheLastEnds(t *testing.T) {
	for range 10 {
		synctest.Test(t, func(t *testing.T) {
			s := &servers{t: t, m: map[string]*member{}}
			a := s.start("a", true, nil)
			s.leader()
			mustPropose(t, a, initCommand())
			var asking sync.WaitGroup
			var answers atomic.Int64
			for i := range 32 {
				ask := a.VerifyRead
				if i%2 == 0 {
					ask = a.Barrier
				}
				asking.Go(func() {
					for ask(context.Background()) == nil {
						answers.Add(1)
					}
				})
			}
			for answers.Load() < 500 {
				runtime.Gosched()
			}
			a.stop()
			asking.Wait()
			s.stopAll()
		})
	}
}

func TestRemovedServerDoesNotDisturb(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := three(t)
		defer s.stopAll()
		lead := s.leader()
		var gone *member
		for _, m := range s.m {
			if m != lead {
				gone = m
			}
		}
		if err := lead.RemoveServer(within(t, 5*time.Second), gone.id); err != nil {
			t.Fatal(err)
		}
		voters, err := lead.Voters()
		if err != nil || len(voters) != 2 || voters[gone.id] {
			t.Fatalf("voters %v, %v", voters, err)
		}
		term := lead.Term()
		time.Sleep(30 * time.Second)
		if now, ok := lead.LeaderTerm(); !ok || now != term {
			t.Fatalf("the removed server made an election: term %d, then %d", term, now)
		}
		mustPropose(t, lead, role("k1", "ann"))
		if has(gone, "ann") {
			t.Fatal("the removed server still gets the log")
		}
	})
}

type declared map[string]uint32

func (d declared) FeatureLevelOf(id string) (uint32, bool) { l, ok := d[id]; return l, ok }

func TestNothingIsProposedThatAVoterCannotApply(t *testing.T) {
	all := declared{"a": 3, "b": 3, "c": 3}
	if err := weakest(3, []string{"a", "b", "c"}, all); err != nil {
		t.Fatal(err)
	}
	for name, d := range map[string]declared{"old": {"a": 3, "b": 2, "c": 3}, "silent": {"a": 3, "c": 3}} {
		if err := weakest(3, []string{"a", "b", "c"}, d); !errors.Is(err, ErrFeatureLevel) || !strings.Contains(err.Error(), "server b") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := weakest(1, []string{"x"}, declared{}); err != nil {
		t.Fatalf("what every release knows was refused: %v", err)
	}
	synctest.Test(t, func(t *testing.T) {
		s := &servers{t: t, m: map[string]*member{}}
		a := s.start("a", true, nil)
		defer s.stopAll()
		s.leader()
		cmd := role("k", "ann")
		cmd.FeatureLevel = 2
		if _, err := a.Propose(within(t, time.Second), cmd); !errors.Is(err, ErrFeatureLevel) {
			t.Fatalf("got %v", err)
		}
	})
}

func TestHugeCommandIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &servers{t: t, m: map[string]*member{}}
		a := s.start("a", true, nil)
		defer s.stopAll()
		s.leader()
		cmd := &redoubtv1.Command{Operations: []*redoubtv1.Operation{{Operation: &redoubtv1.Operation_PutRole{PutRole: &redoubtv1.PutRole{
			Role: &redoubtv1.RoleBinding{User: strings.Repeat("x", MaxCommand)},
		}}}}}
		if _, err := a.Propose(within(t, time.Second), cmd); !errors.Is(err, ErrTooLarge) {
			t.Fatalf("got %v", err)
		}
	})
}
