package logs

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
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

// tail is what Tail writes.
func tail(t *testing.T, path string, n int) (string, Position) {
	t.Helper()
	var out strings.Builder
	at, err := Tail(path, n, &out)
	if err != nil {
		t.Fatal(err)
	}
	return out.String(), at
}

// The last lines are the same wherever the output was cut.
func TestTailAcrossTheCut(t *testing.T) {
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
		for _, cut := range []int{0, 2, 3, len(tt.data) / 2, len(tt.data)} {
			if cut == 1 || cut > len(tt.data) {
				continue // Bound keeps no single byte
			}
			path := filepath.Join(t.TempDir(), "web.log")
			f := writer(t, path)
			f.WriteString(tt.data[:cut])
			if _, err := Bound(path, int64(max(cut-1, 0))); err != nil {
				t.Fatal(err)
			}
			f.WriteString(tt.data[cut:])
			got, at := tail(t, path, tt.n)
			if got != tt.want {
				t.Errorf("case %d cut at %d: %d bytes, want %d", i, cut, len(got), len(tt.want))
			}
			// What comes after is neither doubled nor lost.
			f.WriteString("more")
			var more strings.Builder
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if _, err := Follow(ctx, path, at, &more); err != nil || more.String() != "more" {
				t.Errorf("case %d cut at %d: followed %.20q, %v", i, cut, more.String(), err)
			}
		}
	}
}

// A flood takes neither reading nor bounding memory of its size, a reader
// loses and doubles nothing of what is kept, and what is kept is whole lines.
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
	var got numbered
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	at, err := Tail(path, -1, &got)
	if err != nil {
		t.Fatal(err)
	}
	if got.n != tailMax/64-1 && got.n != tailMax/64 || got.last != lines-1 || got.wrong != "" {
		t.Errorf("tail gave %d lines to %d %s", got.n, got.last, got.wrong)
	}
	got = numbered{last: lines - 100_001} // a follower that is behind by more than is read at once
	behind := Position{at: at.at - 100_000*64, moved: at.moved}
	if did, err := Bound(path, DefaultMax); !did || err != nil {
		t.Fatal(did, err)
	}
	fmt.Fprintf(f, "%-63d\n", lines)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Follow(ctx, path, behind, &got); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if got.n != 100_001 || got.last != lines || got.wrong != "" {
		t.Errorf("followed %d lines to %d %s", got.n, got.last, got.wrong)
	}
	if took := after.TotalAlloc - before.TotalAlloc; took > 8<<20 {
		t.Errorf("all this took %d KiB", took>>10)
	}
	// One that is further behind than what is kept goes on at the oldest line.
	got = numbered{}
	if _, err := Follow(ctx, path, Position{at: 64, moved: at.moved}, &got); err != nil {
		t.Fatal(err)
	}
	if got.n < DefaultMax/64-1 || got.n > DefaultMax/64+1 || got.last != lines || got.wrong != "" {
		t.Errorf("from far behind: %d lines to %d %s", got.n, got.last, got.wrong)
	}
	var kept int64
	entries, _ := os.ReadDir(filepath.Dir(path))
	for _, e := range entries {
		info, _ := e.Info()
		kept += info.Size()
	}
	if kept > DefaultMax+1000 {
		t.Errorf("%d bytes are kept", kept)
	}
}

// numbered reads lines of 64 bytes that count up.
type numbered struct {
	part    [64]byte
	filled  int
	n, last int
	wrong   string
}

func (c *numbered) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		k := copy(c.part[c.filled:], rest)
		c.filled, rest = c.filled+k, rest[k:]
		if c.filled < len(c.part) {
			break
		}
		c.filled = 0
		v, _ := strconv.Atoi(string(bytes.TrimRight(c.part[:], " \n")))
		if (c.n > 0 && v != c.last+1 || c.part[63] != '\n') && c.wrong == "" {
			c.wrong = fmt.Sprintf("(%d after %d)", v, c.last)
		}
		c.n, c.last = c.n+1, v
	}
	return len(p), nil
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
	f.WriteString("\nabc\n")
	if did, err := Bound(path, 10); !did || err != nil {
		t.Fatalf("a log beyond the limit: %v, %v", did, err)
	}
	f.WriteString("after\n") // the writer goes on where the file now ends
	if got, _ := os.ReadFile(path); string(got) != "after\n" {
		t.Errorf("the file holds %q", got)
	}
	for _, p := range []string{path, previous(path)} {
		if info, err := os.Stat(p); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", p, info, err)
		}
	}
	// Reading does not show where one file ends.
	if got, _ := tail(t, path, 2); got != "abc\nafter\n" {
		t.Errorf("tail %q", got)
	}
	if got, _ := tail(t, path, -1); got != "0123456789\nabc\nafter\n" {
		t.Errorf("all of it: %q", got)
	}
	// One that ran away is cut to its end.
	f.WriteString(strings.Repeat("x", 1000) + "end\n")
	if _, err := Bound(path, 10); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(previous(path)); len(got) != 10 || !bytes.HasSuffix(got, []byte("end\n")) {
		t.Errorf("kept %q", got)
	}
	if err := Remove(path); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// A follower sees every line once and in order, although the file is bounded
