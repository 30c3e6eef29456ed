// Package logs bounds, reads and follows the files that containers write to.
//
// A container's output is appended to one file by its shim, which holds it open
// for as long as the container runs: it can be neither renamed away nor, without
// losing what is written in that instant, copied and truncated. So Bound gives
// the beginning of the file back to the disk (a hole) and leaves the rest where
// it is. An offset therefore means the same byte for as long as the instance
// exists: over cuts, restarts of the instance, of the agent and of the host. No
// line is lost or doubled by a cut; a reader who is further behind than what is
// kept is told how much he missed. The file looks as large as all that was ever
// written; `du` tells what it takes.
//
// Where a file system knows no holes, Bound empties the file instead: what it
// held is lost, and readers are told so.
//
// Beside each log is an index (the name with ".idx" appended): where what is
// kept begins, where each run of the container began, and, once a second while
// something is written, how long the log was. It is what Since, Previous and
// times are read from, to the second, by this node's clock. Without it a log is
// read all the same.
//
// Neither reading nor cutting takes memory by the size of a log. All functions
// may be used at once on one log; a lock on the file serialises those that
// change the index. The package keeps nothing in memory but a Keeper's last
// sizes. Files are readable by their owner alone.
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
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultMax is how much of a log is kept at most, but for what is written
// within a second. A cut leaves the last half of it.
const DefaultMax = 20 << 20

// Remove removes the log at path with all that belongs to it.
func Remove(path string) error {
	var errs []error
	// The last is what an earlier version kept.
	for _, p := range []string{path, indexOf(path), path + ".1", path + ".1.from"} {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// locked opens the log at path and keeps others from changing its index; nil if
// it is not there.
func locked(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Bound cuts the log at path if more than limit is kept of it. It tells whether
// it did.
func Bound(path string, limit int64) (bool, error) {
	f, err := locked(path)
	if err != nil {
		return false, fmt.Errorf("bound log: %w", err)
	}
	if f == nil {
		return false, nil
	}
	defer f.Close()
	did, err := bound(f, path, limit)
	if err != nil {
		return did, fmt.Errorf("bound log %s: %w", path, err)
	}
	return did, nil
}

func bound(f *os.File, path string, limit int64) (bool, error) {
	size, err := length(f)
	if err != nil {
		return false, err
	}
	kept := head(f, path)
	if size-kept <= limit {
		// Once more: an agent may have ended between the two steps below.
		return false, hole(f, kept)
	}
	cut, err := nextLine(f, size-limit/2, size)
	if err != nil {
		return false, err
	}
	// The index first: what it says is dropped, no reader takes for output.
	if err := rewriteIndex(path, cut); err != nil {
		// No room for it, then, and there must be some. The index no longer says
		// where what is kept begins, so let a block's edge say it.
		cut &^= 4095
		if herr := hole(f, cut); herr != nil {
			return false, errors.Join(err, herr)
		}
		return true, rewriteIndex(path, cut)
	}
	return true, hole(f, cut)
}

// hole gives back what lies before cut.
func hole(f *os.File, cut int64) error {
	if cut == 0 {
		return nil
	}
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, cut)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return emptied(f)
	}
	return err
}

// emptied is the cut of a file system without holes.
func emptied(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	return os.Remove(indexOf(f.Name()))
}

// head is where what is kept of f begins.
func head(f *os.File, path string) int64 {
	said := indexHead(path)
	// What an index that could not be written does not say, the hole does.
	data, err := unix.Seek(int(f.Fd()), said, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		size, err := length(f)
		if err != nil {
			return said
		}
		return size
	}
	if err != nil || data < said {
		return said
	}
	return data
}

func length(f *os.File) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// nextLine returns the place of the first line that begins after at, or at
// itself if none does within a chunk, or before end.
func nextLine(f io.ReaderAt, at, end int64) (int64, error) {
	if at <= 0 {
		return 0, nil
	}
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

// Started notes that run number run of the container begins with what comes
// next. Saying it again changes nothing. There need be no log yet.
func Started(path string, run uint64, now time.Time) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err == nil {
		f.Close()
		f, err = locked(path)
	}
	if err != nil || f == nil {
		return fmt.Errorf("note the start of run %d: %w", run, err)
	}
	defer f.Close()
	size, err := length(f)
	if err != nil {
		return fmt.Errorf("note the start of run %d: %w", run, err)
	}
	for _, r := range readIndex(path) {
		if r.kind == runMark && r.run >= run {
			return nil
		}
	}
	if err := appendIndex(path, record{kind: runMark, offset: size, time: now, run: run}); err != nil {
		return fmt.Errorf("note the start of run %d: %w", run, err)
	}
	return nil
}

// Keeper bounds every log in a directory and notes how they grow.
type Keeper struct {
	Dir   string        // logs are the files in it, not below it, that end in ".log"
	Max   int64         // bytes; 0: DefaultMax
	Every time.Duration // 0: one second
	Log   *slog.Logger
}

// Run keeps until ctx ends.
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
	r := round{Keeper: k, limit: limit, seen: map[string]int64{}, told: map[string]string{}}
	for {
		r.once(time.Now())
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// round is a Keeper at work.
type round struct {
	Keeper
	limit int64
	seen  map[string]int64  // length at the last look
	told  map[string]string // what was complained about
}

func (r *round) once(now time.Time) {
	entries, err := os.ReadDir(r.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.complain(r.Dir, err)
	}
	there := map[string]bool{}
	for _, e := range entries {
		name := e.Name()
		path := filepath.Join(r.Dir, name)
		switch {
		case strings.HasPrefix(name, tempPrefix):
			// Left by the end of an agent. Those that are being made are younger.
			if info, err := e.Info(); err == nil && now.Sub(info.ModTime()) > time.Minute {
				_ = os.Remove(path)
			}
		case strings.HasSuffix(name, ".log") && e.Type().IsRegular():
			there[name] = true
			info, err := e.Info()
			last, known := r.seen[name]
			if err != nil || known && info.Size() == last {
				continue // most say nothing most of the time
			}
			r.seen[name] = info.Size()
			_, err = Bound(path, r.limit)
			if err == nil {
				err = mark(path, now)
			}
			if err != nil {
				r.complain(name, err)
				delete(r.seen, name) // again
			} else {
				delete(r.told, name)
			}
		}
	}
	for name := range r.seen {
		if !there[name] {
			delete(r.seen, name)
			delete(r.told, name)
		}
	}
}

// complain says what is wrong with one log once.
func (r *round) complain(name string, err error) {
	if r.told[name] != err.Error() {
		r.told[name] = err.Error()
		r.Log.Warn("a log is not kept as it should be", "log", name, "cause", err)
	}
}

// mark notes how long the log at path is now.
func mark(path string, now time.Time) error {
	f, err := locked(path)
	if err != nil || f == nil {
		return err
	}
	defer f.Close()
	size, err := length(f)
	if err != nil {
		return err
	}
	if last, ok := lastRecord(path); ok && last.offset == size || size == 0 {
		return nil
	}
	return appendIndex(path, record{kind: timeMark, offset: size, time: now})
}
