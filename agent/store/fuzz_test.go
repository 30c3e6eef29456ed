package store

import (
	"bytes"
	"testing"
)

// FuzzUnseal: a record is what was sealed or an error.
func FuzzUnseal(f *testing.F) {
	f.Add(seal([]byte("x")))
	f.Add([]byte{})
	f.Add([]byte{0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, v []byte) {
		if got, err := unseal(v); err == nil && !bytes.Equal(seal(got), v) {
			t.Errorf("%x is taken as %x", v, got)
		}
	})
}
