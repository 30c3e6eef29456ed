package reconcile

import (
	"fmt"
	"path/filepath"
	"strings"
)

// CheckHostPath says why path may not be mounted into an instance: it must
// exist, and it must lie, with every symbolic link resolved, in one of the
// allowed directories. It returns the resolved path, which is what to mount, so
// that a link that is changed afterwards leads nowhere else.
func CheckHostPath(path string, allowed []string) (string, error) {
	const remedy = "start this node's agent with --allow-host-path"
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("host path %q is not absolute", path)
	}
	resolved, err := filepath.EvalSymlinks(filepath.Clean(path))
	if err != nil {
		// Whether a path exists is told only where it may be used.
		if !within(filepath.Clean(path), allowed) {
			return "", fmt.Errorf("host path %s is not allowed on this node: %s=%s", path, remedy, path)
		}
		return "", fmt.Errorf("host path %s cannot be used: %w", path, err)
	}
	if within(resolved, allowed) {
		return resolved, nil
	}
	if resolved != filepath.Clean(path) && within(filepath.Clean(path), allowed) {
		return "", fmt.Errorf("host path %s leads to %s, which is not allowed on this node: %s=%s", path, resolved, remedy, resolved)
	}
	return "", fmt.Errorf("host path %s is not allowed on this node: %s=%s", path, remedy, path)
}

func within(path string, allowed []string) bool {
	for _, dir := range allowed {
		dir = filepath.Clean(dir)
		if path == dir || dir == "/" || strings.HasPrefix(path, dir+"/") {
			return true
		}
		// An allowed directory may itself be reached by a link (/var/run).
		if real, err := filepath.EvalSymlinks(dir); err == nil && (path == real || strings.HasPrefix(path, real+"/")) {
			return true
		}
	}
	return false
}
