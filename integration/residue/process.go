package residue

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

type proc struct {
	pid, parent int
	start       string
	command     string
	kernel      bool
	// ended: nothing of it is left but the entry that whoever adopted it has not
	// fetched yet. An init does so at once; what runs the tests may not.
	ended bool
	netns string
}

func (p proc) name() string { return fmt.Sprintf("%d started %s", p.pid, p.start) }

func processes(l *List, _ Options) error {
	l.procs, l.held = map[int]proc{}, map[string][]int{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		p, err := readProcess(pid)
		if err != nil {
			continue // it ended meanwhile
		}
		l.procs[pid] = p
		if p.kernel || p.ended {
			continue
		}
		l.Things[Process][p.name()] = p.command
		fds, _ := os.ReadDir(filepath.Join("/proc", e.Name(), "fd"))
		for _, fd := range fds {
			if path, err := os.Readlink(filepath.Join("/proc", e.Name(), "fd", fd.Name())); err == nil && strings.HasPrefix(path, "/") {
				l.held[path] = append(l.held[path], pid)
			}
		}
	}
	return nil
}

func readProcess(pid int) (proc, error) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return proc{}, err
	}
	// The command in parentheses may hold anything, parentheses too.
	open, shut := strings.IndexByte(string(stat), '('), strings.LastIndexByte(string(stat), ')')
	if open < 0 || shut < 0 {
		return proc{}, fmt.Errorf("stat of process %d: %q", pid, stat)
	}
	f := strings.Fields(string(stat[shut+1:]))
	if len(f) < 20 {
		return proc{}, fmt.Errorf("stat of process %d: %q", pid, stat)
	}
	p := proc{pid: pid, start: f[19], command: string(stat[open+1 : shut]), ended: f[0] == "Z"}
	if p.parent, err = strconv.Atoi(f[1]); err != nil {
		return proc{}, err
	}
	p.kernel = pid == 2 || p.parent == 2
	if line, err := os.ReadFile(filepath.Join(dir, "cmdline")); err == nil && len(line) > 0 {
		p.command = strings.TrimSpace(strings.ReplaceAll(string(line), "\x00", " "))
	}
	if len(p.command) > 200 {
		p.command = p.command[:200] + "…"
	}
	p.netns, _ = os.Readlink(filepath.Join(dir, "ns/net"))
	return p, nil
}

// older tells whether the process that now has this pid was there before.
func (l List) older(after List, pid int) bool {
	b, ok := l.procs[pid]
	if !ok {
		return false
	}
	a, ok := after.procs[pid]
	return !ok || a.start == b.start
}

// descends tells whether the process of this name has an ancestor that was
// there before, other than init and the observer.
func (l List) descends(before List, name string) bool {
	pid, err := strconv.Atoi(strings.Fields(name)[0])
	if err != nil {
		return false
	}
	for seen := 0; seen < 1000; seen++ {
		p, ok := l.procs[pid]
		if !ok {
			// Its parent ended between two reads; the child is init's by now.
			return false
		}
		if p.parent <= 1 || p.parent == os.Getpid() {
			return false
		}
		if before.older(l, p.parent) {
			return true
		}
		pid = p.parent
	}
	return false
}

// foreign tells whether only processes of others are in a network namespace.
func (l List) foreign(before List, netns string) bool {
	any := false
	for _, p := range l.procs {
		if p.netns != netns || p.kernel {
			continue
		}
		any = true
		if !before.older(l, p.pid) && !l.descends(before, p.name()) {
			return false
		}
	}
	return any
}

// namespaces lists network namespaces that a process is in or a mount pins.
func namespaces(l *List, _ Options) error {
	for _, p := range l.procs {
		if p.netns != "" {
			l.Things[Namespace][p.netns] = "in use"
		}
	}
	// A namespace without a process is held by a mount of nsfs.
	for point := range l.Things[Mount] {
		if info, err := os.Stat(point); err == nil && strings.Contains(l.Things[Mount][point], "nsfs") {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				l.Things[Namespace][fmt.Sprintf("net:[%d]", st.Ino)] = "in use"
			}
		}
	}
	entries, err := os.ReadDir("/run/netns")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		l.Things[Namespace]["/run/netns/"+e.Name()] = "named"
	}
	return nil
}
