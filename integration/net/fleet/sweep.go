package fleet

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"redoubt.dev/redoubt/integration/net/topology"
)

const (
	groupRoot = "/sys/fs/cgroup"
	runRoot   = "/run/redoubt"
)

// Down stops the fleet: agents first, with all that they run, then servers,
// then the network. It returns what had to be ended or removed by force. The
// directory keeps the logs only.
func (f *Fleet) Down(ctx context.Context) (forced []string, err error) {
	// No deadline of the caller's work may leave a fleet standing.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 90*time.Second)
	defer cancel()
	plan := f.state.Plan // an earlier run may have had another than ours
	if plan.Prefix == "" {
		return nil, f.tidy(nil) // nothing was made
	}
	nodes := plan.Nodes()
	f.signal(nodes, syscall.SIGTERM, 15*time.Second)
	if owner := topology.Owner(plan); owner != "" && owner != f.cfg.Dir {
		// Ours is long gone and another's stands under its names.
		f.signal(plan.Servers, syscall.SIGTERM, 10*time.Second)
		return nil, errors.Join(f.tidy(nil), f.forget())
	}
	var errs []error
	// A killed run may have left commands of its own at work; two removals of
	// one node would get into each other's way.
	errs = append(errs, f.marks(plan).endCommands(f.cfg.Binary, f.File("admin.context"), f.pids(plan.Servers)))
	errs = append(errs, f.purge(ctx, plan, nodes))
	// The leader goes last, so that no other is elected meanwhile.
	f.signal(plan.Servers, syscall.SIGTERM, 10*time.Second)

	m := f.marks(plan)
	forced, err = m.force()
	errs = append(errs, err)
	errs = append(errs, topology.Remove(plan))
	if err := errors.Join(errs...); err != nil {
		return forced, fmt.Errorf("stop the fleet: %w", err)
	}
	return forced, errors.Join(f.tidy(nodes), f.forget())
}

