package consensus

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"
)

const (
	reserveFile = "reserve"
	// DefaultReserve is the size of the reserve, bytes: some ten thousand
	// entries, or hours of what a fleet writes by itself.
	DefaultReserve = 32 << 20
	// reserveEvery is how often it is looked whether the reserve can be made
	// again.
	reserveEvery = 2 * time.Second
	onReserve    = "disk full, on its reserve"
)

// reserve is a file that takes room while there is some, and gives it back when
// the disk is full: a server then goes on long enough to hand leadership over,
// to make a snapshot, and to be told of.
type reserve struct {
	path string
	size int64
	log  *slog.Logger

	mu    sync.Mutex  // held over what is done to the file
	given atomic.Bool // given back: the server lives on it; asked by every proposal
}

func newReserve(dir string, size int64, log *slog.Logger) *reserve {
	return &reserve{path: filepath.Join(dir, reserveFile), size: size, log: log}
}

// make makes the reserve if there is room for it and as much again. It tells
// whether the reserve is there afterwards.
func (r *reserve) make() bool {
	if r == nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	fi, err := os.Stat(r.path)
	if err == nil && fi.Size() == r.size {
		r.given.Store(false)
		return true
	}
	var s unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(r.path), &s); err != nil || int64(s.Bavail)*s.Bsize < 2*r.size {
		return false
	}
	if err := r.fill(); err != nil {
		_ = os.Remove(r.path)
		return false
	}
	r.given.Store(false)
	return true
}

// fill takes the room for real: a file of holes would reserve nothing.
func (r *reserve) fill() error {
	f, err := os.OpenFile(r.path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, r.size)
	if errors.Is(err, unix.EOPNOTSUPP) {
		zeros := make([]byte, 1<<20)
		err = nil
		for n := int64(0); n < r.size && err == nil; n += int64(len(zeros)) {
			_, err = f.Write(zeros[:min(int64(len(zeros)), r.size-n)])
		}
	}
	return errors.Join(err, f.Sync(), f.Close())
}

// give gives the room back; false if there was none to give.
func (r *reserve) give() bool {
	if r == nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := os.Remove(r.path); err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			r.log.Warn("the reserve cannot be given back", "err", err)
		}
		return false
	}
	r.given.Store(true)
	return true
}

// inUse tells whether the server lives on what it gave back. It waits for
// nothing: the file may be in the making meanwhile.
func (r *reserve) inUse() bool { return r != nil && r.given.Load() }

// full tells whether err is of a disk without room. Raft's log cache keeps only
// the text of an error.
func full(err error) bool {
	if err == nil {
		return false
	}
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) ||
		strings.Contains(err.Error(), unix.ENOSPC.Error()) || strings.Contains(err.Error(), unix.EDQUOT.Error())
}

// watchReserve keeps the reserve, until ctx ends. On the reserve, leadership is
// handed over once, and a snapshot made, which shortens the log.
func (n *Node) watchReserve(ctx context.Context, r *raft.Raft) {
	tick := time.NewTicker(reserveEvery)
	defer tick.Stop()
	eased := false
	for {
		switch {
		case !n.guard.reserve.inUse():
			eased = false
			n.guard.reserve.make() // it may have been deleted, or there was no room
		case n.guard.reserve.make():
			n.log.Info("there is room again: the reserve is made anew")
			n.guard.changed()
		case !eased:
			eased = true
			n.ease(ctx, r)
		}
		select {
		case <-ctx.Done():
			return
		case <-n.guard.gave:
		case <-tick.C:
		}
	}
}

func (n *Node) ease(ctx context.Context, r *raft.Raft) {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.HandOver)
	defer cancel()
	if r.State() == raft.Leader && len(voters(r)) > 1 {
		if err := n.await(ctx, r.LeadershipTransfer()); err != nil {
			n.log.Warn("leadership was not handed over", "err", err)
		}
	}
	if err := n.await(ctx, r.Snapshot()); err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) {
		n.log.Debug("no snapshot was made", "err", err)
	}
}

// OnReserve tells whether the disk is full and the server lives on its reserve:
// what can wait should.
func (n *Node) OnReserve() bool { return n.guard.reserve.inUse() }
