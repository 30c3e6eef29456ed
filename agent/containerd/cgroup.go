package containerd

import (
	"bufio"
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// hierarchies is where control groups are mounted: one place with cgroup v2,
// one for each controller with v1.
type hierarchies struct {
	unified bool              // v2 alone
	mounts  []string          // every hierarchy, v2 of a hybrid host included
	of      map[string]string // v1: controller → mount
}

func findHierarchies() (hierarchies, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return hierarchies{}, err
	}
	return parseHierarchies(data), nil
}

func parseHierarchies(mountinfo []byte) hierarchies {
	h := hierarchies{of: map[string]string{}}
	v2 := ""
	for s := bufio.NewScanner(bytes.NewReader(mountinfo)); s.Scan(); {
		before, after, ok := strings.Cut(s.Text(), " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 5 || len(g) < 3 || f[3] != "/" {
			continue
		}
		switch g[0] {
		case "cgroup2":
			if v2 == "" {
				v2 = f[4]
			}
		case "cgroup":
			if !slices.Contains(h.mounts, f[4]) {
				h.mounts = append(h.mounts, f[4])
			}
			for _, opt := range strings.Split(g[2], ",") {
				if _, ok := h.of[opt]; !ok {
					h.of[opt] = f[4]
				}
			}
		}
	}
	h.unified = len(h.mounts) == 0 && v2 != ""
	if v2 != "" {
		h.mounts = append(h.mounts, v2)
	}
	return h
}

// path is the directory of group for a controller.
func (h hierarchies) path(controller, group string) string {
	if h.unified {
		return filepath.Join(h.mounts[0], group)
	}
	if m, ok := h.of[controller]; ok {
		return filepath.Join(m, group)
	}
	return ""
}

// children lists the groups directly below parent, in any hierarchy.
func (h hierarchies) children(parent string) []string {
	seen := map[string]bool{}
	for _, m := range h.mounts {
		entries, _ := os.ReadDir(filepath.Join(m, parent))
		for _, e := range entries {
			if e.IsDir() {
				seen[e.Name()] = true
			}
		}
	}
	var out []string
	for name := range seen {
		out = append(out, name)
	}
	sort.Strings(out)
	return out
}

// pids lists the living processes in group and below it, in any hierarchy.
func (h hierarchies) pids(group string) []int {
	seen := map[int]bool{}
	for _, m := range h.mounts {
		_ = filepath.WalkDir(filepath.Join(m, group), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return nil
			}
			data, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
			for _, f := range strings.Fields(string(data)) {
				// 0 is a process outside our pid namespace.
				if pid, err := strconv.Atoi(f); err == nil && pid > 0 {
					seen[pid] = true
				}
			}
			return nil
		})
	}
	var out []int
	for pid := range seen {
		if _, err := findProcess(pid); err == nil && !kernelThread(pid) {
			out = append(out, pid)
		}
	}
	sort.Ints(out)
	return out
}

// kernelThread: KVM puts one of its own into the group of a VM.
func kernelThread(pid int) bool { return len(cmdline(pid)) == 0 && !hasExe(pid) }

func hasExe(pid int) bool {
	_, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe")
	return !errors.Is(err, fs.ErrNotExist)
}

// kill ends every process of group, thawing it first: what is frozen does not
// die. It tells whether the group is empty.
func (h hierarchies) kill(group string, timeout time.Duration) bool {
	deadline := time.Now().Add(timeout)
	for {
		pids := h.pids(group)
		if len(pids) == 0 {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
		for _, pid := range pids {
			if p, err := findProcess(pid); err == nil {
				_ = p.signal(unix.SIGKILL)
			}
		}
		h.thaw(group)
		time.Sleep(10 * time.Millisecond)
	}
}

func (h hierarchies) thaw(group string) {
	if h.unified {
		_ = os.WriteFile(filepath.Join(h.mounts[0], group, "cgroup.freeze"), []byte("0"), 0)
		return
	}
	if p := h.path("freezer", group); p != "" {
		_ = os.WriteFile(filepath.Join(p, "freezer.state"), []byte("THAWED"), 0)
	}
}

// remove removes group and what is below it, where it is empty.
func (h hierarchies) remove(group string) error {
	var errs []error
	for _, m := range h.mounts {
		var dirs []string
		_ = filepath.WalkDir(filepath.Join(m, group), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for _, dir := range slices.Backward(dirs) {
			if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// usage is what a group uses now.
type usage struct {
	cpu    time.Duration
	memory int64
	pids   int64
}

func (h hierarchies) usage(group string) (usage, error) {
	var u usage
	if h.unified {
		dir := h.path("", group)
		usec, err := keyed(filepath.Join(dir, "cpu.stat"), "usage_usec")
		if err != nil {
			return u, err
		}
		u.cpu = time.Duration(usec) * time.Microsecond
		u.memory, _ = number(filepath.Join(dir, "memory.current"))
		u.pids, _ = number(filepath.Join(dir, "pids.current"))
		return u, nil
	}
	nsec, err := number(filepath.Join(h.path("cpuacct", group), "cpuacct.usage"))
	if err != nil {
		return u, err
	}
	u.cpu = time.Duration(nsec)
	u.memory, _ = number(filepath.Join(h.path("memory", group), "memory.usage_in_bytes"))
	u.pids, _ = number(filepath.Join(h.path("pids", group), "pids.current"))
	return u, nil
}

// oomKills is how often the kernel killed in group for its memory limit.
func (h hierarchies) oomKills(group string) int64 {
	file := "memory.oom_control"
	if h.unified {
		file = "memory.events"
	}
	n, _ := keyed(filepath.Join(h.path("memory", group), file), "oom_kill")
	return n
}

// pidsRefused is how often a process could not be made for the pids limit.
func (h hierarchies) pidsRefused(group string) int64 {
	n, _ := keyed(filepath.Join(h.path("pids", group), "pids.events"), "max")
	return n
}

func number(path string) (int64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
}

func keyed(path, key string) (int64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for _, line := range strings.Split(string(data), "\n") {
		if f := strings.Fields(line); len(f) == 2 && f[0] == key {
			return strconv.ParseInt(f[1], 10, 64)
		}
	}
	return 0, nil
}
