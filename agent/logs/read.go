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
)

const (
	// A followed file is looked at so often: soon while something comes, more
	// seldom the longer nothing does.
	pollFirst, pollLast = 20 * time.Millisecond, 250 * time.Millisecond
	// chunkSize is how much is read at once.
	chunkSize = 32 << 10
)

// ErrNoPrevious: the container has been started once only, as far as is known.
var ErrNoPrevious = errors.New("it has not been restarted: there is no output of an earlier run")

// Options say which part of a log is read.
type Options struct {
	// From goes on after that many bytes of all that was ever written; negative:
	// as the other fields say.
	From int64
	// Tail is how many of the last lines; negative: all.
	Tail int
	// Since leaves out what had been written by then; zero: nothing.
	Since time.Time
	// Previous is what was written between the last two starts. It is over: it
	// is not followed.
	Previous bool
	Follow   bool
}

// Chunk is a part of a log, at most about 32 KiB.
type Chunk struct {
	Data   []byte // reused for the next
	Offset int64  // of what comes after Data, among all that was ever written
	// Time by which Data had been written; zero: not known.
	Time time.Time
	// Dropped bytes before Data, at least, that should have come and are no
	// longer kept.
	Dropped int64
}

// Read hands over the log at path in chunks. The first comes at once and may be
// empty: its Offset is where reading begins. With Follow it goes on until ctx
// ends, and then once more with what is there by then. A log that is not there
// is empty. An error of hand ends it and is returned.
func Read(ctx context.Context, path string, o Options, hand func(Chunk) error) error {
	r := reader{path: path, hand: hand, buf: make([]byte, chunkSize)}
	defer func() {
		if r.f != nil {
			r.f.Close()
		}
	}()
	if err := r.open(); err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	end, err := r.begin(o)
	if err == nil {
		err = hand(Chunk{Offset: r.at})
	}
	if err == nil {
		err = r.upTo(end)
	}
	if err != nil {
		return fmt.Errorf("read log %s: %w", path, err)
	}
	if !o.Follow || o.Previous {
		return nil
	}
	if err := r.follow(ctx); err != nil {
		return fmt.Errorf("follow log %s: %w", path, err)
	}
	return nil
}

// reader is a Read under way.
type reader struct {
	path  string
	hand  func(Chunk) error
	f     *os.File // nil: there is none yet
	at    int64
	index []record // as of the beginning
	buf   []byte
}

func (r *reader) open() error {
	if r.f != nil {
		return nil
	}
	f, err := os.Open(r.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	r.f = f
	return err
}

// begin finds where o begins and where what there is ends.
func (r *reader) begin(o Options) (end int64, err error) {
	if r.f == nil {
		if o.Previous {
			return 0, ErrNoPrevious
		}
		r.at = max(0, o.From)
		return 0, nil
	}
	if end, err = length(r.f); err != nil {
		return 0, err
	}
	r.index = readIndex(r.path)
	if o.From >= 0 {
		r.at = o.From
		return end, nil
	}
	start := head(r.f, r.path)
	if o.Previous {
		at := runs(r.index)
		if len(at) < 2 {
			return 0, ErrNoPrevious
		}
		start, end = max(start, at[len(at)-2]), min(end, at[len(at)-1])
	}
	if !o.Since.IsZero() {
		start = max(start, since(r.index, o.Since))
	}
	start = min(start, end)
	if o.Tail >= 0 {
		if start, err = lastLines(r.f, start, end, o.Tail); err != nil {
			return 0, err
		}
	}
	r.at = start
	return end, nil
}

// upTo hands over what there is before end.
func (r *reader) upTo(end int64) error {
	for r.at < end {
		c, limit := Chunk{}, end
		if m, ok := dated(r.index, r.at); ok {
			// No chunk reaches beyond what its time is true of.
			c.Time, limit = m.time, min(end, m.offset)
		} else {
			c.Time = time.Now()
		}
		n, err := r.f.ReadAt(r.buf[:min(int64(len(r.buf)), limit-r.at)], r.at)
		if err != nil && (!errors.Is(err, io.EOF) || n == 0) {
			if errors.Is(err, io.EOF) {
				return nil // it was emptied
			}
			return err
		}
		// What was cut off meanwhile reads as zeros: looked at after the read, so
		// that none of them is taken for output.
		if kept := head(r.f, r.path); kept > r.at {
			c.Dropped = min(kept, end) - r.at
			r.at += c.Dropped
			c.Offset, c.Time = r.at, time.Time{}
		} else {
			r.at += int64(n)
			c.Data, c.Offset = r.buf[:n], r.at
		}
		if err := r.hand(c); err != nil {
			return err
		}
	}
	return nil
}

func (r *reader) follow(ctx context.Context) error {
	r.index = nil // what comes now is dated by its coming
	wait := pollFirst
	tick := time.NewTimer(wait)
	defer tick.Stop()
	for {
		ended := ctx.Err() != nil
		if err := r.open(); err != nil {
			return err
		}
		moved := false
		if r.f != nil {
			end, err := length(r.f)
			if err != nil {
				return err
			}
			if end < r.at {
				// It was emptied, on a file system that can do no better.
				r.at = 0
				if err := r.hand(Chunk{Dropped: 1}); err != nil {
					return err
				}
			}
			if moved = end > r.at; moved {
				if err := r.upTo(end); err != nil {
					return err
				}
			}
		}
		if ended {
			return nil
		}
		if moved {
			wait = pollFirst
		} else {
			wait = min(wait*5/4, pollLast)
		}
		tick.Reset(wait)
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// lastLines returns where the last n lines before end begin, start at least.
func lastLines(f io.ReaderAt, start, end int64, n int) (int64, error) {
	if n == 0 {
		return end, nil
	}
	part := make([]byte, chunkSize)
	for at := end; at > start; {
		k := min(int64(len(part)), at-start)
		if _, err := f.ReadAt(part[:k], at-k); err != nil {
			return 0, err
		}
		i := int(k)
		if at == end && part[i-1] == '\n' {
			i-- // it ends the last line
		}
		for {
			if i = bytes.LastIndexByte(part[:i], '\n'); i < 0 {
				break
			}
			if n--; n == 0 {
				return at - k + int64(i) + 1, nil
			}
		}
		at -= k
	}
	return start, nil
}
