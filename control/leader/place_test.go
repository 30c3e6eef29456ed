package leader

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"redoubt.dev/redoubt/control/consensus"
	"redoubt.dev/redoubt/control/placement"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// directRaft applies what is proposed at once, and keeps when.
type directRaft struct {
	*bench
	mu   sync.Mutex
	when []time.Time
}

func (r *directRaft) VerifyRead(context.Context) error { return nil }

func (r *directRaft) Propose(_ context.Context, cmd *redoubtv1.Command) (consensus.Result, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.when = append(r.when, time.Now())
	r.index++
	a := r.store.FSM().ApplyCommand(r.index, cmd)
	return consensus.Result{Index: a.Index, Results: a.Results}, a.Err
}

// One workload is placed in the moment in which it is applied, without a pause;
// of many that come one after the other, plans are made a pause apart.
func TestAWorkloadIsPlacedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, "a1")
		b.o = NewObserved(DefaultTiming(), time.Now())
		b.now = time.Now()
		b.hear("a1")
		r := &directRaft{bench: b}
		l := New(r, b.store, DefaultTiming(), slog.New(slog.DiscardHandler))
		l.policy = placement.Policy{MaxAssign: 256}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		tm := &term{Leader: l, number: 1, observed: b.o, began: time.Now()}
		go func() { done <- tm.place(ctx) }()
		defer func() { cancel(); <-done }()
		time.Sleep(time.Second)

		put := func(name string) {
			w := b.service(1, nil)
			w.Name = name
			r.mu.Lock()
			b.put(w)
			r.mu.Unlock()
		}
		placed := func() int { return len(b.store.Snapshot().InstancesOf(nil, "a1")) }
		begun := time.Now()
		put("alone")
		synctest.Wait()
		if placed() != 1 || time.Since(begun) != 0 {
			t.Fatalf("%d instances after %v, want one at once", placed(), time.Since(begun))
		}
		time.Sleep(time.Second)
		r.when = nil
		for i := range 30 {
			put("many-" + string(rune('a'+i%26)) + string(rune('a'+i/26)))
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Second)
		if n := placed(); n != 31 {
			t.Fatalf("%d instances, want 31", n)
		}
		if n := len(r.when); n > 5 {
			t.Errorf("%d plans were proposed for what came within 30 ms", n)
		}
	})
}
