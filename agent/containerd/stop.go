package containerd

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"time"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"golang.org/x/sys/unix"

	"redoubt.dev/redoubt/agent/driver"
)

// Stop implements driver.Driver.
func (d *Driver) Stop(ctx context.Context, id driver.ID, grace time.Duration) error {
	unlock, err := d.busy.lock(ctx, id)
	if err != nil {
		return wrap("stop", id, err)
	}
	defer unlock()
	f, err := d.load(ctx, id)
	if err != nil {
		return wrap("stop", id, err)
	}
	if d.ended(f) {
		return wrap("stop", id, d.settleLocked(ctx, f))
	}
	if grace > 0 && !f.silent && f.task != nil && f.task.Status != task.Status_CREATED {
		if f.task.Status != task.Status_RUNNING {
			_ = d.resume(ctx, id) // a frozen process gets no signal
		}
		if err := d.kill(ctx, id, syscall.SIGTERM); err == nil {
			if err := d.awaitEnd(ctx, f, grace); err != nil {
				return wrap("stop", id, err)
			}
		}
	}
	if err := d.end(ctx, f); err != nil {
		return wrap("stop", id, err)
	}
	return wrap("stop", id, d.settleLocked(ctx, f))
}

// ended tells whether nothing of f can be running.
func (d *Driver) ended(f *found) bool {
	return !f.silent && (f.task == nil && !d.lives(f) || f.task != nil && f.task.Status == task.Status_STOPPED)
}

// awaitEnd waits until f has ended or limit has passed; only ctx is an error.
func (d *Driver) awaitEnd(ctx context.Context, f *found, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	pause := 5 * time.Millisecond
	for !d.ended(f) && time.Now().Before(deadline) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(min(pause, time.Until(deadline))):
		}
		pause = min(2*pause, 100*time.Millisecond)
		if err := d.look(ctx, f); err != nil {
			return err
		}
	}
	return nil
}

