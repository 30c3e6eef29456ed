package store

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	reserveFile = "reserve"
	// reserveBytes are enough for days of what an agent writes by itself.
	reserveBytes = 16 << 20
)

// reserve is a file that takes room while there is some, and gives it back when
// the disk is full, so that an agent can still note what it starts and stops.
// A server keeps one alike (control/consensus); neither may import the other.
type reserve struct {
	path string
	size int64

	mu    sync.Mutex
	given bool // given back: the agent lives on it
}

// make makes the reserve if there is room for it and as much again.
func (r *reserve) make() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if fi, err := os.Stat(r.path); err == nil && fi.Size() == r.size {
		r.given = false
		return
	}
	var s unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(r.path), &s); err != nil || int64(s.Bavail)*s.Bsize < 2*r.size {
		return
	}
	f, err := os.OpenFile(r.path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, r.size)
	if errors.Is(err, unix.EOPNOTSUPP) {
		_, err = f.Write(make([]byte, r.size)) // a file of holes would reserve nothing
	}
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		_ = os.Remove(r.path)
		return
	}
	r.given = false
}

// give gives the room back; false if there was none to give.
func (r *reserve) give() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if os.Remove(r.path) != nil {
		return false
	}
	r.given = true
	return true
}

func (r *reserve) inUse() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.given
}

func full(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// DiskFull tells whether the disk is full: the store cannot be written, or only
// on its reserve. It makes the reserve anew once there is room.
func (s *Store) DiskFull() bool {
	s.reserve.make()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.full || s.reserve.inUse()
}
