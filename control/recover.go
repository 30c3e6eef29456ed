package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"redoubt.dev/redoubt/control/archive"
	"redoubt.dev/redoubt/control/consensus"
	"redoubt.dev/redoubt/control/state"
	"redoubt.dev/redoubt/identity/ca"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

const (
	// indexLeap and termLeap are added to the log index and the term at a
	// recovery. What the lost majority did is not known; fences, versions of
	// assignments and terms that it gave out must all be behind what comes now,
	// or agents would take the older for the newer.
	indexLeap = 10_000_000_000
	termLeap  = 1_000_000
	// answerWithin is how long a server has to show that it still runs.
	answerWithin = 2 * time.Second
)

// ErrStillAnswers: another server of the fleet runs. With it and this one there
// would be two fleets of one name.
var ErrStillAnswers = errors.New("another server of this fleet still answers")

// RecoverConfig is how a fleet is begun again on one server, which must not run.
type RecoverConfig struct {
	Dir     string
	Version string
	// Force goes on where another server still answers.
	Force bool
	// DryRun changes nothing.
	DryRun bool
	// NewFleet, for Restore: the snapshot is another fleet's, whose authorities
	// are lost. Workloads and roles are taken; nodes enrol anew.
	NewFleet bool
	Log      *slog.Logger
}

// Recovered is what a recovery made.
type Recovered struct {
	Server, ClusterID string
	// From is the log index of the state that the fleet goes on with; To is the
	// index that it goes on from.
	From, To uint64
	// Replaced is the log index that the data directory had before; 0: none.
	Replaced uint64
	// Kept is where the directory's former log is.
	Kept string
	// Forgotten servers must join anew, each with an empty data directory.
	Forgotten []string
	// Nodes and Workloads that the state holds.
	Nodes, Workloads int
}

// Recover makes the server in cfg.Dir the only voter of its fleet, with all that
// it knows: after a majority was lost for good. It may be repeated.
func Recover(ctx context.Context, cfg RecoverConfig) (Recovered, error) {
	o, err := openOffline(cfg)
	if err != nil {
		return Recovered{}, err
	}
	if o.have.ServerID == "" {
		return Recovered{}, fmt.Errorf("recover: %s holds no log: restore a snapshot into it with `redoubt operator snapshot restore FILE --data-dir %s`", cfg.Dir, cfg.Dir)
	}
	if o.local.Snapshot().Cluster().ID == "" {
		return Recovered{}, fmt.Errorf("recover: the log in %s holds no fleet: this server never received one; recover another server, or restore a snapshot", cfg.Dir)
	}
	return o.found(ctx, o.local, o.have.Index, o.have.Term)
}

// Restore makes the server in cfg.Dir the only voter of its fleet, with the state
// of a snapshot file. The server may be newly made from a copy of its ca/,
// identity/ and server.json. It may be repeated.
func Restore(ctx context.Context, cfg RecoverConfig, file io.Reader) (Recovered, archive.Meta, error) {
	o, err := openOffline(cfg)
	if err != nil {
		return Recovered{}, archive.Meta{}, err
	}
	store := state.NewStore()
	meta, err := archive.Read(file, state.FeatureLevel, func(r io.Reader) error { return store.FSM().Restore(io.NopCloser(r)) })
	if err != nil {
		return Recovered{}, meta, fmt.Errorf("restore: %w", err)
	}
	cluster := store.Snapshot().Cluster()
	switch {
	case cluster.ID == "":
		return Recovered{}, meta, errors.New("restore: the snapshot holds no fleet")
	case cfg.NewFleet && cluster.ID == o.set.ClusterID:
		return Recovered{}, meta, fmt.Errorf("restore: the snapshot is of this very fleet %s: leave --new-fleet away", cluster.ID)
	case cfg.NewFleet:
		if err := store.FSM().Transplant(state.Cluster{ID: o.set.ClusterID, TrustDomain: o.set.TrustDomain}, AdminUser); err != nil {
			return Recovered{}, meta, err
		}
	case cluster.ID != o.set.ClusterID:
		return Recovered{}, meta, fmt.Errorf("restore: the snapshot is of fleet %s (%s) and %s is a server's of fleet %s (%s): restore it on a server of its own fleet; where all their directories are lost, --new-fleet takes its workloads and roles, and nodes enrol anew",
			cluster.ID, cluster.TrustDomain, cfg.Dir, o.set.ClusterID, o.set.TrustDomain)
	}
	r, err := o.found(ctx, store, meta.Index, meta.Term)
	return r, meta, err
}

