package runtimes

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestUnpackByManyProcessesAtOnce(t *testing.T) {
	dir := t.TempDir() + "/r"
	type process struct {
		cmd   *exec.Cmd
		steps <-chan int
	}
	var all []process
	for range 4 {
		cmd, steps := child(t, dir, time.Millisecond)
		all = append(all, process{cmd, steps})
	}
	wrote := 0
	for _, p := range all {
		n := 0
		for range p.steps {
			n++
		}
		if err := p.cmd.Wait(); err != nil {
			t.Errorf("one of the processes failed: %v", err)
		}
		if n > 0 {
			wrote++
		}
	}
	// The children overlap: each takes over 100 ms of sleeps. One writes, the
	// others must find its files good and not read a byte of the bundle.
	if wrote != 1 {
		t.Errorf("%d of the processes wrote, want 1", wrote)
	}
	if n := checkNothingHalf(t, dir); n != len(parts) {
		t.Errorf("%d parts are in place, want %d", n, len(parts))
	}
	paths, err := open(t, syntheticFS()).Unpack(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	checkUnpacked(t, dir, paths)
	if len(paths.Repaired) != 0 {
		t.Errorf("the processes left files that had to be repaired: %v", paths.Repaired)
	}
}

func TestUnpackKilledAtAnyMoment(t *testing.T) {
	sawTemp := false
	for after := 0; after < 110; after += 7 {
		dir := t.TempDir() + "/r"
		cmd, steps := child(t, dir, 500*time.Microsecond)
		for n := range steps {
			if n == after {
				break
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		checkNothingHalf(t, dir)
		sawTemp = sawTemp || slices.ContainsFunc(files(t, dir), func(f string) bool { return strings.HasPrefix(f, tempPrefix) })

		paths, err := open(t, syntheticFS()).Unpack(t.Context(), dir)
		if err != nil {
			t.Fatalf("killed after %d reads: %v", after, err)
		}
		checkUnpacked(t, dir, paths)
		if len(paths.Repaired) != 0 {
			t.Errorf("killed after %d reads: the files %v were there and wrong", after, paths.Repaired)
		}
	}
	if !sawTemp {
		t.Error("no kill fell into the middle of a file, so nothing was shown")
	}
}
