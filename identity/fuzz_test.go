package identity

import "testing"

// FuzzPEM: keys, certificates and bundles of a data directory, damaged or made
// by somebody else.
func FuzzPEM(f *testing.F) {
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIA==\n-----END PRIVATE KEY-----\n"))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"))
	f.Add([]byte(`{"trust_domains":{"t":{"x509_authorities":["MAA="]}}}`))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		if k, err := parseKey(data); err == nil && k == nil {
			t.Error("no key and no error")
		}
		if s, err := parseSVID(data); err == nil && s == nil {
			t.Error("no SVID and no error")
		}
		_, _ = parseBundles(data)
	})
}
