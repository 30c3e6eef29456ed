package consensus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
)

// Member is a server of Raft's configuration.
type Member struct {
	ID, Address string
	Voter       bool
}

// Members is the configuration that Raft uses now.
func (n *Node) Members() ([]Member, error) {
	r, release, err := n.running()
	if err != nil {
		return nil, err
	}
	defer release()
	f := r.GetConfiguration()
	if err := f.Error(); err != nil {
		return nil, fmt.Errorf("read Raft's members: %w", err)
	}
	var members []Member
	for _, s := range f.Configuration().Servers {
		members = append(members, Member{ID: string(s.ID), Address: string(s.Address), Voter: s.Suffrage == raft.Voter})
	}
	return members, nil
}

// Stats are Raft's own words about itself.
func (n *Node) Stats() map[string]string {
	r, release, err := n.running()
	if err != nil {
		return map[string]string{"state": err.Error()}
	}
	defer release()
	return r.Stats()
}

// Voters are the ids of servers that vote.
func (n *Node) Voters() (map[string]bool, error) {
	members, err := n.Members()
	if err != nil {
		return nil, err
	}
	ids := make(map[string]bool, len(members))
	for _, m := range members {
		if m.Voter {
			ids[m.ID] = true
		}
	}
	return ids, nil
}

func voters(r *raft.Raft) (ids []string) {
	f := r.GetConfiguration()
	if f.Error() != nil {
		return nil
	}
	for _, s := range f.Configuration().Servers {
		if s.Suffrage == raft.Voter {
			ids = append(ids, string(s.ID))
		}
	}
	return ids
}

// AddNonvoter makes the leader send the log to a server that does not count for
// majorities. It returns the log index of the change: when the server's store
// and log have come that far it can become a voter without harm.
func (n *Node) AddNonvoter(ctx context.Context, id, address string) (uint64, error) {
	return n.change(ctx, "add server "+id, func(r *raft.Raft, wait time.Duration) raft.IndexFuture {
		return r.AddNonvoter(raft.ServerID(id), raft.ServerAddress(address), 0, wait)
	})
}

// AddVoter makes a server count for majorities, or changes its address. One that
// cannot be reached makes a fleet of one lose its majority at once: add it as a
// nonvoter first.
func (n *Node) AddVoter(ctx context.Context, id, address string) (uint64, error) {
	return n.change(ctx, "make server "+id+" a voter", func(r *raft.Raft, wait time.Duration) raft.IndexFuture {
		return r.AddVoter(raft.ServerID(id), raft.ServerAddress(address), 0, wait)
	})
}

// RemoveServer takes a server out; removing one that is not there is done. A
// leader that removes itself steps down: transfer first.
func (n *Node) RemoveServer(ctx context.Context, id string) error {
	_, err := n.change(ctx, "remove server "+id, func(r *raft.Raft, wait time.Duration) raft.IndexFuture {
		return r.RemoveServer(raft.ServerID(id), 0, wait)
	})
	return err
}

func (n *Node) change(ctx context.Context, what string, do func(*raft.Raft, time.Duration) raft.IndexFuture) (uint64, error) {
	r, release, err := n.running()
	if err != nil {
		return 0, fmt.Errorf("%s: %w", what, err)
	}
	defer release()
	if r.State() != raft.Leader {
		return 0, fmt.Errorf("%s: %w", what, notLeader(r))
	}
	f := do(r, enqueueFor(ctx))
	switch err := n.await(ctx, f); {
	case err == nil:
		n.committed(f.Index())
		return f.Index(), nil
	case errors.Is(err, raft.ErrNotLeader):
		return 0, fmt.Errorf("%s: %w", what, notLeader(r))
	case errors.Is(err, raft.ErrEnqueueTimeout), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return 0, fmt.Errorf("%s: %w: %w", what, ErrBusy, err)
	case errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrRaftShutdown), ctx.Err() != nil:
		return 0, fmt.Errorf("%s: %w: %w", what, ErrOutcomeUnknown, err)
	default:
		return 0, fmt.Errorf("%s: %w", what, err)
	}
}

// Transfer gives leadership to another voter, and returns when this server has
// stepped down.
func (n *Node) Transfer(ctx context.Context) error {
	r, release, err := n.running()
	if err != nil {
		return fmt.Errorf("transfer leadership: %w", err)
	}
	defer release()
	if r.State() != raft.Leader {
		return fmt.Errorf("transfer leadership: %w", notLeader(r))
	}
	if err := n.await(ctx, r.LeadershipTransfer()); err != nil {
		return fmt.Errorf("transfer leadership: %w", err)
	}
	return nil
}

// Snapshot makes a snapshot now, which shortens the log.
func (n *Node) Snapshot(ctx context.Context) error {
	r, release, err := n.running()
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	defer release()
	if err := n.await(ctx, r.Snapshot()); err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return fmt.Errorf("snapshot: %w", err)
	}
	return nil
}
