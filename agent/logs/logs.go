// Package logs bounds, reads and follows the files that containers write to.
//
// A container's output is appended to one file by its shim, which holds it
// open for as long as the container runs. It can therefore not be renamed
// away: Bound copies what is there to a second file (the name with ".1"
// appended) and truncates the first, which an appending writer does not
// mind. What is written in the instant between the last look and the
// truncation is lost; nothing else is.
//
// A Position is a place in the output as a whole, of both files; it stays
// valid across agent restarts and across one Bound, and says so when what it
// stands at has been dropped.
//
// All functions may be used at once on one file, by several processes too: a
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
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultMax is how large a file becomes before it is bounded; together with
// its predecessor a container keeps twice that.
const DefaultMax = 10 << 20

// previous is what Bound leaves beside path.
func previous(path string) string { return path + ".1" }

// Remove removes the log at path with all that belongs to it.
func Remove(path string) error {
	var errs []error
	for _, p := range []string{path, previous(path)} {
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
	// The copy takes the predecessor's place only when it is whole.
	temp, err := os.CreateTemp(filepath.Dir(path), ".log-*")
	if err != nil {
		return false, fmt.Errorf("bound log %s: %w", path, err)
	}
	defer os.Remove(temp.Name())
	defer temp.Close()
	// A writer that outpaces the copy is cut off at twice the limit: of what
	// is beyond, the end is kept.
	if info.Size() > 2*limit {
		if _, err := f.Seek(-limit, io.SeekEnd); err != nil {
			return false, fmt.Errorf("bound log %s: %w", path, err)
		}
	}
	if _, err := io.Copy(temp, io.LimitReader(f, 3*limit)); err != nil {
		return false, fmt.Errorf("bound log %s: %w", path, err)
	}
	if err := temp.Chmod(0o600); err != nil {
		return false, fmt.Errorf("bound log %s: %w", path, err)
	}
	if err := os.Rename(temp.Name(), previous(path)); err != nil {
		return false, fmt.Errorf("bound log %s: %w", path, err)
	}
	_, err = io.Copy(temp, f) // the last look
	if err = errors.Join(err, f.Truncate(0)); err != nil {
		return false, fmt.Errorf("bound log %s: %w", path, err)
	}
	return true, nil
}

// Keeper bounds every log in a directory.
type Keeper struct {
	Dir   string        // logs are the files in it, not below it, that end in ".log"
	Max   int64         // bytes; 0: DefaultMax
	Every time.Duration // 0: five seconds
	Log   *slog.Logger
}

// Run bounds until ctx ends.
func (k Keeper) Run(ctx context.Context) error {
	limit, every := k.Max, k.Every
	if limit <= 0 {
		limit = DefaultMax
	}
	if every <= 0 {
		every = 5 * time.Second
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
			if _, err := Bound(filepath.Join(k.Dir, name), limit); err != nil {
				k.Log.Warn("a log is not bounded", "cause", err)
			}
		}
	}
}

// Tail returns the last n lines (all if n is negative) and the place after
// them, to follow from. A log that is not there is empty.
func Tail(path string, n int) ([]byte, int64, error) {
	f, err := openShared(path)
	if err != nil || f == nil {
		return nil, 0, err
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	if err != nil {
		return nil, 0, err
	}
	at := int64(len(data))
	out := lastLines(data, n)
	if n < 0 || bytes.Count(out, []byte("\n")) < n {
		old, err := read(previous(path))
		if err != nil {
			return nil, 0, err
		}
		out = lastLines(append(old, data...), n)
	}
	return out, at, nil
}

func read(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read log: %w", err)
	}
	return data, nil
}

func lastLines(data []byte, n int) []byte {
	if n < 0 {
		return data
	}
	end := len(data)
	if end > 0 && data[end-1] == '\n' {
		end--
	}
	for i := end; n > 0; n-- {
		i = bytes.LastIndexByte(data[:i], '\n')
		if i < 0 {
			return data
		}
		if n == 1 {
			return data[i+1:]
		}
	}
	return nil
}

// pollEvery is how often a followed file is looked at.
const pollEvery = 100 * time.Millisecond

const chunkSize = 256 << 10

// openShared opens path and keeps Bound off it until it is closed; nil if it
// is not there.
func openShared(path string) (*os.File, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read log: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH); err != nil {
		f.Close()
		return nil, fmt.Errorf("read log %s: %w", path, err)
	}
	return f, nil
}

// Follow writes what comes after from (of Tail) to w until ctx ends, then once
// more what is there by then. It returns the place that it came to, and an
// error only if the file cannot be read or w fails.
func Follow(ctx context.Context, path string, from int64, w io.Writer) (int64, error) {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	p := place{at: from, moved: inode(previous(path))}
	var chunk bytes.Buffer
	for {
		ended := ctx.Err() != nil
		chunk.Reset()
		if err := p.forward(path, &chunk); err != nil {
			return p.at, err
		}
		// Without the lock: a reader who does not read must not keep the log
		// from being bounded.
		if chunk.Len() > 0 {
			if _, err := w.Write(chunk.Bytes()); err != nil {
				return p.at, fmt.Errorf("follow log %s: %w", path, err)
			}
		}
		if chunk.Len() >= chunkSize {
			continue // there may be more at once
		}
		if ended {
			return p.at, nil
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// place is how far a follower has come.
type place struct {
	at    int64
	moved uint64 // inode of what was moved aside last: a new one tells of a Bound
}

func inode(path string) uint64 {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return 0
	}
	return st.Ino
}

// forward reads what is there after p, at most about a chunk.
func (p *place) forward(path string, chunk *bytes.Buffer) error {
	f, err := openShared(path)
	if err != nil || f == nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("follow log: %w", err)
	}
	if moved := inode(previous(path)); moved != p.moved || info.Size() < p.at {
		// It was bounded; what had not been read yet was moved aside.
		old, err := os.Open(previous(path))
		if err == nil {
			err = p.copy(old, chunk)
			old.Close()
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("follow log %s: %w", path, err)
		}
		if chunk.Len() >= chunkSize {
			return nil // the rest of what was moved aside next time
		}
		p.at, p.moved = 0, moved
	}
	if err := p.copy(f, chunk); err != nil {
		return fmt.Errorf("follow log %s: %w", path, err)
	}
	return nil
}

func (p *place) copy(f *os.File, chunk *bytes.Buffer) error {
	n, err := io.Copy(chunk, io.NewSectionReader(f, p.at, chunkSize-int64(chunk.Len())))
	p.at += n
	return err
}
