package attest

import (
	"testing"

	"redoubt.dev/redoubt/identity"
)

// FuzzCSR: signing requests and chains of whoever dials.
func FuzzCSR(f *testing.F) {
	key, err := identity.NewKey()
	if err != nil {
		f.Fatal(err)
	}
	csr, err := NewCSR(key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(csr)
	f.Add(csr[:len(csr)/2])
	f.Add([]byte{0x30, 0x80})
	f.Fuzz(func(t *testing.T, data []byte) {
		if k, err := CSRKey(data); err == nil && k == "" {
			t.Error("a request without a key is taken")
		}
		_, _ = parseChain([][]byte{data})
		_, _ = parsePin(string(data))
	})
}
