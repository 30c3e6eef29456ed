package leader

import (
	"context"
	"crypto/rand"
	"time"

	"redoubt.dev/redoubt/control/consensus"
	"redoubt.dev/redoubt/control/state"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// Membership is what makes admitted servers voters.
type Membership interface {
	Members() ([]consensus.Member, error)
	AddNonvoter(ctx context.Context, id, address string) (uint64, error)
	AddVoter(ctx context.Context, id, address string) (uint64, error)
}

// Applied asks a server how far its state is.
type Applied func(ctx context.Context, id, apiAddress string) (uint64, error)

// membersEvery is how often servers that are not yet voters are looked at.
const membersEvery = time.Second

// join makes servers that were admitted voters: first they get the log, and a
// vote only once they can be reached and have caught up, so that a server that
// never comes up cannot cost the fleet its majority.
func (t *term) join(ctx context.Context) error {
	for {
		ws := state.NewWatchSet()
		missing := t.joinOnce(ctx, t.store.Snapshot(), ws)
		wait := 30 * time.Second
		if missing {
			wait = membersEvery
		}
		wctx, cancel := context.WithTimeout(ctx, wait)
		if missing {
			<-wctx.Done()
		} else {
			_ = ws.WatchCtx(wctx)
		}
		cancel()
		if ctx.Err() != nil {
			return nil
		}
	}
}

func (t *term) joinOnce(ctx context.Context, view *state.View, ws state.WatchSet) (missing bool) {
	members, err := t.members.Members()
	if err != nil {
		return true
	}
	have := map[string]consensus.Member{}
	for _, m := range members {
		have[m.ID] = m
	}
	for _, s := range view.Servers(ws) {
		m, ok := have[s.ID]
		if ok && m.Voter && m.Address == s.RaftAddress {
			continue
		}
		missing = true
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		applied, err := t.applied(ctx, s.ID, s.APIAddress)
		switch {
		case !t.admitted(s.ID):
			// It was removed while it was asked: adding it would undo that.
		case err != nil:
			t.log.Debug("a server that was admitted does not answer yet", "server", s.ID, "err", err)
		case !ok || m.Address != s.RaftAddress && !m.Voter:
			_, err = t.members.AddNonvoter(ctx, s.ID, s.RaftAddress)
			t.logMember("server receives the log", s.ID, err)
		case applied >= view.Index():
			_, err = t.members.AddVoter(ctx, s.ID, s.RaftAddress)
			t.logMember("server votes", s.ID, err)
		}
		cancel()
	}
	return missing
}

// admitted tells whether the state has the server now.
func (t *term) admitted(id string) bool {
	_, ok := t.store.Snapshot().Server(nil, id)
	return ok
}

func (t *term) logMember(msg, server string, err error) {
	if err != nil {
		t.log.Warn("membership is not changed yet", "server", server, "err", err)
		return
	}
	t.log.Info(msg, "server", server)
}

// gossipKeyBytes is the size of a gossip key: AES-256.
const gossipKeyBytes = 32

// keys gives every site that has nodes a gossip key.
func (t *term) keys(ctx context.Context) error {
	for {
		ws := state.NewWatchSet()
		view := t.store.Snapshot()
		var ops []*redoubtv1.Operation
		seen := map[string]bool{}
		for _, n := range view.Nodes(ws) {
			if seen[string(n.Site)] {
				continue
			}
			seen[string(n.Site)] = true
			if _, ok := view.SiteKeys(nil, n.Site); ok {
				continue
			}
			key := make([]byte, gossipKeyBytes)
			_, _ = rand.Read(key) // never fails since Go 1.24
			ops = append(ops, &redoubtv1.Operation{Operation: &redoubtv1.Operation_PutSiteKeys{
				PutSiteKeys: &redoubtv1.PutSiteKeys{Site: string(n.Site), Keys: [][]byte{key}}}})
		}
		if len(ops) > 0 {
			if _, err := t.propose(ctx, ops); err != nil {
				if ctx.Err() != nil {
					return nil
				}
				t.log.Warn("a site has no gossip key yet", "err", err)
				if !sleep(ctx, time.Second) {
					return nil
				}
			}
			continue
		}
		if ws.WatchCtx(ctx) != nil {
			return nil
		}
	}
}