// end makes f end, by stronger means each time: the runtime's kill, SIGKILL to
// the boundary process and the control group (a stopped sentry cannot answer
// the runtime), SIGKILL to the shim (the daemon then has the runtime clean up
// after it).
func (d *Driver) end(ctx context.Context, f *found) error {
	if !f.silent && f.task != nil {
		if f.task.Status == task.Status_PAUSED || f.task.Status == task.Status_PAUSING {
			_ = d.resume(ctx, f.id)
		}
		if err := d.kill(ctx, f.id, syscall.SIGKILL); err == nil || isGone(err) {
			if err := d.awaitEnd(ctx, f, killFor); err != nil || d.ended(f) {
				return err
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		d.log.Warn("the runtime does not end a container; killing its processes", "instance", string(f.id))
	}
	d.sweep.cg.kill(d.sweep.group(string(f.id)), killFor)
	if err := d.look(ctx, f); err != nil {
		return err
	}
	if err := d.awaitEnd(ctx, f, time.Second); err != nil || d.ended(f) {
		return err
	}
	if shims := d.sweep.shims(string(f.id)); len(shims) > 0 {
		d.log.Warn("the shim of a container does not answer; killing it", "instance", string(f.id))
		killAll(shims)
	}
	if err := d.awaitEnd(ctx, f, 2*killFor); err != nil {
		return err
	}
	if !d.ended(f) {
		return fmt.Errorf("it does not end: processes %v: %w", d.sweep.cg.pids(d.sweep.group(string(f.id))), driver.ErrUnavailable)
	}
	return nil
}

// settleLocked is settle for the holder of f's lock.
func (d *Driver) settleLocked(ctx context.Context, f *found) error {
	if f.exit() == nil && f.task == nil && !f.silent && f.labels[labelStarted] != "" {
		return d.label(ctx, f, labelExit, driver.Exit{
			Code: 137, At: time.Now().UTC(), Lost: true, Reason: "ended by force; its exit code went with its shim",
		})
	}
	return d.settle(ctx, f)
}

// kill signals init through the runtime.
func (d *Driver) kill(ctx context.Context, id driver.ID, sig syscall.Signal) error {
	ctx, cancel := d.bound(ctx, killFor)
	defer cancel()
	_, err := d.client.TaskService().Kill(ctx, &tasksapi.KillRequest{ContainerID: string(id), Signal: uint32(sig)})
	return errgrpc.ToNative(err)
}

func (d *Driver) resume(ctx context.Context, id driver.ID) error {
	ctx, cancel := d.bound(ctx, killFor)
	defer cancel()
	_, err := d.client.TaskService().Resume(ctx, &tasksapi.ResumeTaskRequest{ContainerID: string(id)})
	return errgrpc.ToNative(err)
}

// Delete implements driver.Driver. The log file is the caller's and stays.
func (d *Driver) Delete(ctx context.Context, id driver.ID) error {
	unlock, err := d.busy.lock(ctx, id)
	if err != nil {
		return wrap("delete", id, err)
	}
	defer unlock()
	if err := d.remove(ctx, id); err != nil {
		return wrap("delete", id, err)
	}
	d.notify()
	return nil
}

// remove ends id and removes all of it. The caller holds its lock.
func (d *Driver) remove(ctx context.Context, id driver.ID) error {
	f, err := d.load(ctx, id)
	if isGone(err) {
		// A task without a record: only what lies on the host is left.
		return d.scrub(ctx, id)
	}
	if err != nil {
		return err
	}
	if !d.ended(f) {
		if err := d.end(ctx, f); err != nil && !isGone(err) {
			return err
		}
	}
	// Even when it has no task to show: a daemon that is cleaning up after a
	// dead shim knows none and holds on to the id. It needs the record for that.
	if err := d.forget(ctx, f); err != nil {
		return err
	}
	if handler := f.labels[labelHandler]; handler != "" && d.anything(id) {
		d.sweep.forceDelete(ctx, handler, string(id))
	}
	call, cancel := d.bound(ctx, deleteFor)
	defer cancel()
	if err := f.Container.Delete(call, containerd.WithSnapshotCleanup); err != nil && !isGone(err) {
		return fmt.Errorf("delete the record: %w", err)
	}
	return d.scrub(ctx, id)
}

// forget has the daemon delete the task of f, by way of the shim's death if it
// will not.
func (d *Driver) forget(ctx context.Context, f *found) error {
	try := func() error {
		call, cancel := d.bound(ctx, deleteFor)
		defer cancel()
		_, err := d.client.TaskService().Delete(call, &tasksapi.DeleteTaskRequest{ContainerID: string(f.id)})
		if err = errgrpc.ToNative(err); isGone(err) {
			return nil
		}
		return err
	}
	err := try()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if shims := d.sweep.shims(string(f.id)); len(shims) > 0 {
		d.log.Warn("a task is not deleted; killing its shim", "instance", string(f.id), "cause", err)
		killAll(shims)
	}
	for range 50 {
		if err = try(); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	return fmt.Errorf("delete the task: %w", err)
}

// scrub removes what is left of id on the host when the daemon has let go of
// it, and its snapshot if the record died before it.
func (d *Driver) scrub(ctx context.Context, id driver.ID) error {
	if err := d.sweep.container(string(id)); err != nil {
		return err
	}
	name, err := d.snapshots(ctx)
	if err != nil {
		return err
	}
	call, cancel := d.bound(ctx, askFor)
	defer cancel()
	if err := d.client.SnapshotService(name).Remove(call, string(id)); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove its snapshot: %w", err)
	}
	return nil
}

// running loads id and insists that it runs.
func (d *Driver) running(ctx context.Context, id driver.ID) (*found, error) {
	f, err := d.load(ctx, id)
	if err != nil {
		return nil, err
	}
	switch {
	case f.silent:
		return nil, fmt.Errorf("its shim does not answer: %w", driver.ErrUnavailable)
	case f.task == nil:
		return nil, driver.ErrNotRunning
	}
	switch f.task.Status {
	case task.Status_RUNNING, task.Status_PAUSED, task.Status_PAUSING:
		return f, nil
	}
	return nil, driver.ErrNotRunning
}

// Signal implements driver.Driver.
func (d *Driver) Signal(ctx context.Context, id driver.ID, signal string) error {
	sig, err := parseSignal(signal)
	if err != nil {
		return wrap("signal", id, err)
	}
	if _, err := d.running(ctx, id); err != nil {
		return wrap("signal", id, err)
	}
	if err := d.kill(ctx, id, sig); errdefs.IsNotFound(err) {
		return wrap("signal", id, driver.ErrNotRunning)
	} else if err != nil {
		return wrap("signal", id, err)
	}
	return nil
}

// Pause implements driver.Driver. Pausing what is paused succeeds.
func (d *Driver) Pause(ctx context.Context, id driver.ID) error {
	unlock, err := d.busy.lock(ctx, id)
	if err != nil {
		return wrap("pause", id, err)
	}
	defer unlock()
	f, err := d.running(ctx, id)
	if err != nil || f.task.Status == task.Status_PAUSED {
		return wrap("pause", id, err)
	}
	call, cancel := d.bound(ctx, killFor)
	defer cancel()
	_, err = d.client.TaskService().Pause(call, &tasksapi.PauseTaskRequest{ContainerID: string(id)})
	return wrap("pause", id, errgrpc.ToNative(err))
}

// Resume implements driver.Driver. Resuming what runs succeeds.
func (d *Driver) Resume(ctx context.Context, id driver.ID) error {
	unlock, err := d.busy.lock(ctx, id)
	if err != nil {
		return wrap("resume", id, err)
	}
	defer unlock()
	f, err := d.running(ctx, id)
	if err != nil || f.task.Status == task.Status_RUNNING {
		return wrap("resume", id, err)
	}
	return wrap("resume", id, d.resume(ctx, id))
}

// Stats implements driver.Driver. It reads the control group, so that a silent
// shim does not matter.
func (d *Driver) Stats(ctx context.Context, id driver.ID) (driver.Stats, error) {
	f, err := d.load(ctx, id)
	if err != nil {
		return driver.Stats{}, wrap("measure", id, err)
	}
	if d.ended(f) || f.exit() != nil {
		return driver.Stats{}, wrap("measure", id, driver.ErrNotRunning)
	}
	u, err := d.sweep.cg.usage(d.sweep.group(string(id)))
	if err != nil {
		if isGone(err) {
			err = driver.ErrNotRunning
		}
		return driver.Stats{}, wrap("measure", id, err)
	}
	return driver.Stats{CPU: u.cpu, Memory: u.memory, Pids: u.pids}, nil
}

func parseSignal(s string) (syscall.Signal, error) {
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if sig := unix.SignalNum(name); sig != 0 {
		return sig, nil
	}
	return 0, fmt.Errorf("signal %q is not known: write it as SIGTERM", s)
}

func signalName(n int) string {
	if name := unix.SignalName(syscall.Signal(n)); name != "" {
		return name
	}
	return fmt.Sprint(n)
}
