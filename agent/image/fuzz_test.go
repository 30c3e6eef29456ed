package image

import (
	"os"
	"path/filepath"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// FuzzLayout: an OCI layout whose index and marker are anything.
func FuzzLayout(f *testing.F) {
	f.Add([]byte(`{"imageLayoutVersion":"1.0.0"}`), []byte(`{"schemaVersion":2,"manifests":[{"digest":"sha256:0000000000000000000000000000000000000000000000000000000000000000","size":1}]}`))
	f.Add([]byte(`{}`), []byte(`{"manifests":[{"digest":"sha256:../../x","size":-1}]}`))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, marker, index []byte) {
		if os.WriteFile(filepath.Join(dir, ocispec.ImageLayoutFile), marker, 0o600) != nil || os.WriteFile(filepath.Join(dir, ocispec.ImageIndexFile), index, 0o600) != nil {
			t.Fatal("write")
		}
		l, err := OpenLayout(dir)
		if err != nil {
			return
		}
		defer l.Close()
		if _, _, err := l.Resolve("", func(ocispec.Platform) bool { return true }); err == nil {
			t.Error("a layout without blobs has an image")
		}
	})
}
