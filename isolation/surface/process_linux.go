package surface

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"redoubt.dev/redoubt/isolation"
)

// Process is what was measured on one live process.
type Process struct {
	PID int
	// Started is the start time in clock ticks since boot; with PID it names
	// the process for as long as the host is up.
	Started uint64
	// Exe is the path of the executable as the kernel names it.
	Exe string

	Seccomp    Seccomp
	Devices    Devices
	Namespaces map[string]uint64 // kind ("pid", "net", …) to inode
	Caps       Capabilities
	NoNewPrivs bool
	// Label is the security module's confinement ("docker-default (enforce)"),
	// empty where none applies.
	Label string
}

// Surface gives the numbers that the isolation score takes.
func (p Process) Surface() isolation.Surface {
	return isolation.Surface{
		Syscalls:      p.Seccomp.Reachable,
		SyscallsTotal: p.Seccomp.Total,
		Devices:       p.Devices.Count(),
		Measured:      true,
		// The same each time, so that a renewed proof is not a changed fact.
		Source: "seccomp filters and open files of the boundary process",
	}
}

// Capabilities are the sets of the process's main thread.
type Capabilities struct {
	Inheritable, Permitted, Effective, Bounding, Ambient uint64
}

// Measure looks at the process pid. It ends by ctx, or within seconds where
// ctx has no deadline. If the process ends meanwhile, or its pid comes to name
// another, the error wraps ErrGone; if this process may not look, ErrDenied.
func Measure(ctx context.Context, pid int) (Process, error) {
	p, err := measure(ctx, pid)
	if err != nil {
		return Process{}, fmt.Errorf("measure process %d: %w", pid, procError(err))
	}
	return p, nil
}

func measure(ctx context.Context, pid int) (Process, error) {
	p := Process{PID: pid}
	var err error
	if p.Started, err = startTime(pid); err != nil {
		return p, err
	}
	// The link of a process that became another user's needs CAP_SYS_PTRACE.
	if p.Exe, err = os.Readlink(procPath(pid, "exe")); err != nil {
		return p, err
	}
	st, err := readStatus(procPath(pid, "status"))
	if err != nil {
		return p, err
	}
	p.Caps, p.NoNewPrivs = st.caps, st.noNewPrivs
	if p.Namespaces, err = Namespaces(pid); err != nil {
		return p, err
	}
	p.Label = label(pid)
	if p.Devices, err = devices(pid); err != nil {
		return p, err
	}
	if p.Seccomp, err = seccomp(ctx, pid); err != nil {
		return p, err
	}
	again, err := startTime(pid)
	if err != nil {
		return p, err
	}
	if again != p.Started {
		return p, ErrGone
	}
	return p, nil
}

// seccomp reads every thread. Threads that start meanwhile are looked for once
// more: they inherit their filters from one that was seen, or from one that
// was started by such a one.
func seccomp(ctx context.Context, pid int) (Seccomp, error) {
	if len(local.numbers) == 0 {
		return Seccomp{}, fmt.Errorf("system call table of this architecture: %w", ErrUnsupported)
	}
	seen := map[int]bool{}
	var all []thread
	for range 2 {
		tids, err := threadIDs(pid)
		if err != nil {
			return Seccomp{}, err
		}
		var filtered []int
		for _, tid := range tids {
			if seen[tid] {
				continue
			}
			seen[tid] = true
			st, err := readStatus(procPath(pid, "task", strconv.Itoa(tid), "status"))
			if errors.Is(procError(err), ErrGone) {
				continue
			}
			if err != nil {
				return Seccomp{}, err
			}
			if st.zombie {
				continue // makes no more calls
			}
			if st.mode == ModeFilter {
				filtered = append(filtered, tid)
			} else {
				all = append(all, thread{mode: st.mode})
			}
		}
		threads, err := readFilters(ctx, filtered)
		if err != nil {
			return Seccomp{}, err
		}
		all = append(all, threads...)
	}
	if len(all) == 0 {
		return Seccomp{}, ErrGone
	}
	return evaluate(local, all)
}

func threadIDs(pid int) ([]int, error) {
	entries, err := os.ReadDir(procPath(pid, "task"))
	if err != nil {
		return nil, err
	}
	tids := make([]int, 0, len(entries))
	for _, e := range entries {
		if tid, err := strconv.Atoi(e.Name()); err == nil {
			tids = append(tids, tid)
		}
	}
	return tids, nil
}

