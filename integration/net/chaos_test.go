package net

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// TestDeathsOfEverything is a short run of the matrix of deaths, judged by who
// hears the instances themselves. `make chaos T=20m` is the long one.
func TestDeathsOfEverything(t *testing.T) {
	t.Parallel()
	dir := alone(t)
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bin/redoubt-chaos", "-t", "45s", "-faults", "15")
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 2 * time.Minute
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v; the logs are in .chaos/logs:\n%s", err, out)
	}
	t.Logf("%s", out)
	if err := os.RemoveAll(filepath.Join(dir, ".chaos")); err != nil {
		t.Error(err)
	}
}
