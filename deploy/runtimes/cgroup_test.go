package runtimes

import (
	"os"
	"path/filepath"
	"testing"
)

// removeCgroups removes an empty cgroup of this name from every hierarchy, v1
// or v2. runc removes the leaf and leaves the parent that it made.
func removeCgroups(t *testing.T, name string) {
	t.Helper()
	var found []string
	for _, pattern := range []string{"/sys/fs/cgroup/" + name, "/sys/fs/cgroup/*/" + name} {
		m, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, m...)
	}
	for _, dir := range found {
		if err := os.Remove(dir); err != nil && !os.IsNotExist(err) {
			t.Errorf("remove the test's cgroup: %v", err)
		}
	}
}
