// Package logs bounds, reads and follows the files that containers write to.
//
// A container's output is appended to one file by its shim, which holds it
// open for as long as the container runs. It can therefore not be renamed
// away: Bound copies what is there to a second file (the name with ".1"
// appended) and truncates the first, which an appending writer does not
// mind. What is written in the instant between the last look and the
// truncation is lost, and of a writer that fills more than twice the limit
// between two looks, or outpaces the copy, what that bound does not hold;
// nothing else is.
//
// A Position is a place in the output as a whole, of both files; it stays
// valid across agent restarts and across one Bound, also one that kept only
// the end of the file. A reader further behind goes on at the oldest line that
// is kept.
//
// Neither reading nor bounding takes memory by the size of a file. All
// functions may be used at once on one file, by several processes too: a
// lock on the file keeps readers out while it is moved aside. The package keeps
// nothing in memory. Files are readable by their owner alone.
package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultMax is how large a file becomes before it is bounded; together with
// its predecessor a container keeps twice that.
const DefaultMax = 10 << 20

// previous is what Bound leaves beside path.
func previous(path string) string { return path + ".1" }

// origin tells where what is in previous began in the file that it was moved
// from; only there if that was not the file's beginning.
func origin(path string) string { return previous(path) + ".from" }

// Remove removes the log at path with all that belongs to it.
func Remove(path string) error {
	var errs []error
	for _, p := range []string{path, previous(path), origin(path)} {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Bound moves what is in path aside if it is larger than limit. It tells
// whether it did.
func Bound(path string, limit int64) (bool, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("bound log: %w", err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return false, fmt.Errorf("bound log %s: %w", path, err)
	}
	info, err := f.Stat()
	if err != nil || info.Size() <= limit {
		return false, err
	}
	if err := moveAside(f, path, info.Size(), limit); err != nil {
		return false, fmt.Errorf("bound log %s: %w", path, err)
	}
	return true, nil
}

func moveAside(f *os.File, path string, size, limit int64) error {
	// The copy takes the predecessor's place only when it is whole.
	temp, err := os.CreateTemp(filepath.Dir(path), ".log-*")
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name())
	defer temp.Close()
	// Of a writer that fills more than twice the limit between two looks, the
	// end is kept.
	var start int64
	if size > 2*limit {
		if start, err = nextLine(f, size-limit, size); err != nil {
			return err
		}
	}
	if _, err := f.Seek(start, io.SeekStart); err != nil {
		return err
	}
	// Linux copies from file to file inside the kernel; elsewhere io.Copy does
	// it in small pieces.
	if _, err := io.Copy(temp, io.LimitReader(f, 3*limit)); err != nil {
		return err
	}
	if err := temp.Chmod(0o600); err != nil {
		return err
	}
	if err := setOrigin(path, start); err != nil {
		return err
	}
	if err := os.Rename(temp.Name(), previous(path)); err != nil {
		return err
	}
	_, err = io.Copy(temp, io.LimitReader(f, limit)) // the last look
	return errors.Join(err, f.Truncate(0))
}

// nextLine returns the place of the first line that begins after at, or at
// itself if none does within a chunk, or before end.
func nextLine(f io.ReaderAt, at, end int64) (int64, error) {
	part := make([]byte, min(chunkSize, end-at))
	n, err := f.ReadAt(part, at)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	if i := bytes.IndexByte(part[:n], '\n'); i >= 0 && at+int64(i)+1 < end {
		return at + int64(i) + 1, nil
	}
	return at, nil
}

func setOrigin(path string, start int64) error {
	if start == 0 {
		if err := os.Remove(origin(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	return os.WriteFile(origin(path), []byte(strconv.FormatInt(start, 10)), 0o600)
}

func getOrigin(path string) int64 {
	text, err := os.ReadFile(origin(path))
	if err != nil {
		return 0
	}
	start, err := strconv.ParseInt(string(text), 10, 64)
	if err != nil || start < 0 {
		return 0
	}
	return start
}

// Keeper bounds every log in a directory.
type Keeper struct {
	Dir   string        // logs are the files in it, not below it, that end in ".log"
	Max   int64         // bytes; 0: DefaultMax
	Every time.Duration // 0: one second
	Log   *slog.Logger
}

// Run bounds until ctx ends.
func (k Keeper) Run(ctx context.Context) error {
	limit, every := k.Max, k.Every
	if limit <= 0 {
		limit = DefaultMax
	}
	if every <= 0 {
		every = time.Second
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		k.once(limit)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (k Keeper) once(limit int64) {
	entries, err := os.ReadDir(k.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		k.Log.Warn("logs are not bounded", "cause", err)
	}
	for _, e := range entries {
		switch name := e.Name(); {
		case strings.HasPrefix(name, ".log-"):
			// A copy that was cut short by the end of an agent. Those that
			// are being made are younger.
			if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > time.Minute {
				_ = os.Remove(filepath.Join(k.Dir, name))
			}
		case strings.HasSuffix(name, ".log") && e.Type().IsRegular():
			// Most logs are short: looking at the size is all that it takes.
			if info, err := e.Info(); err != nil || info.Size() <= limit {
				continue
			}
			if _, err := Bound(filepath.Join(k.Dir, name), limit); err != nil {
				k.Log.Warn("a log is not bounded", "cause", err)
			}
		}
	}
}
