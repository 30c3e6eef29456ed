package canary

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"redoubt.dev/redoubt/isolation"
	"redoubt.dev/redoubt/isolation/probe"
	"redoubt.dev/redoubt/isolation/surface"
)

// Boundary is what the host sees of the process between a workload and itself.
type Boundary struct {
	Process surface.Process
	Digest  string // "sha256:…" of its executable
	// Helpers are the pids of the sandbox's other processes on the host that
	// run the same executable, such as gVisor's gofer.
	Helpers []int
}

// look measures the boundary process pid.
func look(ctx context.Context, pid int) (Boundary, error) {
	var b Boundary
	var err error
	if b.Process, err = surface.Measure(ctx, pid); err != nil {
		return b, err
	}
	// Through /proc, so that it is the file that runs even if its path now
	// names another. It is read whole each time: a size and a time of change
	// can be set back.
	if b.Digest, err = probe.Digest(procPath(pid, "exe")); err != nil {
		return b, fmt.Errorf("boundary process %d: %w", pid, err)
	}
	b.Helpers = helpers(pid)
	return b, nil
}

// Measurement is what was measured of a live workload's boundary.
type Measurement struct {
	// Class is what the boundary process meets of what its runtime promises;
	// Reason says what is missing where it is less.
	Class  isolation.Class
	Reason string
	Terms  isolation.Terms
	Boundary
}

// Measure looks at a live workload's boundary process. digest is that of the
// runtime's main binary, from its finding: where the runtime has a kernel of
// its own, that the process runs this binary is what shows it, since no canary
// is inside. An error means unmeasured, never "as promised"; it wraps
// surface.ErrGone if the process ended.
func Measure(ctx context.Context, pid int, runtime isolation.Name, promised isolation.Class, digest string) (Measurement, error) {
	fail := func(err error) (Measurement, error) {
		return Measurement{}, fmt.Errorf("measure the sandbox of runtime %s: %w", runtime, err)
	}
	namespaces, err := surface.Namespaces(os.Getpid())
	if err != nil {
		return fail(err)
	}
	b, err := begun(ctx, pid, promised, digest)
	if err != nil {
		return fail(err)
	}
	seen := probe.Seen{Process: b.Process, HostNamespaces: namespaces}
	m := Measurement{Boundary: b}
	if promised > isolation.ClassContainer {
		seen.OtherKernel = digest != "" && b.Digest == digest
	}
	m.Class, m.Reason = seen.Class(promised)
	if promised > isolation.ClassContainer && !seen.OtherKernel {
		m.Reason = fmt.Sprintf("the boundary process runs %s, which is not the runtime's binary", b.Process.Exe)
	}
	m.Terms = seen.Terms()
	return m, nil
}

// beginsWithin is how long a started container may take to get from its
// runtime's own init to the workload.
const beginsWithin = 2 * time.Second

// begun looks at the boundary once the workload has begun. Where it has the
// host's kernel, the process that a start returns is the runtime's init for
// some milliseconds more, and puts its filter on last. A workload that is the
// runtime's binary itself is looked at all the same, a little later.
func begun(ctx context.Context, pid int, promised isolation.Class, digest string) (Boundary, error) {
	end := time.Now().Add(beginsWithin)
	for {
		b, err := look(ctx, pid)
		if err != nil || promised > isolation.ClassContainer || digest == "" || b.Digest != digest || time.Now().After(end) {
			return b, err
		}
		select {
		case <-ctx.Done():
			return Boundary{}, context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// helpers finds processes with the same parent and the same executable.
func helpers(pid int) []int {
	parent := parentOf(pid)
	exe, err := os.Stat(procPath(pid, "exe"))
	if parent <= 1 || err != nil {
		return nil
	}
	var out []int
	each(func(other int) {
		if other == pid || parentOf(other) != parent {
			return
		}
		if fi, err := os.Stat(procPath(other, "exe")); err == nil && os.SameFile(exe, fi) {
			out = append(out, other)
		}
	})
	slices.Sort(out)
	return out
}

// onHost finds a process of this host that has arg among its arguments: if the
// canary itself is one, no kernel of its own stands between.
func onHost(arg string) (pid int, found bool) {
	each(func(p int) {
		if cmdline, err := os.ReadFile(procPath(p, "cmdline")); err == nil && hasArg(cmdline, arg) {
			pid, found = p, true
		}
	})
	return pid, found
}

func hasArg(cmdline []byte, arg string) bool {
	for a := range bytes.SplitSeq(cmdline, []byte{0}) {
		if string(a) == arg {
			return true
		}
	}
	return false
}

func each(do func(pid int)) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			do(pid)
		}
	}
}

func parentOf(pid int) int {
	text, err := os.ReadFile(procPath(pid, "stat"))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 2 {
		return 0
	}
	parent, _ := strconv.Atoi(fields[1])
	return parent
}

func procPath(pid int, name string) string {
	return filepath.Join("/proc", strconv.Itoa(pid), name)
}
