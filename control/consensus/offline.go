package consensus

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"

	"redoubt.dev/redoubt/control/state"
)

// stableTerm is the key under which Raft keeps its current term.
var stableTerm = []byte("CurrentTerm")

// Offline is what the data directory of a server that does not run holds.
type Offline struct {
	Identity
	// Index and Term of its last log entry, which need not have been committed.
	Index, Term uint64
}

// ReadOffline reads dir into store: its newest snapshot that can be read, and
// every log entry behind it. Like every recovery it counts entries as committed
// that perhaps never were; it loses none that was. It fails with ErrInUse while
// the server runs.
func ReadOffline(dir string, store *state.Store, log *slog.Logger) (_ Offline, err error) {
	id, err := ReadIdentity(dir)
	if err != nil {
		return Offline{}, err
	}
	s, err := diskStorage(dir, id, hclogger(log))
	if err != nil {
		return Offline{}, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	out := Offline{Identity: id}
	fsm := store.FSM()
	snapshots, err := s.Snapshots.List()
	if err != nil {
		return out, fmt.Errorf("list snapshots in %s: %w", dir, err)
	}
	var unread []error
	for _, meta := range snapshots {
		_, rc, err := s.Snapshots.Open(meta.ID)
		if err == nil {
			err = fsm.Restore(rc)
		}
		if err == nil {
			out.Index, out.Term = meta.Index, meta.Term
			break
		}
		unread = append(unread, fmt.Errorf("snapshot %s: %w", meta.ID, err))
	}
	first, err := s.Logs.FirstIndex()
	if err != nil {
		return out, fmt.Errorf("read the log in %s: %w", dir, err)
	}
	last, err := s.Logs.LastIndex()
	if err != nil {
		return out, fmt.Errorf("read the log in %s: %w", dir, err)
	}
	if last > out.Index && first > out.Index+1 {
		return out, errors.Join(fmt.Errorf("%s: its log begins at %d and no snapshot reaches there", dir, first), errors.Join(unread...))
	}
	for i := out.Index + 1; i <= last; i++ {
		var entry raft.Log
		if err := s.Logs.GetLog(i, &entry); err != nil {
			return out, fmt.Errorf("read log entry %d in %s: %w", i, dir, err)
		}
		if entry.Type == raft.LogCommand {
			fsm.Apply(&entry)
		}
		out.Index, out.Term = entry.Index, entry.Term
	}
	if t, err := s.Stable.GetUint64(stableTerm); err == nil {
		out.Term = max(out.Term, t)
	}
	return out, nil
}

// ReplaceOffline gives the server in dir the state of store as its whole past,
// as of index and term, and makes it the only voter, reached at address. What
// was in dir before is kept beside it and its name returned, empty if there was
// nothing. It happens in one step: a crash leaves the old or the new, and the
// former log is never where a repeat would clear it away. One before that step
// can leave a directory named as kept that holds what would have come.
func ReplaceOffline(dir string, id Identity, address string, store *state.Store, index, term uint64, now time.Time, log *slog.Logger) (kept string, err error) {
	next := dir + ".new"
	if err := os.RemoveAll(next); err != nil { // of an attempt that was cut short
		return "", err
	}
	if err := makeOffline(next, id, address, store, index, term, log); err != nil {
		return "", fmt.Errorf("make %s: %w", next, err)
	}
	switch _, err := os.Lstat(dir); {
	case errors.Is(err, fs.ErrNotExist):
		err = os.Rename(next, dir)
		return "", errors.Join(err, syncDir(filepath.Dir(dir)))
	case err != nil:
		return "", err
	}
	// Nobody may hold the directory while it is exchanged.
	lock, err := lockDir(dir)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	// The name comes before the exchange, which alone then makes the former log
	// the kept one: next is cleared away by whoever repeats this.
	kept = dir + ".before-" + now.UTC().Format("20060102T150405.000Z")
	if err := unix.Renameat2(unix.AT_FDCWD, next, unix.AT_FDCWD, kept, unix.RENAME_NOREPLACE); err != nil {
		return "", fmt.Errorf("rename %s to %s: %w", next, kept, err)
	}
	if err := errors.Join(syncDir(filepath.Dir(dir)), exchange(kept, dir)); err != nil {
		return "", fmt.Errorf("exchange %s and %s: %w; put the data directory on a file system that can exchange directories (ext4, xfs, btrfs, tmpfs)", kept, dir, err)
	}
	return kept, syncDir(filepath.Dir(dir))
}

// exchange is what a test cuts short.
var exchange = func(a, b string) error {
	return unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
}

func makeOffline(dir string, id Identity, address string, store *state.Store, index, term uint64, log *slog.Logger) (err error) {
	s, err := diskStorage(dir, id, hclogger(log))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	_, trans := raft.NewInmemTransport(raft.ServerAddress(address)) // only its codec is asked
	sink, err := s.Snapshots.Create(raft.SnapshotVersionMax, index, term, raft.Configuration{
		Servers: []raft.Server{{ID: raft.ServerID(id.ServerID), Address: raft.ServerAddress(address)}},
	}, index, trans)
	if err != nil {
		return err
	}
	snapshot, err := store.FSM().Snapshot()
	if err != nil {
		return errors.Join(err, sink.Cancel())
	}
	if err := snapshot.Persist(sink); err != nil {
		return err
	}
	return s.Stable.SetUint64(stableTerm, term)
}
