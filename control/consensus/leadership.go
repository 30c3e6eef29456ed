package consensus

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// watchLeadership follows Raft's word of gaining and losing leadership, and
// publishes a term only after its barrier: when all of earlier terms is applied.
func (n *Node) watchLeadership(ctx context.Context, r *raft.Raft) {
	end := func() {}
	stop := func() {
		end()
		end = func() {}
		if n.setTerm(0) {
			n.log.Info("lost leadership")
		}
	}
	defer func() { stop() }()
	for {
		select {
		case <-ctx.Done():
			return
		case leads := <-n.notify:
			stop()
			if err := r.ReloadConfig(n.pace(leads)); err != nil {
				n.log.Warn("Raft's pace stays as it was", "server", n.cfg.ServerID, "leads", leads, "err", err)
			}
			if !leads {
				continue
			}
			term, cancel := context.WithCancel(ctx)
			var establishing sync.WaitGroup
			establishing.Go(func() { n.establish(term, r) })
			end = func() { cancel(); establishing.Wait() }
		}
	}
}

// establish waits out the barrier of the term that has just begun.
func (n *Node) establish(ctx context.Context, r *raft.Raft) {
	term := r.CurrentTerm()
	for ctx.Err() == nil {
		err := n.await(ctx, r.Barrier(0))
		if err == nil {
			last := r.AppliedIndex() // the barrier, or a later entry of this term
			// Terms only grow: if it is the same after the barrier has committed, it
			// was this server's during it.
			if r.CurrentTerm() == term && r.State() == raft.Leader && ctx.Err() == nil {
				n.setTerm(term)
				n.committed(last)
				n.log.Info("gained leadership", "term", term, "index", n.store.Index())
			}
			return
		}
		if errors.Is(err, raft.ErrNotLeader) || errors.Is(err, raft.ErrLeadershipLost) || errors.Is(err, raft.ErrRaftShutdown) {
			return // the next notice says what now
		}
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// setTerm publishes the term that this server leads; true if it changed. It
// wakes everybody either way: who waits for a barrier must learn that it ended.
func (n *Node) setTerm(term uint64) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	changed := n.term != term
	n.term = term
	n.broadcast()
	return changed
}

// broadcast needs n.mu.
func (n *Node) broadcast() {
	close(n.changed)
	n.changed = make(chan struct{})
}

func (n *Node) watchLeader(ctx context.Context, seen <-chan raft.Observation) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-seen:
			n.mu.Lock()
			n.broadcast()
			n.mu.Unlock()
		}
	}
}

func (n *Node) leadership() (term uint64, changed <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.term, n.changed
}

// LeaderChanged closes when another leader is known, none is, or this server
// gains or loses leadership, or its store fails or can be written again.
func (n *Node) LeaderChanged() <-chan struct{} {
	_, changed := n.leadership()
	return changed
}

// Leader is who leads as far as this server knows; empty if nobody.
func (n *Node) Leader() (id, address string) {
	r, release, err := n.running()
	if err != nil {
		return "", ""
	}
	defer release()
	a, i := r.LeaderWithID()
	return string(i), string(a)
}

// IsLeader tells whether this server believes that it leads. It may have been
// deposed without knowing, and may not have applied earlier terms yet:
// VerifyRead knows.
func (n *Node) IsLeader() bool {
	r, release, err := n.running()
	if err != nil {
		return false
	}
	defer release()
	return r.State() == raft.Leader
}

// Term is Raft's current term as this server knows it.
func (n *Node) Term() uint64 {
	r, release, err := n.running()
	if err != nil {
		return 0
	}
	defer release()
	return r.CurrentTerm()
}

// LeaderTerm is the term that this server leads and whose barrier has applied;
// false if there is none.
func (n *Node) LeaderTerm() (uint64, bool) {
	term, _ := n.leadership()
	return term, term != 0
}

// Lead calls fn for every term that this server leads, until ctx ends, one call
// after the other. fn begins after all of earlier terms has been applied. Its
// context ends with the term; it must return then. If it returns earlier, its
// term goes on without it; an error other than its context's ends Lead.
func (n *Node) Lead(ctx context.Context, fn func(ctx context.Context, term uint64) error) error {
	for {
		term, changed := n.leadership()
		if term != 0 {
			if err := n.leadTerm(ctx, term, fn); err != nil {
				return err
			}
			for now := term; now == term && ctx.Err() == nil; now, changed = n.leadership() {
				select {
				case <-changed:
				case <-ctx.Done():
				}
			}
			if ctx.Err() == nil {
				continue
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (n *Node) leadTerm(ctx context.Context, term uint64, fn func(context.Context, uint64) error) error {
	inTerm, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- fn(inTerm, term) }()
	defer cancel()
	for {
		now, changed := n.leadership()
		if now != term {
			cancel()
			changed = nil
		}
		select {
		case err := <-done:
			if err != nil && inTerm.Err() == nil {
				return err
			}
			return nil
		case <-changed:
		}
	}
}

// VerifyRead returns once this server is certainly the leader, and its store
// shows everything that was acknowledged before the call.
//
// Why that holds: what earlier terms acknowledged was committed before this
// term's barrier, which has passed through the state machine; what this term
// acknowledged was answered by this server's own state machine; and a majority
// has confirmed, after the call began, that there is no later term.
func (n *Node) VerifyRead(ctx context.Context) error {
	r, release, err := n.running()
	if err != nil {
		return err
	}
	defer release()
	for {
		term, changed := n.leadership()
		if term == 0 {
			if r.State() != raft.Leader {
				return notLeader(r)
			}
			select { // its barrier is under way
			case <-changed:
				continue
			case <-n.ending:
				return ErrStopped
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err := n.await(ctx, r.VerifyLeader()); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return notLeader(r)
		}
		if now, _ := n.leadership(); now == term {
			return nil
		}
	}
}

// Barrier returns when everything that was proposed before has been applied.
func (n *Node) Barrier(ctx context.Context) error {
	r, release, err := n.running()
	if err != nil {
		return err
	}
	defer release()
	err = n.await(ctx, r.Barrier(0))
	if errors.Is(err, raft.ErrNotLeader) || errors.Is(err, raft.ErrLeadershipLost) {
		return notLeader(r)
	}
	return err
}

func notLeader(r *raft.Raft) error {
	e := &NotLeaderError{}
	// Having lost leadership just now, Raft may still name this server.
	if address, id := r.LeaderWithID(); r.State() != raft.Leader {
		e.LeaderID, e.LeaderAddress = string(id), string(address)
	}
	return e
}
