package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"time"

	"redoubt.dev/redoubt/control/consensus"
	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/control/server"
	"redoubt.dev/redoubt/control/state"
)

// ErrRemoved ends a server that was taken out of its fleet. It stays so: its
// data directory says it at every later start.
var ErrRemoved = errors.New("this server was removed from the fleet")

// removalElections is for how many elections' time a server is without a leader
// before it asks whether it was removed, and between askings.
const removalElections = 5

// removal says what a removed server is and how its host can serve again.
func (s settings) removal(dir string) error {
	return fmt.Errorf("%w: server %s of %s at %s. To join again: move %s away, "+
		"make a token with `redoubt node join-token --role server` in the fleet, and use `redoubt server join`",
		ErrRemoved, s.ID, s.TrustDomain, s.Removed.UTC().Format(time.RFC3339), dir)
}

// watchRemoval returns ErrRemoved once this server has learned that it was
// removed. Those that remain stop sending it the log, often before the entry
// that says why; so, without a leader, it asks the others, and believes only
// one that leads. Where the others are it keeps on disk: a server that starts
// without a leader has applied nothing yet.
func watchRemoval(ctx context.Context, node *consensus.Node, store *state.Store, srv *server.Server, set settings, cfg Config, log *slog.Logger) error {
	dir, every := cfg.Dir, removalElections*cfg.Raft.Election
	alone, asked := time.Now(), time.Time{}
	for {
		changed, ws := node.LeaderChanged(), state.NewWatchSet()
		wait := every
		if id, _ := node.Leader(); id != "" {
			alone = time.Time{}
			if now := others(store.Snapshot().Servers(ws), set.ID); len(now) > 0 && !maps.Equal(now, set.Others) {
				set.Others = now
				if err := set.write(dir); err != nil {
					log.Warn("where the other servers are is not stored", "err", err)
				}
			}
		} else if alone.IsZero() {
			alone = time.Now()
		}
		if !alone.IsZero() {
			if time.Since(alone) >= every && time.Since(asked) >= every {
				if srv.Removed(ctx, set.Others) {
					break
				}
				asked = time.Now()
			}
			wait = every / removalElections
		}
		wctx, cancel := context.WithTimeout(ctx, wait)
		select {
		case <-changed:
		case <-ws.WatchCh(wctx):
		}
		cancel()
		if ctx.Err() != nil {
			return nil
		}
	}
	set.Removed = time.Now()
	if err := set.write(dir); err != nil {
		log.Warn("that this server was removed is not stored; it will ask again when it is started", "err", err)
	}
	log.Error("this server was removed from the fleet and ends")
	return set.removal(dir)
}

// others are the API addresses of the servers beside id, by their id.
func others(servers []*fleet.Server, id string) map[string]string {
	m := map[string]string{}
	for _, s := range servers {
		if s.ID != id {
			m[s.ID] = s.APIAddress
		}
	}
	return m
}