// offline is a stopped server's data directory.
type offline struct {
	cfg       RecoverConfig
	set       settings
	authority *ca.Authority
	local     *state.Store
	have      consensus.Offline // zero: there is no log
}

func (o *offline) raftDir() string { return filepath.Join(o.cfg.Dir, "raft") }

func openOffline(cfg RecoverConfig) (*offline, error) {
	o := &offline{cfg: cfg, local: state.NewStore()}
	var err error
	if o.set, err = readSettings(cfg.Dir); err != nil {
		return nil, err
	}
	if o.authority, err = ca.Load(filepath.Join(cfg.Dir, "ca")); err != nil {
		return nil, err
	}
	o.have, err = consensus.ReadOffline(o.raftDir(), o.local, cfg.Log)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if errors.Is(err, consensus.ErrInUse) {
		return nil, fmt.Errorf("%w: the server must not run meanwhile", err)
	}
	return o, err
}

// found begins the fleet again with the state of store.
func (o *offline) found(ctx context.Context, store *state.Store, index, term uint64) (Recovered, error) {
	view := store.Snapshot()
	r := Recovered{
		Server: o.set.ID, ClusterID: o.set.ClusterID, From: view.Index(), Replaced: o.have.Index,
		To:    max(index, view.Index(), o.have.Index) + indexLeap,
		Nodes: len(view.Nodes(nil)), Workloads: len(view.Workloads(nil, "")),
	}
	others := map[string]string{}
	for _, v := range []*state.View{view, o.local.Snapshot()} {
		for _, s := range v.Servers(nil) {
			if s.ID != o.set.ID && (s.RaftAddress != o.set.RaftAddress) {
				others[s.ID] = s.RaftAddress
			}
		}
	}
	for id := range others {
		r.Forgotten = append(r.Forgotten, id)
	}
	slices.Sort(r.Forgotten)
	if up := answering(ctx, others); len(up) > 0 && !o.cfg.Force {
		return r, fmt.Errorf("%w: %v. Two fleets of one name would lead the same nodes. Stop it for good (and delete its data directory), or, if that address belongs to something else now, add --force", ErrStillAnswers, up)
	}
	if o.cfg.DryRun {
		return r, nil
	}
	if err := store.FSM().Found(r.To, o.set.server(o.cfg.Version), &redoubtv1.Authority{Server: o.set.ID, Certificate: o.authority.Certificate().Raw}); err != nil {
		return r, err
	}
	var err error
	r.Kept, err = consensus.ReplaceOffline(o.raftDir(), consensus.Identity{ClusterID: o.set.ClusterID, ServerID: o.set.ID},
		o.set.RaftAddress, store, r.To, max(term, o.have.Term)+termLeap, time.Now(), o.cfg.Log)
	return r, err
}

// answering are the servers whose Raft address takes a connection.
func answering(ctx context.Context, servers map[string]string) (up []string) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for id, address := range servers {
		wg.Go(func() {
			dialer := net.Dialer{Timeout: answerWithin}
			conn, err := dialer.DialContext(ctx, "tcp", address)
			if err != nil {
				return
			}
			conn.Close()
			mu.Lock()
			up = append(up, id+" at "+address)
			mu.Unlock()
		})
	}
	wg.Wait()
	slices.Sort(up)
	return up
}
