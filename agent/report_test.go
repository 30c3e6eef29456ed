package agent

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"redoubt.dev/redoubt/agent/store"
	"redoubt.dev/redoubt/isolation"
)

var dawn = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

func sinceDawn() time.Duration { return time.Since(dawn) }

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

type probed struct {
	mu     sync.Mutex
	rounds int
	state  isolation.State
	rate   float64
	err    error
}

func (p *probed) host() Host {
	return Host{
		Facts: func(context.Context) (isolation.Host, error) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.rate++ // varies from round to round
			return isolation.Host{BootID: "b", MemoryBytes: 1 << 30, KVM: isolation.KVM{Verdict: isolation.KVMParavirtual, Rate: p.rate, Reason: time.Now().String()}}, p.err
		},
		Findings: func(context.Context, isolation.Host) ([]isolation.Finding, error) {
			time.Sleep(time.Second) // without the lock: a bubble's time stands still while one is waited for
			p.mu.Lock()
			defer p.mu.Unlock()
			p.rounds++
			return []isolation.Finding{{Runtime: "runc", Class: isolation.ClassContainer, State: p.state, Age: 500 * time.Millisecond}}, nil
		},
	}
}

func (p *probed) count() int { p.mu.Lock(); defer p.mu.Unlock(); return p.rounds }

func (p *probed) set(f func()) { p.mu.Lock(); f(); p.mu.Unlock() }

func reporter(t *testing.T, p *probed, st *store.Store) (*Reporter, func()) {
	r := &Reporter{node: "n1", site: "oslo", every: 10 * time.Minute, boot: sinceDawn, host: p.host(), generation: st.Generation, log: quiet(), again: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = r.Run(ctx) }()
	return r, func() { cancel(); <-done }
}

func openStore(t *testing.T, dir string) *store.Store {
	t.Helper()
	st, err := store.Open(dir, "n1")
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func TestGenerationMovesWithFactsOnly(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		st := openStore(t, dir)
		defer st.Close()
		p := &probed{state: isolation.StateVerified}
		r, stop := reporter(t, p, st)
		if _, ok := r.Report(); ok || r.Proof().Ready {
			t.Fatal("something counts as proven before the first round")
		}
		time.Sleep(5 * time.Second)
		first, ok := r.Report()
		if !ok || first.Generation == 0 {
			t.Fatalf("no report: %+v", first)
		}
		if age := first.Findings[0].Age; age < 4*time.Second || age > 6*time.Second {
			t.Errorf("age is %s", age)
		}
		time.Sleep(9 * time.Minute)
		if age := mustReport(t, r).Findings[0].Age; p.count() == 1 && age < 9*time.Minute {
			t.Errorf("age is %s after nine minutes", age)
		}
		time.Sleep(time.Hour)
		rep := mustReport(t, r)
		if p.count() < 5 || rep.Generation != first.Generation || rep.Host.KVM.Rate != first.Host.KVM.Rate {
			t.Errorf("%d rounds, generation %d, was %d", p.count(), rep.Generation, first.Generation)
		}
		if rep.Findings[0].Age > 12*time.Minute {
			t.Errorf("proof is not renewed: %s old", rep.Findings[0].Age)
		}

		// No answer says nothing: the proof grows old, and is tried again soon.
		p.set(func() { p.state = isolation.StateUnknown })
		r.Probe()
		before := p.count()
		time.Sleep(time.Minute)
		rep = mustReport(t, r)
		if rep.Findings[0].State != isolation.StateVerified || rep.Generation != first.Generation {
			t.Errorf("a canary without an answer changed the report: %+v", rep.Findings[0])
		}
		if p.count() < before+3 {
			t.Errorf("tried %d times in a minute", p.count()-before)
		}
		// A failure is news.
		p.set(func() { p.state = isolation.StateUnusable })
		r.Probe()
		time.Sleep(5 * time.Second)
		rep = mustReport(t, r)
		if rep.Generation != first.Generation+1 || rep.Findings[0].Age != 0 {
			t.Errorf("generation %d after a change, was %d", rep.Generation, first.Generation)
		}
		stop()

		// Another process, other facts: the generation never goes back.
		p.set(func() { p.state = isolation.StateVerified })
		r, stop = reporter(t, p, st)
		defer stop()
		time.Sleep(5 * time.Second)
		if g := mustReport(t, r).Generation; g != first.Generation+2 {
			t.Errorf("generation after a restart is %d, was %d", g, first.Generation+1)
		}
	})
}

func mustReport(t *testing.T, r *Reporter) isolation.Report {
	t.Helper()
	rep, ok := r.Report()
	if !ok {
		t.Fatal("no report")
	}
	return rep
}

func TestAFailedRoundIsRepeatedAndProvesNothing(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		st := openStore(t, dir)
		defer st.Close()
		p := &probed{state: isolation.StateVerified, err: errors.New("no containerd")}
		r, stop := reporter(t, p, st)
		defer stop()
		time.Sleep(30 * time.Second)
		if r.Proof().Ready {
			t.Fatal("a failed round counts")
		}
		p.set(func() { p.err = nil })
		time.Sleep(time.Minute)
		if !r.Proof().Ready {
			t.Fatal("not tried again")
		}
	})
}

func TestLeaseIsKeptNowAndThenAndNeverGoesBack(t *testing.T) {
	st := openStore(t, t.TempDir())
	defer st.Close()
	l := newLease(st, quiet())
	at := func(d time.Duration) store.Moment { return store.Moment{Boot: "b", At: d} }
	l.renew(at(10*time.Second), 3)
	l.renew(at(12*time.Second), 3)
	if got := l.get().Renewed; got != at(12*time.Second) {
		t.Errorf("lease is of %v", got)
	}
	if got := st.Lease().Renewed; got != at(10*time.Second) {
		t.Errorf("on disk it is of %v", got)
	}
	l.renew(at(16*time.Second), 3)
	if got := st.Lease().Renewed; got != at(16*time.Second) {
		t.Errorf("on disk it is of %v", got)
	}
	l.renew(at(11*time.Second), 3)
	l.renew(at(20*time.Second), 2)
	if got := l.get().Renewed; got != at(16*time.Second) {
		t.Errorf("it went back, or an older term renewed it: %v", got)
	}
	l.renew(store.Moment{Boot: "c", At: time.Second}, 3)
	if got := st.Lease().Renewed.Boot; got != "c" {
		t.Error("a new boot's first renewal is not kept at once")
	}
}
