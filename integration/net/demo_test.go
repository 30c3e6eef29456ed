package net

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"redoubt.dev/redoubt/integration/residue"
)

// clone is the top of the tree, where the demo runs.
func clone(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// alone demands what these tests need.
func alone(t *testing.T) string {
	t.Helper()
	return needs(t, "redoubt", "redoubt-demo", "redoubt-chaos")
}

// needs demands the host for itself, and programs in bin.
func needs(t *testing.T, programs ...string) string {
	t.Helper()
	if os.Getenv("REDOUBT_NET") == "" {
		t.Skip("needs the host for itself: make net (REDOUBT_NET=1)")
	}
	if os.Getuid() != 0 {
		t.Skip("needs root: network namespaces")
	}
	dir := clone(t)
	for _, name := range programs {
		if _, err := os.Stat(filepath.Join(dir, "bin", name)); err != nil {
			t.Fatalf("%v: run `make net`, which builds it", err)
		}
	}
	return dir
}

// program is a running demo.
type program struct {
	cmd    *exec.Cmd
	output *bytes.Buffer
}

func start(t *testing.T, dir string, args ...string) *program {
	t.Helper()
	p := &program{cmd: exec.Command("bin/redoubt-demo", args...), output: &bytes.Buffer{}}
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = dir, p.output, p.output
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return p
}

// wait returns the exit code; a demo that hangs is killed and fails the test.
func (p *program) wait(t *testing.T, patience time.Duration) int {
	t.Helper()
	late := time.AfterFunc(patience, func() { _ = p.cmd.Process.Kill() })
	err := p.cmd.Wait()
	if !late.Stop() {
		t.Errorf("the demo did not end within %v; so far it said:\n%s", patience, p.output)
	}
	if err != nil && p.cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return p.cmd.ProcessState.ExitCode()
}

// watchersFiles are the files that those who started this test have open, as
// where CI keeps what the test prints: they grow while it runs.
func watchersFiles() (files []string) {
	for pid := os.Getppid(); pid > 0; {
		fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		for _, fd := range fds {
			if path, err := os.Readlink(fd); err == nil && filepath.IsAbs(path) {
				if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
					files = append(files, path)
				}
			}
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			break
		}
		_, rest, _ := strings.Cut(string(stat), ") ")
		var state string
		if _, err := fmt.Sscan(rest, &state, &pid); err != nil {
			break
		}
	}
	return files
}

// observe takes the listing that a later one is compared with.
func observe(t *testing.T, dir string) (residue.Options, residue.List) {
	t.Helper()
	o := residue.Options{Clone: dir, Ignore: watchersFiles()}
	before, moving, err := residue.Quiet(t.Context(), o, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if len(moving) > 0 {
		t.Logf("others are at work on this host, so what follows may be theirs:\n%s", residue.Describe(moving))
	}
	return o, before
}

func nothingLeft(t *testing.T, o residue.Options, before residue.List) {
	t.Helper()
	diff, err := residue.Settled(context.Background(), before, o, 15*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if len(diff) > 0 {
		t.Errorf("%d things on this host are not as they were:\n%s", len(diff), residue.Describe(diff))
	}
}

func TestTheDemoShowsWhatItPromisesAndLeavesNothing(t *testing.T) {
	dir := alone(t)
	o, before := observe(t, dir)
	begun := time.Now()
	p := start(t, dir)
	if code := p.wait(t, 4*time.Minute); code != 0 {
		t.Errorf("it ended with %d:\n%s", code, p.output)
	}
	t.Logf("it took %.1f s", time.Since(begun).Seconds())
	for i, line := range strings.Split(p.output.String(), "\n") {
		if n := len([]rune(line)); n > 110 {
			t.Errorf("line %d has %d columns: %s", i+1, n, line)
		}
	}
	nothingLeft(t, o, before)
}

// TestTheDemoInterruptedAnywhereLeavesNothing interrupts it at random moments.
// After SIGKILL, which nobody can answer, the next command cleans up.
func TestTheDemoInterruptedAnywhereLeavesNothing(t *testing.T) {
	dir := alone(t)
	o, before := observe(t, dir)
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("REDOUBT_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = n
	}
	t.Logf("REDOUBT_SEED=%d repeats the moments", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	signals := []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL, syscall.SIGTERM, syscall.SIGKILL}
	for i, sig := range signals {
		// One moment in each part of the demo's time, so that all are met.
		part := 42 * time.Second / time.Duration(len(signals))
		after := time.Duration(i)*part + time.Duration(r.Int64N(int64(part)))
		t.Run(sig.String()+" after "+after.Round(100*time.Millisecond).String(), func(t *testing.T) {
			p := start(t, dir)
			time.Sleep(after)
			_ = p.cmd.Process.Signal(sig)
			code := p.wait(t, 2*time.Minute)
			if sig == syscall.SIGKILL {
				stop := start(t, dir, "-stop")
				if code := stop.wait(t, 2*time.Minute); code != 0 {
					t.Errorf("cleaning up ended with %d:\n%s", code, stop.output)
				}
			} else if code != 130 && code != 0 { // 0: it was at its end already
				t.Errorf("it ended with %d:\n%s", code, p.output)
			}
			nothingLeft(t, o, before)
		})
	}
}

// TestASiteCutOffForLongerThanItsIdentitiesGoesOn is the demo with times as a
// small fleet would have them: the cut is longer than an SVID lasts and longer
// than lostAfter. The demo judges pids, start times, states and identities.
//
// It mostly waits, so it shares the host with TestAFleetUnderHarm, once the
// tests that list the whole host are over.
func TestASiteCutOffForLongerThanItsIdentitiesGoesOn(t *testing.T) {
	t.Parallel()
	dir := alone(t)
	p := start(t, dir, "-dir", ".demo-long", "-prefix", "rd-long", "-net", "78", "-svid-ttl", "1m", "-lost-after", "30s", "-cut", "80s")
	code := p.wait(t, 8*time.Minute)
	if code != 0 {
		t.Errorf("it ended with %d:\n%s", code, p.output)
	}
	if !strings.Contains(p.output.String(), "disconnected") {
		t.Errorf("no node was shown as disconnected:\n%s", p.output)
	}
}
