package consensus

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// probeEvery is how often a store that failed is tried again while Raft
	// waits for it.
	probeEvery = time.Second
	// probeBytes must be written before a store that failed counts as writable
	// again. It is more than bolt may find in pages that it has freed: without
	// that a server with a full disk could win an election that it cannot use.
	probeBytes = 256 << 10
)

// probeKey holds nothing but the probe.
var probeKey = []byte("RedoubtProbe")

// currentTermKey is Raft's own.
const currentTermKey = "CurrentTerm"

// guard stands between Raft and its store, and keeps a store that cannot be
// written from ending the server.
//
// Raft bears it that entries cannot be stored: a leader steps down, a follower
// refuses them and is sent them again. It does not bear it that its term cannot
// be stored: it panics. So guard lets Raft wait at that place until the store
// can be written. Such a server gives no vote and stores nothing, which is what
// a server without a disk may do; the others go on without it, and it comes
// back by itself.
type guard struct {
	logs   raft.LogStore
	stable raft.StableStore
	log    *slog.Logger
	// changed is called when failure changes between nil and not.
	changed func()
	stop    chan struct{}
	once    sync.Once
	// reserve is given back once when the disk is full; nil: none is kept. gave
	// wakes who makes it anew.
	reserve *reserve
	gave    chan struct{} // capacity 1

	// terms serialises writes of the term. mu is a leaf.
	terms   sync.Mutex
	mu      sync.Mutex
	failure error
}

func newGuard(s *Storage, log *slog.Logger, changed func()) *guard {
	return &guard{logs: s.Logs, stable: s.Stable, log: log, changed: changed, stop: make(chan struct{}), gave: make(chan struct{}, 1)}
}

// close lets go of who waits for the store. Nothing is written afterwards, so
// that no vote and no entry can follow a term that was not stored.
func (g *guard) close() { g.once.Do(func() { close(g.stop) }) }

func (g *guard) closed() bool {
	select {
	case <-g.stop:
		return true
	default:
		return false
	}
}

// Failure says why the store cannot be written; nil: it can, as far as is known.
func (g *guard) Failure() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.failure
}

// note keeps what a write made of the store.
func (g *guard) note(err error) error {
	g.mu.Lock()
	before := g.failure
	g.failure = err
	g.mu.Unlock()
	switch {
	case err != nil && before == nil:
		g.log.Error("the store cannot be written: this server takes no part until it can", "err", err)
	case err == nil && before != nil:
		g.log.Info("the store can be written again")
	default:
		return err
	}
	g.changed()
	return err
}

// write does one write, and first proves that there is room where the last one
// failed.
func (g *guard) write(do func() error) error {
	if g.closed() {
		return ErrStopped
	}
	if g.Failure() != nil {
		if err := g.probe(); err != nil {
			return g.note(err)
		}
	}
	err := do()
	if full(err) && g.reserve.give() {
		g.log.Error("the disk is full: this server lives on its reserve until there is room again", "err", err)
		select {
		case g.gave <- struct{}{}:
		default:
		}
		g.changed()
		err = do()
	}
	return g.note(err)
}

func (g *guard) probe() error {
	return errors.Join(g.stable.Set(probeKey, make([]byte, probeBytes)), g.stable.Set(probeKey, nil))
}

func (g *guard) StoreLog(l *raft.Log) error { return g.StoreLogs([]*raft.Log{l}) }

func (g *guard) StoreLogs(l []*raft.Log) error {
	return g.write(func() error { return g.logs.StoreLogs(l) })
}

func (g *guard) DeleteRange(from, to uint64) error {
	if g.closed() {
		return ErrStopped
	}
	// It makes room: it must not need any first.
	return g.logs.DeleteRange(from, to)
}

func (g *guard) FirstIndex() (uint64, error)          { return g.logs.FirstIndex() }
func (g *guard) LastIndex() (uint64, error)           { return g.logs.LastIndex() }
func (g *guard) GetLog(i uint64, l *raft.Log) error   { return g.logs.GetLog(i, l) }
func (g *guard) Get(key []byte) ([]byte, error)       { return g.stable.Get(key) }
func (g *guard) GetUint64(key []byte) (uint64, error) { return g.stable.GetUint64(key) }

func (g *guard) Set(key, value []byte) error {
	return g.write(func() error { return g.stable.Set(key, value) })
}

func (g *guard) SetUint64(key []byte, value uint64) error {
	if string(key) != currentTermKey {
		return g.write(func() error { return g.stable.SetUint64(key, value) })
	}
	g.terms.Lock()
	defer g.terms.Unlock()
	for {
		err := g.write(func() error { return g.stable.SetUint64(key, value) })
		if err == nil {
			return nil
		}
		select {
		case <-g.stop:
			return nil // see close
		case <-time.After(probeEvery):
		}
	}
}

// StoreFailure says why this server's store cannot be written: "disk full", or
// the error; or that it is written on the reserve only. It is empty while all is
// well.
func (n *Node) StoreFailure() string {
	err := n.guard.Failure()
	switch {
	case err == nil && n.OnReserve():
		return onReserve
	case err == nil:
		return ""
	case full(err):
		return "disk full"
	}
	return fmt.Sprint(err)
}