// tidy leaves nothing but the logs in the directory.
func (f *Fleet) tidy(nodes []string) error {
	for _, n := range nodes {
		// Beside the agent's, for who looks into a failure.
		_ = os.Rename(filepath.Join(f.File(n), "containerd", "containerd.log"), f.Log(n+"-containerd"))
	}
	entries, err := os.ReadDir(f.cfg.Dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if e.Name() != "logs" && e.Name() != "lock" && e.Name() != "state.json" {
			errs = append(errs, os.RemoveAll(filepath.Join(f.cfg.Dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// forget removes the note that something may be up. It goes last: until here a
// killed Down is taken up again.
func (f *Fleet) forget() error {
	f.state = state{}
	f.running = map[string]*Daemon{}
	return os.RemoveAll(f.statePath())
}

// Clear removes the fleet's directory, logs too. The fleet must be down.
func (f *Fleet) Clear() error {
	if f.Left() {
		return errors.New("the fleet is up")
	}
	return os.RemoveAll(f.cfg.Dir)
}

// signal sends sig to the named daemons, those of an earlier process too, and
// waits for their ends as long as patience lasts.
func (f *Fleet) signal(names []string, sig syscall.Signal, patience time.Duration) {
	var waiting []record
	for _, r := range f.state.Daemons {
		if !slices.Contains(names, r.Name) || r.Pid == 0 {
			continue
		}
		if now, err := StartTime(r.Pid); err != nil || now != r.Start {
			continue
		}
		if unix.Kill(r.Pid, sig) == nil {
			waiting = append(waiting, r)
		}
	}
	for deadline := time.Now().Add(patience); len(waiting) > 0 && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		waiting = slices.DeleteFunc(waiting, func(r record) bool {
			now, err := StartTime(r.Pid)
			return err != nil || now != r.Start
		})
	}
}

// pids are the processes noted for the named daemons.
func (f *Fleet) pids(names []string) []int {
	var out []int
	for _, r := range f.state.Daemons {
		if slices.Contains(names, r.Name) {
			out = append(out, r.Pid)
		}
	}
	return out
}

// endCommands ends what runs the fleet's program in its namespaces or as its
// administrator, but for this process's daemons that are to stay a while.
func (m marks) endCommands(binary, admin string, stay []int) error {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		var left []int
		entries, _ := os.ReadDir("/proc")
		for _, e := range entries {
			pid, err := strconv.Atoi(e.Name())
			if err != nil || pid == os.Getpid() || slices.Contains(stay, pid) {
				continue
			}
			dir := filepath.Join("/proc", e.Name())
			if exe, _ := os.Readlink(filepath.Join(dir, "exe")); strings.TrimSuffix(exe, " (deleted)") != binary {
				continue
			}
			ns, _ := os.Readlink(filepath.Join(dir, "ns/net"))
			environ, _ := os.ReadFile(filepath.Join(dir, "environ"))
			if m.netns[ns] || slices.Contains(strings.Split(string(environ), "\x00"), "REDOUBT_CONTEXT="+admin) {
				left = append(left, pid)
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("commands of the fleet do not die: processes %v", left)
		}
	}
}

// marks is how the things of a fleet are told from all others on the host.
type marks struct {
	dir    string
	nodes  []string
	netns  map[string]bool // as /proc/PID/ns/net reads
	runs   []string        // run directories of the fleet's containerds
	groups []string        // control groups of the nodes
}

func (f *Fleet) marks(plan topology.Plan) marks {
	m := marks{dir: f.cfg.Dir, nodes: plan.Nodes(), netns: map[string]bool{}}
	for _, n := range plan.Namespaces() {
		if info, err := os.Stat("/run/netns/" + n); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok && !sameAsHost(st.Ino) {
				m.netns[fmt.Sprintf("net:[%d]", st.Ino)] = true
			}
		}
	}
	// A containerd's run directory says whose it is: "NODE DIR".
	owners, _ := filepath.Glob(runRoot + "/*/owner")
	for _, o := range owners {
		if text, err := os.ReadFile(o); err == nil {
			if _, dir, ok := strings.Cut(strings.TrimSpace(string(text)), " "); ok && within(dir, m.dir) {
				m.runs = append(m.runs, filepath.Dir(o))
			}
		}
	}
	mounts, _ := filepath.Glob(groupRoot + "/*")
	for _, mount := range append(mounts, groupRoot) {
		for _, n := range m.nodes {
			if g := filepath.Join(mount, "redoubt", n); exists(g) {
				m.groups = append(m.groups, g)
			}
		}
	}
	return m
}

// sameAsHost guards against a name whose mount is gone, or that an earlier
// crash bound to the host's own namespace.
func sameAsHost(ino uint64) bool {
	own, err := os.Readlink("/proc/1/ns/net")
	return err == nil && own == fmt.Sprintf("net:[%d]", ino)
}

func exists(path string) bool { _, err := os.Lstat(path); return err == nil }

func within(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

// processes lists what bears a mark, but for this process.
func (m marks) processes() map[int]string {
	out := map[int]string{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() || pid == os.Getppid() {
			continue
		}
		if _, err := StartTime(pid); err != nil {
			continue
		}
		dir := filepath.Join("/proc", e.Name())
		line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		words := strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
		if m.bears(dir, words) {
			out[pid] = strings.Join(words, " ")
		}
	}
	return out
}

func (m marks) bears(dir string, words []string) bool {
	if ns, err := os.Readlink(filepath.Join(dir, "ns/net")); err == nil && m.netns[ns] {
		return true
	}
	groups, _ := os.ReadFile(filepath.Join(dir, "cgroup"))
	for _, n := range m.nodes {
		for _, line := range strings.Split(string(groups), "\n") {
			if _, g, ok := strings.Cut(line, "/redoubt/"); ok && within(g, n) {
				return true
			}
		}
	}
	exe, _ := os.Readlink(filepath.Join(dir, "exe"))
	if within(exe, m.dir) {
		return true
	}
	for _, w := range words {
		for _, run := range m.runs {
			if strings.Contains(w, run+"/") {
				return true
			}
		}
	}
	return false
}

// force ends and removes all that bears a mark, and says what that was.
func (m marks) force() (forced []string, err error) {
	var errs []error
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		left := m.processes()
		if len(left) == 0 {
			break
		}
		if time.Now().After(deadline) {
			errs = append(errs, fmt.Errorf("processes do not die: %v", left))
			break
		}
		for pid, words := range left {
			if f := "process " + words; !slices.Contains(forced, f) {
				forced = append(forced, f)
			}
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	points, err := mountsBelow(append(slices.Clone(m.runs), m.dir)...)
	errs = append(errs, err)
	for _, p := range points {
		forced = append(forced, "mount "+p)
		if err := unix.Unmount(p, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", p, err))
		}
	}
	for _, g := range m.groups {
		if !exists(g) {
			continue
		}
		forced = append(forced, "control group "+g)
		errs = append(errs, removeGroup(g))
	}
	for _, g := range m.groups {
		_ = os.Remove(filepath.Dir(g)) // only when it is the last node's
	}
	for _, run := range m.runs {
		if exists(run) {
			forced = append(forced, "folder "+run)
			errs = append(errs, os.RemoveAll(run))
		}
	}
	// The claim of an agent that was killed says whose it was: "PID DIR".
	claims, _ := filepath.Glob(runRoot + "/*.lock")
	for _, c := range claims {
		if text, err := os.ReadFile(c); err == nil {
			if _, dir, ok := strings.Cut(strings.TrimSpace(string(text)), " "); ok && within(dir, m.dir) {
				errs = append(errs, os.Remove(c))
			}
		}
	}
	_ = os.Remove(runRoot) // only when it is empty
	return forced, errors.Join(errs...)
}

// mountsBelow lists mount points at or below the directories, the deepest
// first.
func mountsBelow(dirs ...string) ([]string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var out []string
	for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan(); {
		if f := strings.Fields(s.Text()); len(f) > 4 {
			p := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(f[4])
			if slices.ContainsFunc(dirs, func(d string) bool { return within(p, d) }) {
				out = append(out, p)
			}
		}
	}
	slices.Reverse(out)
	return out, nil
}

// removeGroup removes a control group with those below it. A group stays busy
// until its last process is reaped.
func removeGroup(g string) error {
	var dirs []string
	_ = filepath.WalkDir(g, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	var err error
	for range 100 {
		err = nil
		for _, d := range slices.Backward(dirs) {
			if e := os.Remove(d); e != nil && !errors.Is(e, fs.ErrNotExist) {
				err = e
			}
		}
		if err == nil {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return err
}
