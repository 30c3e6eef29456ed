package state

import (
	"context"
	"fmt"
	"sync"

	"github.com/hashicorp/go-memdb"
)

// WatchSet collects channels that close when what was read changes. A nil one
// collects nothing.
type WatchSet = memdb.WatchSet

// NewWatchSet makes an empty set; wait with its WatchCtx.
func NewWatchSet() WatchSet { return memdb.NewWatchSet() }

// Cluster names the fleet; zero until InitCluster has applied.
type Cluster struct {
	ID, TrustDomain string
}

// Store holds the state. Anybody reads it; only its FSM writes.
type Store struct {
	db *memdb.MemDB

	mu      sync.Mutex
	index   uint64
	changed chan struct{} // closed when index moves, then replaced
}

// NewStore makes an empty state.
func NewStore() *Store {
	db, err := memdb.NewMemDB(schema())
	if err != nil {
		panic(fmt.Sprintf("state: the schema is wrong: %v", err))
	}
	txn := db.Txn(true)
	insert(txn, tableMeta, &meta{})
	txn.Commit()
	return &Store{db: db, changed: make(chan struct{})}
}

// Snapshot returns the state as of now, for reading.
func (s *Store) Snapshot() *View { return &View{txn: s.db.Txn(false)} }

// Index is of the last command that was applied. Snapshot then shows it, or a
// later one.
func (s *Store) Index() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.index
}

// Changed closes when a command after the call has applied.
func (s *Store) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// Wait returns when the command at index, or a later one, has applied.
func (s *Store) Wait(ctx context.Context, index uint64) error {
	for {
		s.mu.Lock()
		now, changed := s.index, s.changed
		s.mu.Unlock()
		if now >= index {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for log index %d (applied: %d): %w", index, now, ctx.Err())
		}
	}
}

// published tells waiters that the state at index can be read.
func (s *Store) published(index uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.index = index
	close(s.changed)
	s.changed = make(chan struct{})
}

// insert and remove cannot fail but for a wrong schema, which every server has
// alike.
func insert(txn *memdb.Txn, table string, obj any) {
	if err := txn.Insert(table, obj); err != nil {
		panic(fmt.Sprintf("state: insert into %s: %v", table, err))
	}
}

func remove(txn *memdb.Txn, table string, obj any) {
	if err := txn.Delete(table, obj); err != nil {
		panic(fmt.Sprintf("state: delete from %s: %v", table, err))
	}
}
