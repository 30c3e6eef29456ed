package containerd

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// Who waits for a process is woken by its end, gives up with his context, and
// looks at nothing meanwhile.
func TestTheEndOfAProcessIsToldByTheKernel(t *testing.T) {
	cmd := exec.Command("sleep", "3600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }()
	p, err := findProcess(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if p.wait(50 * time.Millisecond) {
		t.Fatal("a living process counts as gone")
	}

	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	gone := make(chan bool, 1)
	looked := reads(t)
	go func() { gone <- p.gone(ctx) }()
	time.Sleep(time.Second) // the stretch that is counted
	// Two looks when it begins, each of two or three reads; ten a second is what
	// looking by the clock would take.
	if n := reads(t) - looked; n > 10 {
		t.Errorf("%d reads while nothing happened", n)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if !<-gone {
		t.Error("its end was not seen")
	}
	if !p.gone(ctx) {
		t.Error("a process that is long gone counts as alive")
	}
	// A pid that another has by now is not it.
	other := process{Pid: os.Getpid(), Start: 1}
	if !other.gone(ctx) {
		t.Error("another process was taken for it")
	}
}

// reads is how often this process has read anything.
func reads(t *testing.T) int {
	t.Helper()
	data, err := os.ReadFile("/proc/self/io")
	if err != nil {
		t.Skip("this kernel counts no reads:", err)
	}
	for line := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(line, "syscr: "); ok {
			n := 0
			for _, c := range strings.TrimSpace(v) {
				n = 10*n + int(c-'0')
			}
			return n
		}
	}
	t.Skip("this kernel counts no reads")
	return 0
}
