package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNodeHeld says that another agent of this machine has the node id.
var ErrNodeHeld = errors.New("node id is in use on this machine")

// claimRoot is where agents of one machine meet, in whatever network namespace
// they work.
const claimRoot = "/run/redoubt"

// claimPatience is for a process that is being started by another holder of the
// file: until its exec it holds a copy.
const claimPatience = time.Second

// claim is a node id held on this machine. What a node has on the host is named
// by its id, so two agents with one id would end each other's containers. It
// is a locked file, which no child inherits and the kernel lets go of however
// the process ends.
type claim struct{ file *os.File }

// claimNode takes node for this process. What is written in the file is for the
// other's error message only.
func claimNode(root, node, dataDir string) (*claim, error) {
	if node == "" || filepath.Base(node) != node {
		return nil, fmt.Errorf("claim node %q: that is no node id", node)
	}
	path := filepath.Join(root, node+".lock")
	for give := time.Now().Add(claimPatience); ; time.Sleep(20 * time.Millisecond) {
		f, err := lockFile(path)
		switch {
		case err == nil:
			_ = f.Truncate(0)
			_, _ = fmt.Fprintf(f, "%d %s\n", os.Getpid(), dataDir)
			return &claim{f}, nil
		case !errors.Is(err, unix.EWOULDBLOCK):
			return nil, fmt.Errorf("claim node %s on this machine: %w", node, err)
		case time.Now().After(give):
			return nil, fmt.Errorf("node %s: %w: %s has it, and what a node has on a host is named by its id; stop that agent, or give this one another id with --node",
				node, ErrNodeHeld, holder(path))
		}
	}
}

// NodeFree returns ErrNodeHeld if another agent of this machine has the node id
// now. It is for asking before anything is made; OpenHost takes the id.
func NodeFree(node, dataDir string) error {
	c, err := claimNode(claimRoot, node, dataDir)
	if err != nil {
		return err
	}
	return c.release()
}

// lockFile locks the file that path names once it is locked: its holder may
// have removed it meanwhile.
func lockFile(path string) (*os.File, error) {
	for range 100 {
		if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
			return nil, err
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the directory went with the last claim
		}
		if err != nil {
			return nil, err
		}
		there, err := lockOpened(f, path)
		if err == nil && there {
			return f, nil
		}
		f.Close()
		if err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%s is removed again and again", path)
}

// lockOpened locks f and tells whether it is still what path names.
func lockOpened(f *os.File, path string) (bool, error) {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return false, err
	}
	mine, err := f.Stat()
	if err != nil {
		return false, err
	}
	there, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(mine, there), err
}

func holder(path string) string {
	text, err := os.ReadFile(path)
	pid, dir, ok := strings.Cut(strings.TrimSpace(string(text)), " ")
	if err != nil || !ok {
		return "another agent"
	}
	return fmt.Sprintf("the agent with pid %s and data directory %s", pid, dir)
}

// release gives the id back; it may be called again.
func (c *claim) release() error {
	if c.file == nil {
		return nil
	}
	f := c.file
	c.file = nil
	err := os.Remove(f.Name()) // while it is held: nobody else's can be meant
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	_ = os.Remove(filepath.Dir(f.Name())) // only when it is empty
	return errors.Join(err, f.Close())
}
