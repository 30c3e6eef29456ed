package probe

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Digest is the "sha256:…" of a file.
func Digest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("digest: %w", err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("digest %s: %w", path, err)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}

// versionWait bounds a program that is asked for its version.
const versionWait = 3 * time.Second

// versionOf asks a program for its version: the last word of the first line
// of what it prints, "" if it does not say. It is informational.
func versionOf(ctx context.Context, path string) string {
	ctx, cancel := context.WithTimeout(ctx, versionWait)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.WaitDelay = 100 * time.Millisecond
	text, err := cmd.Output()
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(text), "\n")
	// "runc version 1.5.2", "runsc version release-20260905.0", "Firecracker v1.7.0"
	words := strings.Fields(line)
	if len(words) < 2 {
		return ""
	}
	v := words[len(words)-1]
	return strings.TrimPrefix(v[:min(len(v), 64)], "v")
}
