package consensus

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	lockFile     = "lock"
	identityFile = "cluster.json"
	logFile      = "raft.db"
)

// Identity says whose data directory it is.
type Identity struct {
	ClusterID string `json:"cluster_id"`
	ServerID  string `json:"server_id"`
}

// ReadIdentity tells whose data directory dir is; fs.ErrNotExist if nobody's.
func ReadIdentity(dir string) (Identity, error) {
	var id Identity
	path := filepath.Join(dir, identityFile)
	data, err := os.ReadFile(path)
	if err != nil {
		return id, fmt.Errorf("read data directory %s: %w", dir, err)
	}
	if err := json.Unmarshal(data, &id); err != nil {
		return id, fmt.Errorf("read %s: %w; restore the file from a backup, or begin with an empty data directory", path, err)
	}
	return id, nil
}

// claim locks dir for this process and makes sure that it is want's. The file
// that is returned holds the lock until it is closed.
func claim(dir string, want Identity) (_ *os.File, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make data directory: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	have, err := ReadIdentity(dir)
	if errors.Is(err, os.ErrNotExist) {
		if _, err := os.Stat(filepath.Join(dir, logFile)); err == nil {
			return nil, fmt.Errorf("%w: %s has a log but no %s; restore the file from a backup, or begin with an empty data directory", ErrForeign, dir, identityFile)
		}
		if want.ClusterID == "" {
			return nil, fmt.Errorf("data directory %s is new and no cluster id is given for it", dir)
		}
		return lock, writeIdentity(dir, want)
	}
	if err != nil {
		return nil, err
	}
	if have.ServerID != want.ServerID {
		return nil, fmt.Errorf("%w: %s is of server %s, this is %s; give each server a data directory of its own", ErrForeign, dir, have.ServerID, want.ServerID)
	}
	if want.ClusterID != "" && have.ClusterID != want.ClusterID {
		return nil, fmt.Errorf("%w: %s is of cluster %s, this server is of %s; use its own data directory, or an empty one", ErrForeign, dir, have.ClusterID, want.ClusterID)
	}
	return lock, nil
}

// Exclude keeps servers out of dir until what it returns is closed. It fails with
// ErrInUse while one is at work there. In a directory that is not there yet, none
// can be, and there is nothing to hold.
func Exclude(dir string) (io.Closer, error) {
	lock, err := lockDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return io.NopCloser(nil), nil
	}
	return lock, err
}

// lockDir takes the lock, which the kernel releases however the process ends.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock data directory %s: %w", dir, err)
		}
		holder, _ := io.ReadAll(io.LimitReader(f, 32))
		return nil, fmt.Errorf("%w: %s is used by process %s; stop that one first, or use another directory", ErrInUse, dir, strings.TrimSpace(string(holder)))
	}
	if err := f.Truncate(0); err == nil {
		_, err = f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("lock data directory %s: %w", dir, err)
		}
	}
	return f, nil
}

// writeIdentity is atomic and durable: the file is whole or not there.
func writeIdentity(dir string, id Identity) error {
	data, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, identityFile+".*")
	if err != nil {
		return fmt.Errorf("claim data directory: %w", err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(append(data, '\n'))
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(dir, identityFile))
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return fmt.Errorf("claim data directory %s: %w", dir, err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
