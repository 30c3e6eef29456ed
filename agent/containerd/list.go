package containerd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/api/types/task"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"

	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/isolation"
)

// List implements driver.Driver. It asks about each container by itself: one
// shim that does not answer must not hide the others.
func (d *Driver) List(ctx context.Context) ([]driver.Container, error) {
	ask, cancel := d.bound(ctx, askFor)
	defer cancel()
	records, err := d.client.Containers(ask)
	if err != nil {
		return nil, fmt.Errorf("list containers: %w: %w", driver.ErrUnavailable, err)
	}
	out := make([]driver.Container, len(records))
	var wg sync.WaitGroup
	slots := make(chan struct{}, 8)
	for i, c := range records {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			out[i] = d.describe(ctx, c)
		})
	}
	wg.Wait()
	out = slices.DeleteFunc(out, func(c driver.Container) bool { return c.ID == "" })
	out = d.withOrphans(out)
	slices.SortFunc(out, func(a, b driver.Container) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return out, nil
}

// describe tells what c is; the zero value if it has gone meanwhile.
func (d *Driver) describe(ctx context.Context, c containerd.Container) driver.Container {
	f := &found{Container: c, id: driver.ID(c.ID())}
	if err := d.look(ctx, f); err != nil {
		if errdefs.IsNotFound(err) {
			return driver.Container{}
		}
		f.silent = true
	}
	if err := d.settle(ctx, f); errdefs.IsNotFound(err) {
		return driver.Container{}
	}
	return d.container(f)
}

// container is f as the caller sees it.
func (d *Driver) container(f *found) driver.Container {
	out := driver.Container{ID: f.id, Labels: map[string]string{}}
	out.Runtime, out.Variant = f.runtime()
	for k, v := range f.labels {
		if !strings.HasPrefix(k, labelPrefix) {
			out.Labels[k] = v
		}
	}
	start := f.started()
	out.StartedAt = start.At
	switch {
	case f.exit() != nil:
		out.State, out.Exit = driver.StateExited, f.exit()
	case f.silent:
		out.State = driver.StateUnknown
	case f.task == nil:
		out.State = driver.StateCreated
	default:
		switch f.task.Status {
		case task.Status_RUNNING:
			out.State = driver.StateRunning
		case task.Status_PAUSED, task.Status_PAUSING:
			out.State = driver.StatePaused
		case task.Status_CREATED:
			out.State = driver.StateCreated
		default:
			out.State = driver.StateUnknown
		}
	}
	if out.State == driver.StateRunning || out.State == driver.StatePaused {
		out.Pid = int(f.task.Pid)
		if start.Pid != out.Pid {
			// Started by an agent that died before it could note so.
			if p, err := findProcess(out.Pid); err == nil {
				out.StartedAt = p.started()
			}
		}
	}
	if out.State == driver.StateCreated || out.State == driver.StateExited && start.Pid == 0 {
		out.StartedAt = time.Time{}
	}
	return out
}

// settle records the exit of f if it has exited and nobody has recorded it. A
// recorded exit never changes.
func (d *Driver) settle(ctx context.Context, f *found) error {
	if f.exit() != nil || f.silent {
		return nil
	}
	var e driver.Exit
	switch {
	case f.task != nil && f.task.Status == task.Status_STOPPED:
		e = d.exitOf(f, int(f.task.ExitStatus), f.task.ExitedAt.AsTime())
	case f.task == nil && f.labels[labelStarted] != "" && !d.busy.isHeld(f.id):
		if d.lives(f) {
			return nil // an orphan; see withOrphans
		}
		e = driver.Exit{Code: 255, At: time.Now().UTC(), Lost: true, Reason: "its shim died, and with it the container and its exit code"}
		if f.started().Boot != bootID() {
			e.Reason = "the host was restarted while it ran"
		}
	default:
		return nil
	}
	if err := d.label(ctx, f, labelExit, e); err != nil {
		return err
	}
	d.log.Info("container exited", "instance", string(f.id), "code", e.Code, "lost", e.Lost, "oom", e.OOM, "reason", e.Reason)
	return nil
}

