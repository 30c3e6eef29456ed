package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// writer appends as a shim does: with the file open all the time.
func writer(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

var all = Options{From: -1, Tail: -1}

// read is what Read hands over, where it ended and what it missed.
func read(t *testing.T, path string, o Options) (text string, at, dropped int64) {
	t.Helper()
	var out strings.Builder
	err := Read(t.Context(), path, o, func(c Chunk) error {
		out.Write(c.Data)
		at, dropped = c.Offset, dropped+c.Dropped
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String(), at, dropped
}

func taken(t *testing.T, path string) int64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

func TestLastLines(t *testing.T) {
	for i, tt := range []struct {
		data string
		n    int
		want string
	}{
		{"a\nb\nc\n", 2, "b\nc\n"},
		{"a\nb\nc", 2, "b\nc"},
		{"a\nb\n", 5, "a\nb\n"},
		{"a\nb\n", 0, ""},
		{"a\nb\n", -1, "a\nb\n"},
		{"", 3, ""},
		{"\n\n", 1, "\n"},
		{"\n\n", 2, "\n\n"},
		{strings.Repeat("x", 3*chunkSize) + "\nb\n", 2, strings.Repeat("x", 3*chunkSize) + "\nb\n"},
		{strings.Repeat("0123456\n", chunkSize), chunkSize - 1, strings.Repeat("0123456\n", chunkSize-1)},
	} {
		path := filepath.Join(t.TempDir(), "web.log")
		f := writer(t, path)
		f.WriteString(tt.data)
		got, at, _ := read(t, path, Options{From: -1, Tail: tt.n})
		if got != tt.want || at != int64(len(tt.data)) {
			t.Errorf("case %d: %d bytes to %d, want %d", i, len(got), at, len(tt.want))
		}
		f.WriteString("more") // what comes after is neither doubled nor lost
		if got, _, _ := read(t, path, Options{From: at, Tail: -1}); got != "more" {
			t.Errorf("case %d: then %.20q", i, got)
		}
	}
}

// A flood takes neither reading nor cutting memory of its size, its beginning
// goes back to the disk, and of what is kept nothing is lost or doubled.
func TestFloodTakesNoMemory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "yes.log")
	f := writer(t, path)
	const lines = 1 << 19
	var block strings.Builder
	for i := range lines { // 32 MiB, in numbered lines of 64 bytes
		fmt.Fprintf(&block, "%-63d\n", i)
		if block.Len() >= 1<<20 {
			f.WriteString(block.String())
			block.Reset()
		}
	}
	got := numbered{next: -1}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if did, err := Bound(path, DefaultMax); !did || err != nil {
		t.Fatal(did, err)
	}
	fmt.Fprintf(f, "%-63d\n", lines)
	if err := Read(t.Context(), path, all, got.take); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if kept := DefaultMax / 2 / 64; got.n < kept-1 || got.n > kept+1 || got.next != lines+1 || got.wrong != "" {
		t.Errorf("%d lines are kept, to %d %s", got.n, got.next-1, got.wrong)
	}
	if took := after.TotalAlloc - before.TotalAlloc; took > 8<<20 {
		t.Errorf("all this took %d KiB", took>>10)
	}
	if n := taken(t, path); n > DefaultMax/2+64<<10 {
		t.Errorf("the log takes %d KiB of the disk", n>>10)
	}
	// One that is far behind goes on at the oldest line, and knows what it missed.
	got = numbered{next: -1}
	if err := Read(t.Context(), path, Options{From: 64, Tail: -1}, got.take); err != nil {
		t.Fatal(err)
	}
	if got.next != lines+1 || got.wrong != "" || 64+got.dropped+int64(got.n)*64 != (lines+1)*64 {
		t.Errorf("from far behind: %d lines to %d %s, %d bytes missed", got.n, got.next-1, got.wrong, got.dropped)
	}
}

// numbered takes lines of 64 bytes that count up.
type numbered struct {
	part    [64]byte
	filled  int
	n, next int // next -1: any
	dropped int64
	wrong   string
}

func (c *numbered) take(k Chunk) error {
	c.dropped += k.Dropped
	if k.Dropped > 0 {
		c.next = -1
	}
	for rest := k.Data; len(rest) > 0; {
		n := copy(c.part[c.filled:], rest)
		c.filled, rest = c.filled+n, rest[n:]
		if c.filled < len(c.part) {
			break
		}
		c.filled = 0
		v, err := strconv.Atoi(string(bytes.TrimRight(c.part[:], " \n")))
		if (c.next >= 0 && v != c.next || err != nil || c.part[63] != '\n') && c.wrong == "" {
			c.wrong = fmt.Sprintf("(%d where %d should be, %v)", v, c.next, err)
		}
		c.n, c.next = c.n+1, v+1
	}
	return nil
}

// A follower sees every line once and in order, although the log is cut under
// it again and again, and although it is another process now and then that goes
// on from where the last one came to.
func TestFollowAcrossCutsAndRestarts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web.log")
	f := writer(t, path)
	const lines = 3000
	got, at := numbered{next: 0}, int64(0)
	var seen atomic.Int64
	var wrote sync.WaitGroup
	wrote.Go(func() {
		for i := range lines {
			// Nobody is ever further behind than what a cut leaves.
			for int64(i)-seen.Load() > 250 && t.Context().Err() == nil {
				time.Sleep(time.Millisecond)
			}
			fmt.Fprintf(f, "%-63d\n", i)
			if i%100 == 99 {
				if _, err := Bound(path, 64<<10); err != nil {
					t.Error(err)
				}
			}
		}
	})
	for deadline := time.Now().Add(time.Minute); got.next < lines && got.wrong == "" && got.dropped == 0 && time.Now().Before(deadline); {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		err := Read(ctx, path, Options{From: at, Tail: -1, Follow: true}, func(c Chunk) error {
			at = c.Offset
			err := got.take(c)
			seen.Store(int64(got.next))
			return err
		})
		cancel()
		if err != nil {
			t.Fatal(err)
		}
	}
	seen.Store(lines) // whatever became of it
	wrote.Wait()
	if got.n != lines || got.dropped != 0 || got.wrong != "" {
		t.Errorf("%d lines came %s, %d bytes were missed", got.n, got.wrong, got.dropped)
	}
	if n := taken(t, path); n > 128<<10 {
		t.Errorf("the log was not cut: it takes %d KiB", n>>10)
	}
}

