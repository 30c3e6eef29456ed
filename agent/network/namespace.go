package network

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// namespace is a network namespace held open.
type namespace struct {
	fd    *os.File
	inode uint64
}

const threadNamespace = "/proc/thread-self/ns/net"

// currentNamespace holds the namespace of the calling thread.
func currentNamespace() (*namespace, error) {
	// An unlocked goroutine may move, but only between threads that share the
	// process's namespace: threads elsewhere are locked.
	return openNamespace(threadNamespace)
}

func openNamespace(path string) (*namespace, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	ino, err := inode(f)
	if err != nil {
		f.Close()
		return nil, err
	}
	return &namespace{fd: f, inode: ino}, nil
}

func inode(f *os.File) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, fmt.Errorf("stat %s: %w", f.Name(), err)
	}
	return st.Ino, nil
}

// do runs f on a thread that is in the namespace.
func (ns *namespace) do(f func() error) error {
	var st unix.Stat_t
	if err := unix.Stat(threadNamespace, &st); err == nil && st.Ino == ns.inode {
		return f()
	}
	return onOwnThread(func() error {
		if err := unix.Setns(int(ns.fd.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", ns.fd.Name(), err)
		}
		return f()
	})
}

// onOwnThread runs f on a thread that ends with it, so that whatever f does to
// the thread's namespaces cannot leak into other goroutines.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends here
		err := errors.New("the thread ended early")
		defer func() { done <- err }()
		err = f()
	}()
	return <-done
}

// createNamespace makes a namespace, prepares it from inside and pins it at
// path, in this order, so that what is pinned is prepared.
func createNamespace(path string, prepare func() error) (*namespace, error) {
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		return nil, fmt.Errorf("pin network namespace: %w", err)
	}
	var ns *namespace
	err := onOwnThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("create network namespace: %w", err)
		}
		if err := prepare(); err != nil {
			return err
		}
		if ns, err = openNamespace(threadNamespace); err != nil {
			return err
		}
		if err := unix.Mount(threadNamespace, path, "", unix.MS_BIND, ""); err != nil {
			return errors.Join(fmt.Errorf("pin network namespace at %s: %w", path, err), ns.fd.Close())
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, unpin(path))
	}
	return ns, nil
}

// pinned tells whether a namespace is mounted at path.
func pinned(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// unpin removes the pin, whatever is left of it. Removing the file also drops
// the mount from mount namespaces that were copied from this one meanwhile.
func unpin(path string) error {
	if err := unmountAll(path); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unpin network namespace: %w", err)
	}
	return nil
}

func unmountAll(path string) error {
	for {
		switch err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); {
		case err == nil:
			continue
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return nil // nothing is mounted there
		default:
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}

// ensurePinDir makes dir a mount that shares nothing with other mount
// namespaces, so that a pin is never copied to where nobody would remove it.
func ensurePinDir(dir string) error {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return fmt.Errorf("pin directory: %w", err)
	}
	mounted, err := mountinfo.Mounted(dir)
	if err != nil {
		return fmt.Errorf("pin directory %s: %w", dir, err)
	}
	if !mounted {
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount pin directory %s: %w", dir, err)
		}
	}
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make pin directory %s private: %w", dir, err)
	}
	return nil
}

// removePinDir undoes ensurePinDir and every pin below.
func removePinDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove pin directory: %w", err)
	}
	for _, e := range entries {
		if err := unpin(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	if err := unmountAll(dir); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove pin directory: %w", err)
	}
	return nil
}