// exitOf says why it ended, from the code and what the control group counted.
func (d *Driver) exitOf(f *found, code int, at time.Time) driver.Exit {
	e := driver.Exit{Code: code, At: at}
	group := d.sweep.group(string(f.id))
	name, variant := f.runtime()
	switch {
	case code != 0 && d.sweep.cg.oomKills(group) > 0:
		e.OOM = true
		limit, _ := strconv.ParseInt(f.labels[labelMemory], 10, 64)
		var own int64
		if r, err := d.cfg.runtimeOf(name, variant); err == nil {
			own = r.Overhead
		}
		e.Reason = memoryReason(limit, own, name == "gvisor")
	case code != 0 && name == "gvisor" && d.sweep.cg.pidsRefused(group) > 0:
		e.Reason = "the sandbox ended: the host's bound on its processes and threads was reached, which no sandbox survives; raise limits.pids"
	case code > 128 && code <= 128+64:
		e.Reason = signalReason(code - 128)
	}
	return e
}

// memoryReason says what limit was reached and what is not counted in it.
func memoryReason(limit, own int64, sandbox bool) string {
	s := "memory limit reached"
	if limit > 0 {
		s = fmt.Sprintf("memory limit of %d MiB reached", limit/mebi)
	}
	if own > 0 {
		s += fmt.Sprintf(", the sandbox's own %d MiB not counted", own/mebi)
	}
	if sandbox {
		s += "; that ends the whole sandbox, whichever process used the memory"
	}
	return s
}

// signalReason names a signal, and what sends it where nobody meant to.
func signalReason(n int) string {
	s := "ended by signal " + signalName(n)
	switch syscall.Signal(n) {
	case syscall.SIGSEGV, syscall.SIGBUS:
		s += ": it touched memory that it does not have"
	case syscall.SIGABRT:
		s += ": it gave up by itself"
	case syscall.SIGILL:
		s += ": this processor does not know an instruction of it"
	case syscall.SIGFPE:
		s += ": a division that cannot be done"
	case syscall.SIGSYS:
		s += ": it made a system call that its seccomp profile ends it for"
	}
	return s
}

// lives tells whether processes of f are there although containerd knows of
// none.
func (d *Driver) lives(f *found) bool {
	return len(d.sweep.cg.pids(d.sweep.group(string(f.id)))) > 0
}

// withOrphans adds, or marks, what lives and is lost to the daemon.
func (d *Driver) withOrphans(list []driver.Container) []driver.Container {
	for _, name := range d.sweep.cg.children(d.cfg.cgroupParent()) {
		id := driver.ID(name)
		if d.busy.isHeld(id) {
			continue // half made or half deleted
		}
		i := slices.IndexFunc(list, func(c driver.Container) bool { return c.ID == id })
		// What the daemon still holds a bundle of is no orphan, and what has just
		// exited may leave its last processes behind for a moment.
		if i >= 0 && (list[i].State == driver.StateUnknown || d.hasTask(id)) {
			continue
		}
		pids := d.sweep.cg.pids(d.sweep.group(name))
		if len(pids) == 0 {
			continue
		}
		if i < 0 {
			list = append(list, driver.Container{ID: id, Labels: map[string]string{}})
			i = len(list) - 1
		}
		c := &list[i]
		c.Orphan, c.State, c.Exit, c.Pid = true, driver.StateRunning, nil, pids[0]
		for _, pid := range pids {
			if args := cmdline(pid); len(args) > 0 && filepath.Base(args[0]) == "runsc-sandbox" {
				c.Pid = pid
				if c.Runtime == "" {
					c.Runtime = isolation.Name("gvisor")
				}
			}
		}
		if p, err := findProcess(c.Pid); err == nil {
			c.StartedAt = p.started()
		}
	}
	return list
}

// hasTask tells whether a bundle is there: the daemon still holds the task.
func (d *Driver) hasTask(id driver.ID) bool {
	_, err := os.Stat(filepath.Join(d.cfg.bundle(string(id)), "config.json"))
	return err == nil
}