// A reader that does not read keeps the log from being neither written nor cut,
// and is told what it missed.
func TestSlowFollower(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web.log")
	f := writer(t, path)
	flood := func(from, n int) {
		for i := range n {
			fmt.Fprintf(f, "%-63d\n", from+i)
		}
	}
	flood(0, 20_000)
	got := numbered{next: 0}
	stuck, goOn := make(chan struct{}), make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Read(ctx, path, Options{From: 0, Tail: -1, Follow: true}, func(c Chunk) error {
			if got.n == 0 && len(c.Data) > 0 {
				close(stuck)
				<-goOn
			}
			return got.take(c)
		})
	}()
	<-stuck
	flood(20_000, 20_000)
	if did, err := Bound(path, 1<<20); !did || err != nil {
		t.Fatal(did, err)
	}
	close(goOn)
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got.next != 40_000 || got.wrong != "" || got.dropped == 0 || got.dropped+int64(got.n)*64 != 40_000*64 {
		t.Errorf("%d lines to %d %s, %d bytes were missed", got.n, got.next-1, got.wrong, got.dropped)
	}
}

func TestFollowBeforeThereIsALog(t *testing.T) {
	synctest.Test(t, followBeforeThereIsALog)
}

func followBeforeThereIsALog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web.log")
	r, w := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Read(ctx, path, Options{From: -1, Tail: 10, Follow: true}, func(c Chunk) error { _, err := w.Write(c.Data); return err })
	}()
	synctest.Wait() // it has looked, and waits
	writer(t, path).WriteString("hello\n")
	line := make([]byte, 6)
	if _, err := io.ReadFull(r, line); err != nil || string(line) != "hello\n" {
		t.Errorf("followed %q, %v", line, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	// A reader that goes away ends it with its error.
	gone := errors.New("gone")
	if err := Read(t.Context(), path, all, func(Chunk) error { return gone }); !errors.Is(err, gone) {
		t.Errorf("it ends with %v", err)
	}
}

// Runs and times are told apart, over cuts too.
func TestSinceAndPrevious(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web.log")
	began := time.Date(2026, 11, 24, 10, 0, 0, 0, time.UTC)
	at := func(seconds int) time.Time { return began.Add(time.Duration(seconds) * time.Second) }
	previous := Options{From: -1, Tail: -1, Previous: true}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(Started(path, 1, at(0)))
	if err := Read(t.Context(), path, previous, func(Chunk) error { return nil }); !errors.Is(err, ErrNoPrevious) {
		t.Errorf("after one start: %v", err)
	}
	f := writer(t, path)
	f.WriteString("one\n")
	must(mark(path, at(1)))
	must(Started(path, 2, at(10)))
	must(Started(path, 2, at(11))) // a start that was tried again
	f.WriteString("two\n")
	must(mark(path, at(12)))
	f.WriteString("two again\n")
	must(mark(path, at(13)))
	must(mark(path, at(14))) // nothing was written
	must(Started(path, 3, at(20)))
	f.WriteString("three\n")

	check := func(what string, o Options, want string) {
		t.Helper()
		if got, _, _ := read(t, path, o); got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	check("previous", previous, "two\ntwo again\n")
	check("its last line", Options{From: -1, Tail: 1, Previous: true}, "two again\n")
	check("since before all", Options{From: -1, Tail: -1, Since: at(-5)}, "one\ntwo\ntwo again\nthree\n")
	check("since the first second", Options{From: -1, Tail: -1, Since: at(5)}, "two\ntwo again\nthree\n")
	check("since a mark", Options{From: -1, Tail: -1, Since: at(12)}, "two again\nthree\n")
	check("since a silence", Options{From: -1, Tail: -1, Since: at(16)}, "three\n")
	check("since and tail", Options{From: -1, Tail: 1, Since: at(5)}, "three\n")
	// Each part bears the time by which it had been written.
	var times []string
	must(Read(t.Context(), path, all, func(c Chunk) error {
		if len(c.Data) > 0 && !c.Time.After(at(20)) {
			times = append(times, fmt.Sprintf("%s@%d", strings.TrimSpace(string(c.Data)), int(c.Time.Sub(began).Seconds())))
		}
		return nil
	}))
	if got := strings.Join(times, " "); got != "one@1 two@12 two again@13" {
		t.Errorf("times: %s", got)
	}
	// Once more over a cut: what is gone is not made up for.
	f.WriteString(strings.Repeat("x", 10_000) + "\nend\n")
	must(mark(path, at(30)))
	if did, err := Bound(path, 5000); !did || err != nil {
		t.Fatal(did, err)
	}
	if got, _, _ := read(t, path, previous); got != "" {
		t.Errorf("previous, cut off: %q", got)
	}
	if got, _, _ := read(t, path, all); len(got) > 2600 || !strings.HasSuffix(got, "x\nend\n") && got != "end\n" {
		t.Errorf("kept %d bytes: %.40q", len(got), got)
	}
	must(Started(path, 4, at(40)))
	must(Started(path, 5, at(41)))
	f.WriteString("five\n")
	check("an empty run", previous, "")
}

// An index that was torn, damaged or lost takes nothing from the log; one that
// grows is thinned and keeps its meaning.
func TestIndex(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web.log")
	f := writer(t, path)
	began := time.Unix(1_700_000_000, 0)
	for i := range 2 * indexMax / recordSize {
		fmt.Fprintf(f, "%-63d\n", i)
		if err := mark(path, began.Add(time.Duration(i)*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(indexOf(path))
	if err != nil || info.Size() > indexMax {
		t.Errorf("the index: %v, %v", info.Size(), err)
	}
	const lines = 2 * indexMax / recordSize
	if got, _, _ := read(t, path, Options{From: -1, Tail: -1, Since: began.Add((lines - 4) * time.Second)}); len(got) != 3*64 {
		t.Errorf("the newest are exact: %d lines", len(got)/64)
	}
	if got, _, _ := read(t, path, Options{From: -1, Tail: -1, Since: began.Add(10 * time.Second)}); len(got) < (lines-11)*64 || len(got) > lines*64 {
		t.Errorf("the oldest hold too little: %d lines of %d", len(got)/64, lines)
	}
	// Torn: the next record takes its place.
	x, err := os.OpenFile(indexOf(path), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	x.Write([]byte("torn"))
	x.Close()
	if err := Started(path, 1, began); err != nil {
		t.Fatal(err)
	}
	if at := runs(readIndex(path)); len(at) != 1 || at[0] != lines*64 {
		t.Errorf("runs %v", at)
	}
	for _, damage := range []string{"", "\x01", strings.Repeat("\xff", 1000), strings.Repeat("\x00", 4096)} {
		if err := os.WriteFile(indexOf(path), []byte(damage), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, _, _ := read(t, path, all); len(got) != lines*64 {
			t.Errorf("with a damaged index %d lines are read", len(got)/64)
		}
	}
	// Cut and then lost: what is gone is not read as zeros.
	if did, err := Bound(path, 100<<10); !did || err != nil {
		t.Fatal(did, err)
	}
	if err := os.Remove(indexOf(path)); err != nil {
		t.Fatal(err)
	}
	if got, _, _ := read(t, path, all); len(got) > 52<<10 || strings.HasPrefix(got, strings.Repeat("\x00", 4096)) {
		t.Errorf("%d bytes are read: %.20q", len(got), got)
	}
}

func TestBound(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web.log")
	if did, err := Bound(path, 10); did || err != nil {
		t.Errorf("a log that is not there: %v, %v", did, err)
	}
	f := writer(t, path)
	f.WriteString("0123456789")
	if did, err := Bound(path, 10); did || err != nil {
		t.Errorf("a log of just the limit: %v, %v", did, err)
	}
	f.WriteString("\nabc\nde\n")
	if did, err := Bound(path, 10); !did || err != nil {
		t.Fatalf("a log beyond the limit: %v, %v", did, err)
	}
	f.WriteString("after\n")
	if got, at, _ := read(t, path, all); got != "de\nafter\n" || at != 24 {
		t.Errorf("kept %q to %d", got, at)
	}
	if did, err := Bound(path, 10); did || err != nil {
		t.Errorf("cut again: %v, %v", did, err)
	}
	for _, p := range []string{path, indexOf(path)} {
		if info, err := os.Stat(p); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", p, info, err)
		}
	}
	// A line without an end is cut where it must be.
	f.WriteString(strings.Repeat("x", 1000))
	if _, err := Bound(path, 10); err != nil {
		t.Fatal(err)
	}
	if got, _, _ := read(t, path, all); got != "xxxxx" {
		t.Errorf("kept %q", got)
	}
	if err := Remove(path); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestKeeper(t *testing.T) {
	dir := t.TempDir()
	loud, quiet, other := writer(t, dir+"/loud.log"), writer(t, dir+"/quiet.log"), writer(t, dir+"/other.txt")
	for _, f := range []*os.File{loud, other} {
		f.WriteString(strings.Repeat("x\n", 50))
	}
	quiet.WriteString("x\n")
	stale := dir + "/" + tempPrefix + "123"
	if err := os.WriteFile(stale, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(stale, old, old); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	k := Keeper{Dir: dir, Max: 50, Every: 10 * time.Millisecond, Log: slog.New(slog.DiscardHandler)}
	go func() { done <- k.Run(ctx) }()
	kept := func(name string) int { s, _, _ := read(t, dir+"/"+name, all); return len(s) }
	dated := func(name string) bool { _, ok := lastRecord(dir + "/" + name); return ok }
	for deadline := time.Now().Add(10 * time.Second); (kept("loud.log") != 24 || !dated("loud.log") || !dated("quiet.log")) && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if kept("loud.log") != 24 || kept("quiet.log") != 2 || kept("other.txt") != 100 || dated("other.txt") || !dated("quiet.log") {
		t.Errorf("kept %d %d %d", kept("loud.log"), kept("quiet.log"), kept("other.txt"))
	}
	if _, err := os.Stat(stale); err == nil {
		t.Error("what an agent left behind is still there")
	}
}
