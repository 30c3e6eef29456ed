package consensus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"redoubt.dev/redoubt/control/state"
)

// Timing is how patient servers are with each other.
type Timing struct {
	// Heartbeat and Election: silence of the leader before an election, or of a
	// majority before a leader steps down; and of an election before the next.
	Heartbeat, Election time.Duration
}

// DefaultTiming elects a new leader in one to three seconds.
func DefaultTiming() Timing {
	return Timing{Heartbeat: time.Second, Election: time.Second}
}

// Config is what a Node is opened with.
type Config struct {
	// ServerID and ClusterID say whose data directory it must be. An empty
	// ClusterID takes what an existing directory says.
	ServerID, ClusterID string
	// Dir is the data directory; Storage, if set, is used instead of one.
	Dir     string
	Storage *Storage
	// Address is what others dial to reach this server's Layer.
	Address string
	// Layer carries connections. Transport, if set, is used instead, for tests.
	Layer     *Layer
	Transport raft.Transport
	Store     *state.Store
	Logger    *slog.Logger

	// Meter, if set, is told of every proposal.
	Meter Meter

	Timing Timing // zero: DefaultTiming
	// SnapshotEvery so many log entries a snapshot is made, and Trailing entries
	// are kept behind it for followers that are a little late. Zero: 8192, 10240.
	SnapshotEvery, Trailing uint64
	// MaxInFlight proposals at a time; others wait. Zero: 256.
	MaxInFlight int
	// Reserve is the size of the file in Dir that gives room when the disk is
	// full, bytes. Zero: DefaultReserve; negative: none.
	Reserve int64
	// HandOver bounds how long a clean stop waits for leadership to move.
	// Zero: 5 s.
	HandOver time.Duration
}

// Meter takes how long a proposal took, and what came of it.
type Meter interface {
	Proposed(time.Duration, error)
}

// Node is this server's part in the fleet's consensus. All its methods may be
// called concurrently; before Run has started Raft and after it has stopped,
// they answer ErrStopped.
type Node struct {
	cfg       Config
	store     *state.Store
	storage   *Storage
	guard     *guard
	log       *slog.Logger
	raftLog   hclog.Logger
	raftCfg   *raft.Config
	notify    chan bool     // Raft's word of every change of leadership, in order
	tell      chan struct{} // capacity 1: others do not know yet what has committed
	inFlight  chan struct{}
	proposals sync.WaitGroup // goroutines that wait for one of Raft's futures
	started   chan struct{}
	ending    chan struct{} // closed when Run is about to stop Raft
	ended     chan struct{} // closed when Raft has stopped

	mu      sync.Mutex
	raft    *raft.Raft // nil unless running
	commit  commit     // the newest that this server's proposals have reached
	ran     bool
	term    uint64        // that this server leads, its barrier applied; 0: none
	changed chan struct{} // closed when term, the known leader or the store's failure changes
}

// Open claims the data directory and opens what is in it. It takes no part in
// anything before Run. A node that is not run must be closed.
func Open(cfg Config) (*Node, error) {
	if cfg.Timing == (Timing{}) {
		cfg.Timing = DefaultTiming()
	}
	if cfg.SnapshotEvery == 0 {
		cfg.SnapshotEvery = 8192
	}
	if cfg.Trailing == 0 {
		cfg.Trailing = 10240
	}
	if cfg.MaxInFlight == 0 {
		cfg.MaxInFlight = 256
	}
	if cfg.Reserve == 0 {
		cfg.Reserve = DefaultReserve
	}
	if cfg.HandOver == 0 {
		cfg.HandOver = 5 * time.Second
	}
	n := &Node{
		cfg: cfg, store: cfg.Store, storage: cfg.Storage, log: cfg.Logger, raftLog: hclogger(cfg.Logger),
		notify: make(chan bool, 16), tell: make(chan struct{}, 1), inFlight: make(chan struct{}, cfg.MaxInFlight),
		started: make(chan struct{}), ending: make(chan struct{}), ended: make(chan struct{}),
		changed: make(chan struct{}),
	}
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(cfg.ServerID)
	c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = cfg.Timing.Heartbeat, cfg.Timing.Election, cfg.Timing.Heartbeat
	c.CommitTimeout = commitRepeat
	c.SnapshotThreshold, c.TrailingLogs = cfg.SnapshotEvery, cfg.Trailing
	c.NotifyCh, c.Logger = n.notify, n.raftLog
	// A server that was removed stays, knows it, and answers so.
	c.ShutdownOnRemove = false
	if err := raft.ValidateConfig(c); err != nil {
		return nil, fmt.Errorf("open consensus: %w", err)
	}
	n.raftCfg = c
	if n.storage == nil {
		s, err := diskStorage(cfg.Dir, Identity{ClusterID: cfg.ClusterID, ServerID: cfg.ServerID}, n.raftLog)
		if err != nil {
			return nil, err
		}
		n.storage = s
	}
	n.guard = newGuard(n.storage, cfg.Logger, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.broadcast()
	})
	if cfg.Storage == nil && cfg.Reserve > 0 {
		n.guard.reserve = newReserve(cfg.Dir, cfg.Reserve, n.guard.log)
		if !n.guard.reserve.make() {
			n.guard.log.Warn("there is no room for the reserve that helps when the disk is full", "bytes", cfg.Reserve)
		}
	}
	return n, nil
}

// Close gives up a node that was opened and is not run.
func (n *Node) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ran {
		return nil
	}
	n.ran = true
	var layer error
	if n.cfg.Layer != nil {
		layer = n.cfg.Layer.Close()
	}
	return errors.Join(layer, n.storage.close())
}

