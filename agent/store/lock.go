package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// ErrInUse says that another process holds the data directory.
var ErrInUse = errors.New("data directory is in use")

// Lock is a data directory held by this process.
type Lock struct{ file *os.File }

// AcquireLock makes dir (mode 0700) if it is missing and takes it for this
// process. The kernel lets go of it however the process ends.
func AcquireLock(dir string) (*Lock, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make data directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock data directory %s: %w", dir, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock data directory %s: %w", dir, err)
		}
		holder := "another process"
		buf := make([]byte, 32)
		if n, _ := f.ReadAt(buf, 0); n > 0 {
			if pid := strings.TrimSpace(string(buf[:n])); pid != "" {
				holder = "process " + pid
			}
		}
		return nil, &inUseError{dir: dir, holder: holder}
	}
	// The pid is for the other's error message only: losing it loses nothing.
	_ = f.Truncate(0)
	_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return &Lock{file: f}, nil
}

// Release gives the directory back.
func (l *Lock) Release() error { return l.file.Close() }

type inUseError struct{ dir, holder string }

func (e *inUseError) Error() string {
	return fmt.Sprintf("data directory %s is in use by %s; stop it, or give this agent another --data-dir", e.dir, e.holder)
}

func (e *inUseError) Is(target error) bool { return target == ErrInUse }
