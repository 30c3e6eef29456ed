package containerd

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// sweeper removes by force what containers left on the host. It goes by marks
// that only this node's things bear: the control groups below the node's, the
// shims of our namespace on our socket, files below our run directory.
type sweeper struct {
	cfg Config
	cg  hierarchies
}

func newSweeper(cfg Config) (*sweeper, error) {
	cg, err := findHierarchies()
	if err != nil {
		return nil, fmt.Errorf("containerd: find control groups: %w", err)
	}
	return &sweeper{cfg: cfg, cg: cg}, nil
}

func (s *sweeper) group(id string) string { return s.cfg.cgroupParent() + "/" + id }

// shims lists the shim processes of id; of every container if id is empty.
func (s *sweeper) shims(id string) []process {
	var out []process
	hostProcesses(func(pid int, args []string) {
		if !strings.HasPrefix(filepath.Base(args[0]), "containerd-shim") ||
			flagValue(args, "-namespace") != s.cfg.namespace() ||
			flagValue(args, "-address") != s.cfg.address() ||
			id != "" && flagValue(args, "-id") != id {
			return
		}
		if p, err := findProcess(pid); err == nil {
			out = append(out, p)
		}
	})
	return out
}

// runtimes lists the processes of runc, runsc, the sentry and the gofer that
// work for id, by the state directory and the id in their command lines.
func (s *sweeper) runtimes(id string) []process {
	root := filepath.Join(s.cfg.runtimeRoot(), s.cfg.namespace())
	var out []process
	hostProcesses(func(pid int, args []string) {
		if flagValue(args, "--root") != root && !slices.Contains(args, "--root="+root) {
			return
		}
		if id != "" && !slices.Contains(args, id) {
			return
		}
		if p, err := findProcess(pid); err == nil {
			out = append(out, p)
		}
	})
	return out
}

// container removes every trace of id. The daemon must have let go of it.
func (s *sweeper) container(id string) error {
	var errs []error
	killAll(s.shims(id))
	group := s.group(id)
	killAll(s.runtimes(id))
	if !s.cg.kill(group, 5*time.Second) {
		errs = append(errs, fmt.Errorf("processes %v of container %s do not die", s.cg.pids(group), id))
	}
	s.runtimeState(id)
	for _, path := range []string{s.cfg.bundle(id), filepath.Join(s.cfg.Dir, "root", "io.containerd.runtime.v2.task", s.cfg.namespace(), id)} {
		// A daemon that removes one hides it first. One that dies between leaves
		// it so, and no later one looks at it.
		hidden := filepath.Join(filepath.Dir(path), "."+filepath.Base(path))
		errs = append(errs, unmountBelow(path), os.RemoveAll(path), unmountBelow(hidden), os.RemoveAll(hidden))
	}
	if err := os.Remove(s.cfg.shimSocket(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	errs = append(errs, s.removeGroup(group))
	return errors.Join(errs...)
}

// removeGroup waits a little: a group stays busy until its last process is
// reaped.
func (s *sweeper) removeGroup(group string) error {
	var err error
	for range 50 {
		if err = s.cg.remove(group); err == nil {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("control group %s: %w", group, err)
}

// runtimeState removes what runc and runsc noted about id, and the network
// namespaces that runsc keeps bound there.
func (s *sweeper) runtimeState(id string) {
	root := filepath.Join(s.cfg.runtimeRoot(), s.cfg.namespace())
	_ = unmountBelow(filepath.Join(root, id))
	_ = os.RemoveAll(filepath.Join(root, id)) // runc
	for _, pattern := range []string{id + "_sandbox:" + id + ".*", "runsc-" + id + ".sock"} {
		files, _ := filepath.Glob(filepath.Join(root, pattern))
		for _, f := range files {
			_ = unix.Unmount(f, unix.MNT_DETACH)
			_ = os.RemoveAll(f)
		}
	}
}

// all removes the traces of every container of the node.
func (s *sweeper) all() error {
	killAll(s.shims(""))
	killAll(s.runtimes(""))
	var errs []error
	for _, id := range s.known() {
		errs = append(errs, s.container(id))
	}
	errs = append(errs, s.removeGroup(s.cfg.cgroupParent()))
	for _, m := range s.cg.mounts {
		_ = os.Remove(filepath.Join(m, "redoubt")) // only when the last node's is gone
	}
	return errors.Join(errs...)
}

// known lists ids that have left anything.
func (s *sweeper) known() []string {
	ids := s.cg.children(s.cfg.cgroupParent())
	entries, _ := os.ReadDir(filepath.Dir(s.cfg.bundle("x")))
	for _, e := range entries {
		ids = append(ids, e.Name())
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

func killAll(ps []process) {
	for _, p := range ps {
		_ = p.signal(unix.SIGKILL)
	}
	for _, p := range ps {
		p.wait(5 * time.Second)
	}
}

// forceDelete asks the runtime itself to end and forget id.
func (s *sweeper) forceDelete(ctx context.Context, handler, id string) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, handler, "--root", filepath.Join(s.cfg.runtimeRoot(), s.cfg.namespace()), "delete", "--force", id)
	cmd.WaitDelay = time.Second
	_ = cmd.Run() // what it does not do, the sweep does
}

// unmountBelow detaches every mount at or below dir, the deepest first.
func unmountBelow(dir string) error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var points []string
	for sc := bufio.NewScanner(bytes.NewReader(data)); sc.Scan(); {
		if f := strings.Fields(sc.Text()); len(f) > 4 {
			p := unescape(f[4])
			if p == dir || strings.HasPrefix(p, dir+"/") {
				points = append(points, p)
			}
		}
	}
	var errs []error
	for _, p := range slices.Backward(points) {
		if err := unix.Unmount(p, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", p, err))
		}
	}
	return errors.Join(errs...)
}

// unescape undoes the kernel's \040 for blanks in mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
