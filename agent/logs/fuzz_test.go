package logs

import (
	"context"
	"os"
	"path/filepath"
	"testing"
)

// FuzzIndex: a log is read whatever its index says.
func FuzzIndex(f *testing.F) {
	f.Add([]byte{}, []byte("a\nb\n"))
	f.Add(make([]byte, recordSize), []byte("a\n"))
	f.Add(record{kind: 1, offset: 2, run: 1}.append(nil), []byte("a\nb\n"))
	path := filepath.Join(f.TempDir(), "x.log")
	f.Fuzz(func(t *testing.T, index, log []byte) {
		if os.WriteFile(indexOf(path), index, 0o600) != nil || os.WriteFile(path, log, 0o600) != nil {
			t.Fatal("write")
		}
		if r, ok := parse(index); ok && r.offset < 0 {
			t.Error("a negative offset is taken")
		}
		n := 0
		_ = Read(context.Background(), path, Options{From: -1, Tail: -1}, func(c Chunk) error { n += len(c.Data); return nil })
		if n > len(log) {
			t.Errorf("%d bytes are read of %d", n, len(log))
		}
	})
}
