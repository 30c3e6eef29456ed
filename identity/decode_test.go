package identity

import (
	"os"
	"path/filepath"
	"testing"
)

// Whatever is in a file: no panic, and what is accepted is complete.
func FuzzContextFile(f *testing.F) {
	f.Add([]byte("-----BEGIN REDOUBT CONTEXT-----\ne30=\n-----END REDOUBT CONTEXT-----\n"))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nTrust-Domain: fleet.test\n\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if file, err := parseFile(b); err == nil {
			if file.SVID == nil || file.Bundle == nil || file.Bundle.Empty() {
				t.Fatal("an incomplete context was accepted")
			}
		}
		if all, err := parseBundles(b); err == nil {
			if len(all) == 0 {
				t.Fatal("a bundle without authorities was accepted")
			}
		}
		if svid, err := parseSVID(b); err == nil && checkSVID(svid) != nil {
			t.Fatal("an unsound SVID was accepted")
		}
	})
}

func TestFailedWriteLeavesTheFileAndNothingElse(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := WriteFile(path, []byte("one")); err != nil {
		t.Fatal(err)
	}
	// A directory in the way makes the rename fail after the data is written.
	block := filepath.Join(dir, "d")
	if err := os.MkdirAll(filepath.Join(block, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(block, []byte("two")); err == nil {
		t.Fatal("replaced a directory")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Fatalf("left behind: %v, %v", entries, err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "one" {
		t.Fatalf("holds %q, %v", b, err)
	}
}
