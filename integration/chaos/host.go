package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"redoubt.dev/redoubt/integration/net/fleet"
)

// host is a node as it lies on this host: what is seen here, nobody told.
type host struct {
	node, site string
	dir        string // the agent's data directory
	runs       string // the folder that the beacons of its site write
	// runtime is what it runs its instances under, and proves are those that it
	// offers; empty: all that there are.
	runtime string
	proves  []string
	// runtimes is where the fleet's programs were unpacked.
	runtimes string
	run      string // the private containerd's run directory, once known
	before   estate // what there was of it before the first fault
}

// runDir finds the containerd's run directory by its note of whose it is.
func (h *host) runDir() string {
	if h.run != "" {
		return h.run
	}
	owners, _ := filepath.Glob("/run/redoubt/*/owner")
	for _, o := range owners {
		text, err := os.ReadFile(o)
		if _, dir, ok := strings.Cut(strings.TrimSpace(string(text)), " "); err == nil && ok && strings.HasPrefix(dir, h.dir+"/") {
			h.run = filepath.Dir(o)
		}
	}
	return h.run
}

// sight is what of one instance is seen on its host at one moment.
type sight struct {
	pin    bool // its network namespace
	bundle bool // its bundle, which the shim makes and removes
	group  bool // its control group
	procs  []int
	beats  bool // this start was heard
	term   bool // it was told to end
}

func (s sight) String() string {
	var out []string
	for _, p := range []struct {
		name string
		is   bool
	}{{"namespace", s.pin}, {"bundle", s.bundle}, {"group", s.group}, {fmt.Sprintf("%d processes", len(s.procs)), len(s.procs) > 0}, {"beats", s.beats}, {"told to end", s.term}} {
		if p.is {
			out = append(out, p.name)
		}
	}
	if len(out) == 0 {
		return "nothing"
	}
	return strings.Join(out, ", ")
}

// Steps of a start and of a stop, as a sight shows them.
const (
	network = "network" // the namespace is there, nothing of the container
	create  = "create"  // the bundle is there, no process in the group
	launch  = "launch"  // the sandbox runs, its workload was not heard
	running = "running"
	grace   = "grace" // the workload was told to end and has not
	reap    = "reap"  // the sandbox is gone, its bundle is not
	clear   = "clear" // only the namespace is left
	nothing = "nothing"
)

// step names it. stopping tells an end from a start that looks alike.
func (s sight) step(stopping bool) string {
	switch {
	case stopping && s.term && len(s.procs) > 0:
		return grace
	case stopping && s.bundle && len(s.procs) == 0:
		return reap
	case stopping && s.pin && !s.bundle:
		return clear
	case s.beats && len(s.procs) > 0:
		return running
	case len(s.procs) > 0:
		return launch
	case s.bundle:
		return create
	case s.pin:
		return network
	}
	return nothing
}

// within tells whether nothing is in s that was not in before.
func (s sight) within(before sight) bool {
	return !(s.pin && !before.pin || s.bundle && !before.bundle || s.beats && !before.beats || s.term && !before.term) &&
		!slices.ContainsFunc(s.procs, func(pid int) bool { return !slices.Contains(before.procs, pid) })
}

func read(path string) string { data, _ := os.ReadFile(path); return string(data) }

func there(path string) bool { _, err := os.Lstat(path); return err == nil }

func (h *host) bundle(uid string) string {
	found, _ := filepath.Glob(h.runDir() + "/*/io.containerd.runtime.v2.task/redoubt-" + h.node + "/rd-" + uid)
	if len(found) == 0 {
		return ""
	}
	return found[0]
}

// groups are the instance's control group, of version 1 and of version 2.
func (h *host) groups(uid string) (out []string) {
	for _, root := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup"} {
		if g := filepath.Join(root, "redoubt", h.node, "rd-"+uid); there(g) {
			out = append(out, g)
		}
	}
	return out
}

// look sees an instance; heard are nonces of starts that count no more.
func (h *host) look(uid string, heard []string) sight {
	s := sight{pin: there(filepath.Join(h.dir, "network", "netns", uid)), bundle: h.bundle(uid) != ""}
	for _, g := range h.groups(uid) {
		s.group = true
		for _, word := range strings.Fields(read(filepath.Join(g, "cgroup.procs"))) {
			if pid, err := strconv.Atoi(word); err == nil {
				s.procs = append(s.procs, pid)
			}
		}
	}
	files, _ := filepath.Glob(filepath.Join(h.runs, uid+"_*"))
	for _, f := range files {
		_, nonce, _ := strings.Cut(filepath.Base(f), "_")
		if slices.Contains(heard, nonce) {
			continue
		}
		data, _ := os.ReadFile(f)
		s.beats = s.beats || bytes.Contains(data, []byte("beat"))
		s.term = s.term || bytes.Contains(data, []byte("term"))
	}
	return s
}

