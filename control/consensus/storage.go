package consensus

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	boltstore "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
)

// Storage is where the log, the term and vote, and snapshots are kept.
type Storage struct {
	Logs      raft.LogStore
	Stable    raft.StableStore
	Snapshots raft.SnapshotStore
	closers   []io.Closer
}

// MemoryStorage forgets everything with the process; for tests, which may open
// a second node on the same one after the first has stopped.
func MemoryStorage() *Storage {
	s := raft.NewInmemStore()
	return &Storage{Logs: s, Stable: s, Snapshots: raft.NewInmemSnapshotStore()}
}

const (
	// snapshotsKept: the newest, and one before in case a disk bites it.
	snapshotsKept = 2
	logCache      = 512
)

// diskStorage opens dir, which must be this server's.
func diskStorage(dir string, id Identity, logger hclog.Logger) (*Storage, error) {
	lock, err := claim(dir, id)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, logFile)
	bolt, err := boltstore.New(boltstore.Options{
		Path: path,
		// Every append is synced. The freelist is rebuilt at open instead of
		// written with each transaction: nothing can be lost in it, and a commit
		// is one write shorter.
		BoltOptions:             &bbolt.Options{NoFreelistSync: true, FreelistType: bbolt.FreelistMapType, Timeout: time.Second},
		MsgpackUseNewTimeFormat: true,
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", path, err), lock.Close())
	}
	s := &Storage{Stable: bolt, closers: []io.Closer{bolt, lock}}
	if s.Logs, err = raft.NewLogCache(logCache, bolt); err != nil {
		return nil, errors.Join(err, s.close())
	}
	if s.Snapshots, err = raft.NewFileSnapshotStoreWithLogger(dir, snapshotsKept, logger); err != nil {
		return nil, errors.Join(fmt.Errorf("open snapshots in %s: %w", dir, err), s.close())
	}
	// The log's file was just made: without this a power cut could take its name.
	if err := syncDir(dir); err != nil && !errors.Is(err, os.ErrInvalid) {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *Storage) close() error {
	var errs []error
	for _, c := range s.closers {
		errs = append(errs, c.Close())
	}
	s.closers = nil
	return errors.Join(errs...)
}
