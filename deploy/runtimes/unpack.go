package runtimes

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

const (
	tempPrefix = ".tmp-"
	lockName   = ".lock"
	// shortDigest is how many hex digits name a part's folder. The whole digest
	// is verified, so a clash would show as a repair and never as a wrong file.
	shortDigest = 12
)

// Unpack writes every part below dir as SHORT-DIGEST/NAME and returns where
// they lie; crun, which is not carried, is looked up in PATH. What the package
// comment promises holds whatever state dir is in.
func (b Bundle) Unpack(ctx context.Context, dir string) (Paths, error) {
	return b.unpack(ctx, dir, func(Part) bool { return true })
}

func (b Bundle) unpack(ctx context.Context, dir string, want func(Part) bool) (Paths, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Paths{}, fmt.Errorf("unpack runtimes: %w", err)
	}
	if err := ownFolder(dir); err != nil {
		return Paths{}, fmt.Errorf("unpack runtimes: %w", err)
	}
	unlock, err := lock(ctx, dir)
	if err != nil {
		return Paths{}, fmt.Errorf("unpack runtimes: %w", err)
	}
	defer unlock()
	if err := removeStale(dir); err != nil {
		return Paths{}, fmt.Errorf("unpack runtimes: %w", err)
	}

	var (
		paths Paths
		write []Part
		need  int64
	)
	for _, p := range b.parts {
		if !want(p) {
			continue
		}
		p.Path = filepath.Join(dir, p.hash()[:shortDigest], p.file())
		there, good, err := verify(ctx, p)
		if err != nil {
			return Paths{}, fmt.Errorf("verify %s: %w", p.Path, err)
		}
		if there && !good {
			paths.Repaired = append(paths.Repaired, p.Name)
		}
		if !good {
			write = append(write, p)
			need += p.Size
		}
		paths.add(p)
	}
	if len(write) > 0 {
		if err := b.write(ctx, dir, write, need); err != nil {
			return Paths{}, err
		}
	}
	for _, name := range carried {
		if *paths.slot(name) == "" {
			paths.miss(name, "this program carries no "+name)
		}
	}
	if err := paths.fromHost(ctx, Crun); err != nil {
		return Paths{}, err
	}
	return paths, nil
}

// write puts parts in their places, or says that the disk is too full.
func (b Bundle) write(ctx context.Context, dir string, parts []Part, need int64) error {
	full := func(err error) error {
		return fmt.Errorf("unpack runtimes: %s has too little space: %d bytes (%d MiB) are needed there; free some or choose another folder: %w",
			dir, need, (need+1<<20-1)>>20, err)
	}
	// Asking first keeps a nearly full disk from being filled to the brim, which
	// would hurt others than us. It is no guarantee: writing can still fail.
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err == nil && st.Blocks > 0 && uint64(need) > st.Bavail*uint64(st.Bsize) {
		return full(unix.ENOSPC)
	}
	temp, err := os.MkdirTemp(dir, tempPrefix)
	if err != nil {
		if noSpace(err) {
			return full(err)
		}
		return fmt.Errorf("unpack runtimes: %w", err)
	}
	defer os.RemoveAll(temp)
	defer release()
	for _, p := range parts {
		if err := b.writePart(ctx, temp, p); err != nil {
			if noSpace(err) {
				return full(err)
			}
			return fmt.Errorf("unpack %s: %w", p.Name, err)
		}
	}
	return nil
}