// HasState tells whether the node has a log from an earlier life.
func (n *Node) HasState() (bool, error) {
	return raft.HasExistingState(n.storage.Logs, n.storage.Stable, n.storage.Snapshots)
}

// Bootstrap makes this server the only voter of a new fleet, before Run.
func (n *Node) Bootstrap() error {
	has, err := n.HasState()
	if err != nil {
		return fmt.Errorf("bootstrap server %s: %w", n.cfg.ServerID, err)
	}
	if has {
		return fmt.Errorf("bootstrap server %s: %w", n.cfg.ServerID, ErrBootstrapped)
	}
	_, trans := raft.NewInmemTransport(raft.ServerAddress(n.cfg.Address)) // only its codec is asked
	err = raft.BootstrapCluster(n.raftCfg, n.storage.Logs, n.storage.Stable, n.storage.Snapshots, trans, raft.Configuration{
		Servers: []raft.Server{{ID: n.raftCfg.LocalID, Address: raft.ServerAddress(n.cfg.Address)}},
	})
	if err != nil {
		return fmt.Errorf("bootstrap server %s: %w", n.cfg.ServerID, err)
	}
	return nil
}

// Started closes when Run has started Raft and the latest snapshot is restored.
func (n *Node) Started() <-chan struct{} { return n.started }

// Run takes part until ctx ends; then it hands leadership over, stops, and
// closes the layer and the storage. It runs once.
func (n *Node) Run(ctx context.Context) error {
	n.mu.Lock()
	if n.ran {
		n.mu.Unlock()
		return ErrStopped
	}
	n.ran = true
	n.mu.Unlock()

	trans, closeTransport := n.transport()
	r, err := raft.NewRaft(n.raftCfg, n.store.FSM(), n.guard, n.guard, n.storage.Snapshots, trans)
	if err != nil {
		return errors.Join(fmt.Errorf("start Raft on server %s: %w", n.cfg.ServerID, err), closeTransport(), n.storage.close())
	}
	seen := make(chan raft.Observation, 16)
	observer := raft.NewObserver(seen, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	})
	r.RegisterObserver(observer)
	n.mu.Lock()
	n.raft = r
	n.mu.Unlock()
	close(n.started)

	// What watches leadership outlives ctx: handing over is a change of it.
	watch, stopWatch := context.WithCancel(context.WithoutCancel(ctx))
	var watchers sync.WaitGroup
	watchers.Go(func() { n.watchLeadership(watch, r) })
	watchers.Go(func() { n.watchLeader(watch, seen) })
	watchers.Go(func() { n.tellCommits(watch, r, trans) })
	if n.guard.reserve != nil {
		watchers.Go(func() { n.watchReserve(watch, r) })
	}

	<-ctx.Done()
	n.handOver(r)
	stopWatch()
	watchers.Wait()
	n.mu.Lock()
	n.raft = nil
	n.mu.Unlock()
	close(n.ending)
	// What Raft has accepted is answered while it still runs: one that stops
	// forgets what stands in its queues, and who asked would wait for ever.
	answered := make(chan struct{})
	go func() { n.proposals.Wait(); close(answered) }()
	ends(answered, n.cfg.HandOver)
	n.guard.close()
	err = r.Shutdown().Error()
	close(n.ended)
	if !ends(answered, n.cfg.HandOver) {
		n.log.Warn("Raft stopped and left questions without an answer", "server", n.cfg.ServerID)
	}
	r.DeregisterObserver(observer)
	return errors.Join(err, closeTransport(), n.storage.close())
}

func (n *Node) transport() (raft.Transport, func() error) {
	if n.cfg.Transport != nil {
		return n.cfg.Transport, func() error {
			if c, ok := n.cfg.Transport.(raft.WithClose); ok {
				return c.Close()
			}
			return nil
		}
	}
	t := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: advertised{n.cfg.Layer, address(n.cfg.Address)}, MaxPool: 3, Timeout: 10 * time.Second,
		Logger: n.raftLog, MsgpackUseNewTimeFormat: true,
	})
	return t, func() error {
		err := t.Close()
		t.CloseStreams()
		n.cfg.Layer.wait()
		return err
	}
}

// handOver gives leadership to another voter before a clean stop, so that the
// fleet need not notice the loss by silence.
func (n *Node) handOver(r *raft.Raft) {
	if r.State() != raft.Leader {
		return
	}
	if len(voters(r)) < 2 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), n.cfg.HandOver)
	defer cancel()
	if err := n.await(ctx, r.LeadershipTransfer()); err != nil {
		// When all stop together there is nobody to hand it to.
		n.log.Info("leadership was not handed over", "err", err)
	}
}

// ends waits until done closes, for so long.
func ends(done <-chan struct{}, patience time.Duration) bool {
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case <-done:
		return true
	case <-late.C:
		return false
	}
}

// await waits for one of Raft's futures, for ctx, or for Raft's end.
func (n *Node) await(ctx context.Context, f raft.Future) error {
	done := make(chan error, 1)
	n.proposals.Add(1)
	go func() {
		defer n.proposals.Done()
		done <- f.Error()
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-n.ended:
		return raft.ErrRaftShutdown
	}
}

// running returns Raft, and keeps Run from returning until release.
func (n *Node) running() (r *raft.Raft, release func(), err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.raft == nil {
		return nil, nil, ErrStopped
	}
	n.proposals.Add(1)
	return n.raft, n.proposals.Done, nil
}
