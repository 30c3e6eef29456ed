package consensus

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// commitRepeat is how long Raft itself waits with the news that something has
// committed, where no further entry carries it. See tellCommits.
const commitRepeat = 500 * time.Millisecond

// pace is how Raft counts time on this server while it leads, and while it
// follows.
//
// Raft's leader speaks ten to five times within what it takes for a follower's
// patience, which is most of what a fleet at rest does. A leader is made to
// believe that others wait two and a half times as long, so that it speaks four
// to two times within their real patience: two of its words may be lost, and a
// leader's death is noticed as fast. With pre-votes an impatient follower alone
// disturbs nobody.
func (n *Node) pace(leads bool) raft.ReloadableConfig {
	c := raft.ReloadableConfig{
		TrailingLogs: n.raftCfg.TrailingLogs, SnapshotInterval: n.raftCfg.SnapshotInterval, SnapshotThreshold: n.raftCfg.SnapshotThreshold,
		HeartbeatTimeout: n.raftCfg.HeartbeatTimeout, ElectionTimeout: n.raftCfg.ElectionTimeout,
	}
	if leads {
		c.HeartbeatTimeout = c.HeartbeatTimeout * 5 / 2
		c.ElectionTimeout = max(c.ElectionTimeout, c.HeartbeatTimeout)
	}
	return c
}

// commit is an entry that is on a majority's disks, and the term in which this
// server led and proposed it.
type commit struct{ index, term uint64 }

// committed notes that an entry of this server's has committed.
func (n *Node) committed(index uint64) {
	n.mu.Lock()
	known := n.term == 0 || n.commit.index >= index
	if !known {
		n.commit = commit{index, n.term}
	}
	n.mu.Unlock()
	// An entry that is under way brings the news with it.
	if known || len(n.inFlight) > 0 {
		return
	}
	select {
	case n.tell <- struct{}{}:
	default:
	}
}

// tellCommits tells the other servers at once what has committed, until ctx
// ends. Raft would do it with the next entry or after commitRepeat, and agents
// whose sessions are with followers would wait for their assignments; to have
// Raft repeat it every 50 ms instead is most of what a fleet at rest would do.
//
// What is sent is what Raft itself would send: an append of no entries behind
// the one that has committed. It is true whenever it arrives: the entry has
// committed for good, it is of a term that this server led, and a follower that
// does not hold this very entry, or knows a later term, refuses it. Raft learns
// nothing of the answer.
func (n *Node) tellCommits(ctx context.Context, r *raft.Raft, trans raft.Transport) {
	var (
		calls sync.WaitGroup
		mu    sync.Mutex // guards the two
		busy  = map[raft.ServerID]bool{}
		told  = map[raft.ServerID]commit{}
	)
	defer calls.Wait()
	self := raft.ServerID(n.cfg.ServerID)
	header := raft.RPCHeader{
		ProtocolVersion: n.raftCfg.ProtocolVersion, ID: []byte(self),
		Addr: trans.EncodePeer(self, raft.ServerAddress(n.cfg.Address)),
	}
	newest := func() commit {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.term != n.commit.term {
			return commit{}
		}
		return n.commit
	}
	call := func(to raft.Server) {
		for {
			mu.Lock()
			c := newest()
			if c == (commit{}) || c == told[to.ID] || ctx.Err() != nil {
				busy[to.ID] = false
				mu.Unlock()
				return
			}
			told[to.ID] = c // or not: then Raft tells it
			mu.Unlock()
			q := &raft.AppendEntriesRequest{
				RPCHeader: header, Term: c.term,
				PrevLogEntry: c.index, PrevLogTerm: c.term, LeaderCommitIndex: c.index,
			}
			// The entry itself may be on its way, on another connection.
			for pause := 5 * time.Millisecond; ; pause *= 2 {
				var answer raft.AppendEntriesResponse
				err := trans.AppendEntries(to.ID, to.Address, q, &answer)
				if err != nil || answer.Success || answer.Term > c.term || pause > commitRepeat/4 || !pauseFor(ctx, pause) {
					break
				}
			}
		}
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.tell:
		}
		for _, s := range r.GetConfiguration().Configuration().Servers {
			mu.Lock()
			if s.ID != self && !busy[s.ID] {
				busy[s.ID] = true
				calls.Go(func() { call(s) })
			}
			mu.Unlock()
		}
	}
}

// pauseFor waits for d; false if ctx ended first.
func pauseFor(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