// under it again and again.
func TestFollowAcrossBounds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web.log")
	f := writer(t, path)
	f.WriteString("before\n")
	_, at := tail(t, path, 0)
	var out bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := Follow(ctx, path, at, &out); err != nil {
			t.Errorf("follow: %v", err)
		}
	})
	var want strings.Builder
	for i := range 60 {
		line := fmt.Sprintf("line %d\n", i)
		want.WriteString(line)
		f.WriteString(line)
		if i%20 == 19 {
			if did, err := Bound(path, 100); !did || err != nil {
				t.Fatalf("bound: %v, %v", did, err)
			}
		}
		time.Sleep(15 * time.Millisecond)
	}
	f.WriteString("last\n")
	cancel()
	wg.Wait()
	if out.String() != want.String()+"last\n" {
		t.Errorf("followed %q", out.String())
	}
}

func TestFollowBeforeThereIsALog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web.log")
	got, at := tail(t, path, 10)
	if got != "" {
		t.Fatalf("tail %q", got)
	}
	r, w := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := Follow(ctx, path, at, w)
		w.Close()
		done <- err
	}()
	writer(t, path).WriteString("hello\n")
	line := make([]byte, 6)
	if _, err := io.ReadFull(r, line); err != nil || string(line) != "hello\n" {
		t.Errorf("followed %q, %v", line, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	// A reader that goes away ends it with an error.
	r.Close()
	if _, err := Follow(t.Context(), path, Position{}, w); err == nil {
		t.Error("a follower whose reader is gone goes on")
	}
}

// A reader that does not read holds up neither the writer nor Bound, and gets
// all of what was kept when it reads again.
func TestSlowFollower(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web.log")
	f := writer(t, path)
	line := strings.Repeat("x", 1023) + "\n"
	f.WriteString(strings.Repeat(line, 600)) // more than two chunks
	r, w := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		_, _ = Follow(ctx, path, Position{}, w)
		w.Close()
	}()
	time.Sleep(50 * time.Millisecond) // it is stuck in its first write
	done := make(chan error, 1)
	go func() {
		_, err := Bound(path, 500<<10)
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("a reader that does not read keeps the log from being bounded")
	}
	f.WriteString("end\n")
	go func() { time.Sleep(500 * time.Millisecond); cancel() }()
	got, err := io.ReadAll(r)
	if err != nil || string(got) != strings.Repeat(line, 600)+"end\n" {
		t.Errorf("followed %d bytes, %v", len(got), err)
	}
}

func TestKeeper(t *testing.T) {
	dir := t.TempDir()
	loud, quiet, other := writer(t, dir+"/loud.log"), writer(t, dir+"/quiet.log"), writer(t, dir+"/other.txt")
	for _, f := range []*os.File{loud, other} {
		f.WriteString(strings.Repeat("x", 100))
	}
	quiet.WriteString("x")
	stale := dir + "/.log-123"
	if err := os.WriteFile(stale, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(stale, old, old); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	k := Keeper{Dir: dir, Max: 50, Every: 10 * time.Millisecond, Log: slog.New(slog.DiscardHandler)}
	if err := k.Run(ctx); err != nil {
		t.Error(err)
	}
	sizes := map[string]int64{}
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		info, _ := e.Info()
		sizes[e.Name()] = info.Size()
	}
	want := map[string]int64{"loud.log": 0, "loud.log.1": 100, "quiet.log": 1, "other.txt": 100}
	if fmt.Sprint(sizes) != fmt.Sprint(want) {
		t.Errorf("kept %v, want %v", sizes, want)
	}
}
