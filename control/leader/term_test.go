package leader

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"redoubt.dev/redoubt/control/consensus"
)

// lateRaft is not certain that it leads until some checks have failed.
type lateRaft struct {
	*benchRaft
	failures int
}

func (r *lateRaft) VerifyRead(context.Context) error {
	if r.failures > 0 {
		r.failures--
		return &consensus.NotLeaderError{}
	}
	return nil
}

// TestATermLostAsItBeginsEndsNoServer: what Run returns ends the server, and on a
// busy host leadership comes and goes.
func TestATermLostAsItBeginsEndsNoServer(t *testing.T) {
	lead := func(t *testing.T, failures int) (l *Leader, end func() error) {
		b := newBench(t)
		l = New(&lateRaft{&benchRaft{b: b}, failures}, b.store, DefaultTiming(), slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- l.Run(ctx, 3) }()
		return l, func() error { cancel(); return <-done }
	}
	t.Run("lost", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l, end := lead(t, 1<<20)
			time.Sleep(time.Minute)
			synctest.Wait()
			if l.Term() != 0 {
				t.Errorf("it leads term %d, of which it is not certain", l.Term())
			}
			if err := end(); err != nil {
				t.Errorf("it ends with %v", err)
			}
		})
	})
	t.Run("late", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l, end := lead(t, 2)
			time.Sleep(time.Minute)
			synctest.Wait()
			if l.Term() != 3 {
				t.Errorf("it leads term %d", l.Term())
			}
			if err := end(); err != nil {
				t.Errorf("it ends with %v", err)
			}
		})
	})
}
