package install

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Runs says which process works on the daemon's data directory, "" if none
// does. Both daemons hold a lock there with their process in it.
func (h Host) Runs(d Daemon) string {
	lock := filepath.Join(h.at(d.Data), "lock")
	if d == Server {
		lock = filepath.Join(h.at(d.Data), "raft", "lock")
	}
	f, err := os.Open(lock)
	if err != nil {
		return ""
	}
	defer f.Close() // lets go of a lock that was to be had
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		return ""
	}
	buf := make([]byte, 32)
	n, err := f.Read(buf)
	pid := strings.TrimSpace(string(buf[:n]))
	if err != nil || pid == "" {
		return "unknown"
	}
	return pid
}
