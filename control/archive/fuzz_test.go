package archive

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"testing"
)

// FuzzRead: a snapshot file is read whole or is an error.
func FuzzRead(f *testing.F) {
	state := []byte("the state")
	sum := sha256.Sum256(state)
	var b bytes.Buffer
	if err := Write(&b, Meta{Size: int64(len(state)), SHA256: hex.EncodeToString(sum[:])}, bytes.NewReader(state)); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add(b.Bytes()[:b.Len()/2])
	f.Fuzz(func(t *testing.T, data []byte) {
		var got []byte
		if _, err := Read(bytes.NewReader(data), 99, func(r io.Reader) (err error) {
			got, err = io.ReadAll(io.LimitReader(r, 1<<20))
			return err
		}); err == nil && len(got) < 1<<20 && sha256.Sum256(got) != sum {
			t.Logf("another whole state of %d bytes", len(got))
		}
	})
}
