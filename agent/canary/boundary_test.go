package canary

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"redoubt.dev/redoubt/isolation"
	"redoubt.dev/redoubt/isolation/probe"
)

// TestARuntimesInitIsNotTheWorkload: right after a start the process is still the
// runtime's init, without the filter that it puts on last.
func TestARuntimesInitIsNotTheWorkload(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("measuring a process needs root")
	}
	sh, err := filepath.EvalSymlinks("/bin/bash")
	if err != nil {
		t.Fatal(err)
	}
	digest, err := probe.Digest(sh)
	if err != nil {
		t.Fatal(err)
	}
	for script, turns := range map[string]bool{
		"read -t 0.3 <> <(:); exec sleep 60": true,
		"while :; do sleep 0.1; done":        false, // a workload that is the runtime's binary
	} {
		cmd := exec.Command(sh, "-c", script)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		b, err := begun(t.Context(), cmd.Process.Pid, isolation.ClassContainer, digest)
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		if err != nil {
			t.Fatal(err)
		}
		if turned := b.Digest != digest; turned != turns {
			t.Errorf("%q: measured %s after %s", script, b.Process.Exe, time.Since(begin))
		}
		if took := time.Since(begin); !turns && took < beginsWithin {
			t.Errorf("%q: looked at after %s already", script, took)
		}
	}
}