// writePart decompresses one part into temp, checks it, and renames it to its
// place.
func (b Bundle) writePart(ctx context.Context, temp string, p Part) error {
	from, err := b.fsys.Open(p.Name + ".zst")
	if err != nil {
		return err
	}
	defer from.Close()
	dec, err := zstd.NewReader(from, zstd.WithDecoderConcurrency(1))
	if err != nil {
		return err
	}
	defer dec.Close()

	name := filepath.Join(temp, p.file())
	to, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer to.Close()
	sum := sha256.New()
	// One byte more than there should be is enough to see that it is too long.
	n, err := io.Copy(io.MultiWriter(to, sum), &contextReader{ctx, io.LimitReader(dec, p.Size+1)})
	if err != nil {
		var pe *fs.PathError
		if ctx.Err() != nil || errors.As(err, &pe) {
			return err
		}
		return fmt.Errorf("the embedded copy is damaged, rebuild with make: %w", err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); n != p.Size || got != p.hash() {
		return fmt.Errorf("the embedded copy is damaged, rebuild with make: want %d bytes of sha256 %s, got at least %d of %s", p.Size, p.hash(), n, got)
	}
	if err := to.Chmod(mode(p)); err != nil {
		return err
	}
	// Synced before the rename: a power cut must not leave an empty file under
	// the final name. It would be found and repaired, but only at the next start.
	if err := to.Sync(); err != nil {
		return err
	}
	if err := to.Close(); err != nil {
		return err
	}

	place := filepath.Dir(p.Path)
	if err := os.Mkdir(place, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := os.Rename(name, p.Path); err != nil {
		// Something that a file cannot replace sits there, such as a folder.
		if err := os.RemoveAll(p.Path); err != nil {
			return err
		}
		if err := os.Rename(name, p.Path); err != nil {
			return err
		}
	}
	return errors.Join(syncFolder(place), syncFolder(filepath.Dir(place)))
}

// verify reports whether the file of a part is there, and whether it is what it
// should be. Its mode is put right in passing; anything but a regular file of
// ours counts as wrong, a link to the right content too, since its target can
// be exchanged by whoever owns that.
func verify(ctx context.Context, p Part) (there, good bool, err error) {
	// A place that is a link or a file is removed: what lies behind it is not ours.
	place := filepath.Dir(p.Path)
	switch st, err := os.Lstat(place); {
	case errors.Is(err, fs.ErrNotExist):
		return false, false, nil
	case err != nil:
		return false, false, err
	case !st.IsDir():
		if err := os.Remove(place); err != nil {
			return true, false, err
		}
		return true, false, nil
	}
	if err := ownFolder(place); err != nil {
		return true, false, err
	}
	st, err := os.Lstat(p.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, false, nil
	}
	if err != nil {
		return false, false, err
	}
	if !st.Mode().IsRegular() || st.Size() != p.Size || !owned(st) {
		return true, false, nil
	}
	sum, _, err := hashFile(ctx, p.Path)
	if ctx.Err() != nil {
		return true, false, ctx.Err()
	}
	if err != nil || sum != p.hash() {
		// A file that cannot be read (a bad block, say) is repaired like any other.
		return true, false, nil
	}
	if st.Mode().Perm() != mode(p) {
		if err := os.Chmod(p.Path, mode(p)); err != nil {
			return true, false, err
		}
	}
	return true, true, nil
}

func mode(p Part) fs.FileMode {
	if p.Kind == KindImage {
		return 0o644
	}
	return 0o755
}

func hashFile(ctx context.Context, name string) (sum string, size int64, err error) {
	f, err := os.Open(name)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	size, err = io.Copy(h, &contextReader{ctx, f})
	if err != nil {
		return "", 0, err
	}
	return hex.EncodeToString(h.Sum(nil)), size, nil
}

// ownFolder makes a folder for us alone, or checks that one which is there is
// ours and closes it to others.
func ownFolder(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	st, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if !st.IsDir() {
		return fmt.Errorf("%s is not a folder", dir)
	}
	if !owned(st) {
		return fmt.Errorf("%s belongs to another user, who could exchange the programs in it: choose another folder", dir)
	}
	if st.Mode()&fs.ModeSticky != 0 {
		return fmt.Errorf("%s is shared with other users: choose a folder of its own", dir)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return os.Chmod(dir, 0o700)
	}
	return nil
}

func owned(st fs.FileInfo) bool {
	sys, ok := st.Sys().(*syscall.Stat_t)
	return ok && int(sys.Uid) == os.Geteuid()
}

// lock waits until no other process unpacks into dir. The kernel gives the lock
// up when its holder dies.
func lock(ctx context.Context, dir string) (unlock func(), err error) {
	name := filepath.Join(dir, lockName)
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("wait for the process that unpacks into %s: %w", dir, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// removeStale deletes what a killed process left. The caller holds the lock, so
// no living one is using it.
func removeStale(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempPrefix) {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	// Some file systems cannot sync a folder, and need not.
	if err := f.Sync(); err != nil && !errors.Is(err, unix.EINVAL) {
		return err
	}
	return nil
}

func noSpace(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// contextReader ends a copy when the context does.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
