package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// pollEvery is how often a followed file is looked at.
	pollEvery = 100 * time.Millisecond
	// chunkSize is how much is read at once.
	chunkSize = 256 << 10
	// tailMax is how far back Tail looks: what a container keeps.
	tailMax = 2 * DefaultMax
)

// Position is how far a reader has come. The zero value is the beginning of a
// log that has never been bounded.
type Position struct {
	at    int64  // in the file that it stands in, counted from what was its beginning
	moved uint64 // inode of what was moved aside last: a new one tells of a Bound
	old   bool   // it stands in what was moved aside
}

// Tail writes the last n lines (all if n is negative) to w and returns the
// place after them, to follow from. It looks back at most tailMax bytes and
// holds a chunk of them at a time. A log that is not there is empty.
func Tail(path string, n int, w io.Writer) (Position, error) {
	p, todo, err := seek(path, n)
	if err != nil {
		return p, err
	}
	var chunk bytes.Buffer
	for todo > 0 {
		// What a writer adds meanwhile is for Follow.
		if err := p.forward(path, &chunk, min(todo, chunkSize)); err != nil {
			return p, err
		}
		if chunk.Len() == 0 {
			return p, nil // it was bounded meanwhile, and kept less
		}
		todo -= int64(chunk.Len())
		if _, err := chunk.WriteTo(w); err != nil {
			return p, fmt.Errorf("read log %s: %w", path, err)
		}
		chunk.Reset()
	}
	return p, nil
}

// seek finds where the last n lines begin and how many bytes there are from
// there.
func seek(path string, n int) (Position, int64, error) {
	f, err := openShared(path)
	if err != nil || f == nil {
		return Position{moved: inode(previous(path))}, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Position{}, 0, fmt.Errorf("read log: %w", err)
	}
	size := info.Size()
	p := Position{at: size, moved: inode(previous(path))}
	if n == 0 {
		return p, 0, nil
	}
	wrap := func(err error) error { return fmt.Errorf("read log %s: %w", path, err) }
	back := lineCounter{todo: n, first: true}
	floor := max(0, size-tailMax)
	start, err := back.lines(f, floor, size)
	if err != nil {
		return p, 0, wrap(err)
	}
	if back.done || floor > 0 {
		p.at = start
		return p, size - start, nil
	}
	old, err := os.Open(previous(path))
	if errors.Is(err, fs.ErrNotExist) {
		return Position{moved: p.moved}, size, nil
	}
	if err != nil {
		return p, 0, wrap(err)
	}
	defer old.Close()
	if info, err = old.Stat(); err != nil {
		return p, 0, wrap(err)
	}
	start, err = back.lines(old, max(0, info.Size()-(tailMax-size)), info.Size())
	if err != nil {
		return p, 0, wrap(err)
	}
	return Position{at: getOrigin(path) + start, moved: p.moved, old: true}, size + info.Size() - start, nil
}

// lineCounter looks for the beginning of the last todo lines (all if it is
// negative), from the end backwards.
type lineCounter struct {
	todo  int
	first bool // no byte was seen yet: a newline there ends the last line
	done  bool
}

// lines returns where the lines begin in f, between floor and end. If floor is
// not the beginning of f, it is taken to be inside a line.
func (c *lineCounter) lines(f io.ReaderAt, floor, end int64) (int64, error) {
	part := make([]byte, min(chunkSize/4, max(end-floor, 0)))
	for at := end; at > floor && c.todo > 0; {
		n := min(int64(len(part)), at-floor)
		if _, err := f.ReadAt(part[:n], at-n); err != nil {
			return 0, err
		}
		i := int(n)
		if c.first && part[i-1] == '\n' {
			i--
		}
		c.first = false
		for {
			if i = bytes.LastIndexByte(part[:i], '\n'); i < 0 {
				break
			}
			if c.todo--; c.todo == 0 {
				c.done = true
				return at - n + int64(i) + 1, nil
			}
		}
		at -= n
	}
	if floor > 0 && floor < end {
		return nextLine(f, floor, end)
	}
	return floor, nil
}

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
func Follow(ctx context.Context, path string, from Position, w io.Writer) (Position, error) {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	p := from
	var chunk bytes.Buffer
	for {
		ended := ctx.Err() != nil
		chunk.Reset()
		if err := p.forward(path, &chunk, chunkSize); err != nil {
			return p, err
		}
		full := chunk.Len() >= chunkSize
		// Without the lock: a reader who does not read must not keep the log
		// from being bounded.
		if chunk.Len() > 0 {
			if _, err := w.Write(chunk.Bytes()); err != nil {
				return p, fmt.Errorf("follow log %s: %w", path, err)
			}
		}
		if full {
			continue // there may be more at once
		}
		if ended {
			return p, nil
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

func inode(path string) uint64 {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return 0
	}
	return st.Ino
}

// forward reads what is there after p, at most limit bytes.
func (p *Position) forward(path string, chunk *bytes.Buffer, limit int64) error {
	f, err := openShared(path)
	if err != nil || f == nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("follow log: %w", err)
	}
	moved := inode(previous(path))
	switch {
	case p.old && moved != p.moved:
		// What it stood in is gone; all of the file after it was moved aside.
		*p = Position{moved: moved, old: true}
	case !p.old && (moved != p.moved || info.Size() < p.at):
		// It was bounded; what had not been read yet was moved aside.
		p.moved, p.old = moved, true
	}
	if p.old {
		old, err := os.Open(previous(path))
		if err == nil {
			start := getOrigin(path)
			p.at = max(p.at, start)
			err = p.copy(old, start, chunk, limit)
			old.Close()
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("follow log %s: %w", path, err)
		}
		if int64(chunk.Len()) >= limit {
			return nil // the rest of what was moved aside next time
		}
		*p = Position{moved: moved}
	}
	if err := p.copy(f, 0, chunk, limit); err != nil {
		return fmt.Errorf("follow log %s: %w", path, err)
	}
	return nil
}

// copy reads what follows p in f, which begins at start.
func (p *Position) copy(f *os.File, start int64, chunk *bytes.Buffer, limit int64) error {
	n, err := io.Copy(chunk, io.NewSectionReader(f, p.at-start, limit-int64(chunk.Len())))
	p.at += n
	return err
}
