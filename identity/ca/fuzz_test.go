package ca

import "testing"

// FuzzParse: an authority's file is one or an error.
func FuzzParse(f *testing.F) {
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIA==\n-----END PRIVATE KEY-----\n-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if a, err := parse(data); err == nil && a == nil {
			t.Error("no authority and no error")
		}
	})
}