type status struct {
	zombie     bool
	mode       Mode
	noNewPrivs bool
	caps       Capabilities
}

func readStatus(path string) (status, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return status{}, err
	}
	return parseStatus(text)
}

// parseStatus reads /proc/PID/status. A kernel without seccomp has no such
// line, which means what the zero mode means: no filter.
func parseStatus(text []byte) (status, error) {
	var st status
	seen := false
	for line := range bytes.Lines(text) {
		key, rest, ok := strings.Cut(string(line), ":")
		if !ok {
			continue
		}
		rest = strings.TrimSpace(rest)
		var err error
		switch key {
		case "State":
			seen = true
			st.zombie = strings.HasPrefix(rest, "Z") || strings.HasPrefix(rest, "X")
		case "Seccomp":
			var m uint64
			m, err = strconv.ParseUint(rest, 10, 8)
			st.mode = Mode(m)
		case "NoNewPrivs":
			st.noNewPrivs = rest == "1"
		case "CapInh":
			st.caps.Inheritable, err = strconv.ParseUint(rest, 16, 64)
		case "CapPrm":
			st.caps.Permitted, err = strconv.ParseUint(rest, 16, 64)
		case "CapEff":
			st.caps.Effective, err = strconv.ParseUint(rest, 16, 64)
		case "CapBnd":
			st.caps.Bounding, err = strconv.ParseUint(rest, 16, 64)
		case "CapAmb":
			st.caps.Ambient, err = strconv.ParseUint(rest, 16, 64)
		}
		if err != nil {
			return status{}, fmt.Errorf("read process status, line %s: %w", key, err)
		}
	}
	if !seen {
		return status{}, errors.New("read process status: no State line")
	}
	return st, nil
}

// startTime is field 22 of /proc/PID/stat.
func startTime(pid int) (uint64, error) {
	fields, err := statFields(procPath(pid, "stat"))
	if err != nil {
		return 0, err
	}
	if s := fields[0][0]; s == 'Z' || s == 'X' {
		return 0, ErrGone
	}
	return strconv.ParseUint(string(fields[19]), 10, 64)
}

// exiting says that a thread makes no more calls: it is gone, dead, or on its
// way out (PF_EXITING in field 9).
func exiting(tid int) bool {
	fields, err := statFields(procPath(tid, "stat"))
	if err != nil {
		return true
	}
	flags, err := strconv.ParseUint(string(fields[6]), 10, 64)
	const pfExiting = 0x4
	return fields[0][0] == 'Z' || fields[0][0] == 'X' || err == nil && flags&pfExiting != 0
}

// statFields gives the fields of a stat file from the third on (the state):
// the name before it may hold anything, so count from its closing parenthesis.
func statFields(path string) ([][]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	if len(fields) < 20 {
		return nil, fmt.Errorf("read %s: %d fields", path, len(fields))
	}
	return fields, nil
}

// Namespaces gives the namespaces of a process: kind to inode.
func Namespaces(pid int) (map[string]uint64, error) {
	dir := procPath(pid, "ns")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	out := make(map[string]uint64, len(entries))
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		// "pid:[4026531836]"
		_, id, ok := strings.Cut(strings.TrimSuffix(target, "]"), ":[")
		inode, err := strconv.ParseUint(id, 10, 64)
		if !ok || err != nil {
			return nil, fmt.Errorf("namespace %s: cannot read %q", e.Name(), target)
		}
		out[e.Name()] = inode
	}
	return out, nil
}

// label reads what the security module says; without one the file is not there
// or cannot be read, which comes to the same.
func label(pid int) string {
	text, err := os.ReadFile(procPath(pid, "attr", "current"))
	l := strings.TrimRight(string(text), "\x00\n ")
	if err != nil || strings.HasPrefix(l, "unconfined") || l == "kernel" {
		return ""
	}
	return l
}

func procPath(pid int, elem ...string) string {
	return filepath.Join(append([]string{"/proc", strconv.Itoa(pid)}, elem...)...)
}

// procError turns what /proc says of a process that is gone or shut into the
// errors of this package.
func procError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrGone), errors.Is(err, ErrDenied):
		return err
	case errors.Is(err, fs.ErrNotExist), strings.Contains(err.Error(), "no such process"):
		return fmt.Errorf("%w (%v)", ErrGone, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w (%v)", ErrDenied, err)
	}
	return err
}
