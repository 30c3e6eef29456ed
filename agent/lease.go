package agent

import (
	"log/slog"
	"sync"
	"time"

	"redoubt.dev/redoubt/agent/store"
)

// lease is when the control plane last acknowledged this node. It is written
// to disk now and then only: what is on disk is older, so a restarted agent
// ends a leased instance early rather than late.
type lease struct {
	store *store.Store
	log   *slog.Logger

	mu   sync.Mutex
	now  store.Lease
	kept store.Moment
}

const leaseKept = 5 * time.Second

func newLease(s *store.Store, log *slog.Logger) *lease {
	held := s.Lease()
	return &lease{store: s, log: log, now: held, kept: held.Renewed}
}

func (l *lease) get() store.Lease {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now
}

// renew takes note of an acknowledgement; it never goes back.
func (l *lease) renew(at store.Moment, term uint64) {
	l.mu.Lock()
	if l.now.Renewed.Boot == at.Boot && (at.At < l.now.Renewed.At || term < l.now.Term) {
		l.mu.Unlock()
		return
	}
	l.now = store.Lease{Renewed: at, Term: term}
	next := l.now
	due := l.kept.Boot != at.Boot || at.At-l.kept.At >= leaseKept
	if due {
		l.kept = at
	}
	l.mu.Unlock()
	if due {
		if err := l.store.SetLease(next); err != nil {
			l.log.Warn("the lease is renewed but not kept on disk", "err", err)
		}
	}
}

// ledger is the store with the lease as it is now.
type ledger struct {
	*store.Store
	lease *lease
}

func (l ledger) Lease() store.Lease { return l.lease.get() }
