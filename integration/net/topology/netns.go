package topology

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

const netnsDir = "/run/netns"

// In runs f on a thread that is in the named network namespace. What f starts
// by os/exec is born there. The thread is thrown away.
func In(namespace string, f func() error) error {
	return At(filepath.Join(netnsDir, namespace), f)
}

// At is In for a network namespace that is mounted elsewhere.
func At(namespace string, f func() error) error {
	return spare(func() error {
		fd, err := unix.Open(namespace, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open network namespace %s: %w", namespace, err)
		}
		defer unix.Close(fd)
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", namespace, err)
		}
		return f()
	})
}

// spare runs f on a thread that ends with it. The process's first thread never
// ends, and what /proc/self says is said of it, so that one is not taken.
func spare(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			done <- spare(f) // on another thread, since this one is held
			runtime.UnlockOSThread()
			return
		}
		done <- f()
	}()
	return <-done
}

// create makes a named namespace, as `ip netns add` does.
func create(name string) error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return err
	}
	path := filepath.Join(netnsDir, name)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return fmt.Errorf("make network namespace: %w", err)
	}
	f.Close()
	err = spare(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, "")
	})
	if err != nil {
		_ = os.Remove(path)
		return fmt.Errorf("make network namespace %s: %w", name, err)
	}
	return nil
}

// drop removes a named namespace; its links go when its last user has.
func drop(name string) error {
	path := filepath.Join(netnsDir, name)
	for {
		// A crash between two makes can leave it without its mount, and two
		// runs can leave it mounted twice.
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			break
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove network namespace: %w", err)
	}
	return nil
}

// set writes a sysctl of the calling thread's namespace.
func set(name, value string) error {
	path := "/proc/sys/" + strings.ReplaceAll(name, ".", "/")
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return fmt.Errorf("set %s: %w", name, err)
	}
	return nil
}
