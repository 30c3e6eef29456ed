package runtimes

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"testing"
)

// What was read of the carried parts is given back, and can be read again.
func TestWhatWasUnpackedIsNoLongerHeld(t *testing.T) {
	b, err := Embedded()
	if err != nil {
		t.Skip(err)
	}
	read := func() (total int64) {
		t.Helper()
		for _, p := range b.parts {
			f, err := b.fsys.Open(p.Name + ".zst")
			if err != nil {
				t.Fatal(err)
			}
			n, err := io.Copy(io.Discard, struct{ io.Reader }{f})
			if err != nil {
				t.Fatal(err)
			}
			total += n
		}
		return total
	}
	total := read()
	before := held(t)
	if before < total {
		t.Fatalf("the test is void: %d bytes of %d are held after reading", before, total)
	}
	if _, err := b.unpack(t.Context(), t.TempDir(), func(p Part) bool { return p.Name == "toolbox" }); err != nil {
		t.Fatal(err)
	}
	if now := held(t); now > before-total*3/4 {
		t.Errorf("%d bytes of this program's constants are held after they were released, %d before; %d were read", now, before, total)
	}
	manifest, err := fs.ReadFile(b.fsys, "manifest.json")
	if err != nil || !bytes.Contains(manifest, []byte(b.parts[0].Name)) || read() != total {
		t.Errorf("what was released cannot be read again: %v", err)
	}
}

// held is how much of this program's constants is in memory, bytes.
func held(t *testing.T) (sum int64) {
	t.Helper()
	data, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Skip(err)
	}
	ours := map[string]bool{}
	for _, m := range constants() {
		ours[fmt.Sprintf("%08x-%08x", m.start, m.end)] = true
	}
	if len(ours) == 0 {
		t.Fatal("no mapping of this program's constants is found")
	}
	in := false
	for line := range strings.Lines(string(data)) {
		words := strings.Fields(line)
		switch {
		case len(words) >= 5 && strings.Contains(words[0], "-"):
			in = ours[words[0]]
		case in && words[0] == "Rss:":
			var kib int64
			if _, err := fmt.Sscan(words[1], &kib); err != nil {
				t.Fatal(err)
			}
			sum += kib << 10
		}
	}
	return sum
}
