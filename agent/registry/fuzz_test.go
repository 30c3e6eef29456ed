package registry

import (
	"os"
	"path/filepath"
	"testing"
)

// FuzzCredentials: docker's config.json as people and tools leave it.
func FuzzCredentials(f *testing.F) {
	for _, s := range []string{"", "{}", `{"auths":{"r":{"auth":"YTpi"}}}`, `{"auths":[]}`, `{"credHelpers":{"r":"../../x"}}`, "\xff"} {
		f.Add([]byte(s))
	}
	path := filepath.Join(f.TempDir(), "config.json")
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		_, _ = readCredentials(path)
	})
}