// nonces are the starts of an instance so far.
func (h *host) nonces(uid string) (out []string) {
	files, _ := filepath.Glob(filepath.Join(h.runs, uid+"_*"))
	for _, f := range files {
		_, nonce, _ := strings.Cut(filepath.Base(f), "_")
		out = append(out, nonce)
	}
	return out
}

// pins are the uids that have a network namespace.
func (h *host) pins() (out []string) {
	entries, _ := os.ReadDir(filepath.Join(h.dir, "network", "netns"))
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// leftovers of an instance that is to be gone.
func (h *host) leftovers(uid string) (out []string) {
	s := h.look(uid, nil)
	if s.pin {
		out = append(out, "its network namespace")
	}
	if s.bundle {
		out = append(out, "its bundle")
	}
	if s.group {
		out = append(out, fmt.Sprintf("its control group with processes %v", s.procs))
	}
	for pid, words := range fleet.Processes() {
		if slices.Contains(words, "rd-"+uid) || strings.Contains(strings.Join(words, " "), "/rd-"+uid) {
			out = append(out, fmt.Sprintf("process %d %s", pid, filepath.Base(words[0])))
		}
	}
	return out
}

// child is the one process that pid has started, 0 if it has none.
func child(pid int) int {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		c, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		_, rest, _ := strings.Cut(string(stat), ") ")
		if f := strings.Fields(rest); len(f) > 1 && f[1] == strconv.Itoa(pid) {
			return c
		}
	}
	return 0
}

var errNotThere = errors.New("it is not there to be struck")

// containerd is the pid of the node's private daemon.
func (h *host) containerd() (int, error) {
	for pid, words := range fleet.Processes() {
		if filepath.Base(words[0]) == "containerd" && slices.ContainsFunc(words, func(w string) bool { return strings.HasPrefix(w, h.dir+"/") }) {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("containerd of %s: %w", h.node, errNotThere)
}

func (h *host) shim(uid string) (int, error) {
	for pid, words := range fleet.Processes() {
		if strings.Contains(filepath.Base(words[0]), "shim") && slices.Contains(words, "rd-"+uid) && !slices.Contains(words, "delete") {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("shim of %s: %w", uid, errNotThere)
}

// sentry is the process that is the instance's boundary.
func (h *host) sentry(uid string) (int, error) {
	all := fleet.Processes()
	for _, pid := range h.look(uid, nil).procs {
		if words := all[pid]; slices.Contains(words, "boot") || len(words) > 0 && strings.Contains(words[0], "sandbox") {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("sentry of %s: %w", uid, errNotThere)
}

// init is the pid of the first process of a container of runc.
func (h *host) init(uid string) (int, error) {
	all := fleet.Processes()
	for _, pid := range h.look(uid, nil).procs {
		if words := all[pid]; len(words) > 0 && words[0] == "/beacon/beacon" {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("init of %s: %w", uid, errNotThere)
}

// signalInit signals the first process inside the sandbox.
func (h *host) signalInit(uid string, sig unix.Signal) error {
	runsc, _ := filepath.Glob(filepath.Join(h.runtimes, "*", "runsc"))
	if len(runsc) == 0 {
		runsc, _ = filepath.Glob(filepath.Join(h.runtimes, "runsc"))
	}
	if len(runsc) == 0 {
		return fmt.Errorf("no runsc in %s", h.runtimes)
	}
	out, err := exec.Command(runsc[0], "--root", filepath.Join(h.runDir(), "r", "redoubt-"+h.node), "kill", "rd-"+uid, strconv.Itoa(int(sig))).CombinedOutput()
	if err != nil {
		return fmt.Errorf("signal init of %s: %w: %s", uid, err, bytes.TrimSpace(out))
	}
	return nil
}

// until polls as fast as it can without starving what it waits for.
func until(patience, every time.Duration, done func() bool) bool {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(every) {
		if done() {
			return true
		}
	}
	return false
}
