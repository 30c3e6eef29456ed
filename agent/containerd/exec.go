package containerd

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"redoubt.dev/redoubt/agent/driver"
)

// Exec implements driver.Driver. When ctx ends first, the process inside is
// killed. A Stdin that never ends is read from until its next byte after the
// process has ended; whoever hands in a network stream closes it.
func (d *Driver) Exec(ctx context.Context, id driver.ID, s driver.ExecSpec, streams driver.Streams) (int, error) {
	f, err := d.running(ctx, id)
	if err != nil {
		return 0, wrap("exec in", id, err)
	}
	if f.exit() != nil {
		return 0, wrap("exec in", id, driver.ErrNotRunning)
	}
	code, err := d.exec(ctx, f, s, streams)
	return code, wrap("exec in", id, err)
}

func (d *Driver) exec(ctx context.Context, f *found, s driver.ExecSpec, streams driver.Streams) (int, error) {
	spec, err := d.execProcess(ctx, f, s)
	if err != nil {
		return 0, err
	}
	// A start that is cut short may begin all the same, unseen: it is always
	// seen through, and what nobody waits for any more is killed then.
	call, cancel := d.detached(ctx, startTask)
	defer cancel()
	t, err := f.Task(call, nil)
	if err != nil {
		return 0, notRunning(err)
	}
	// Hexadecimal never spells "detach".
	var random [8]byte
	_, _ = rand.Read(random[:])
	execID := "e" + hex.EncodeToString(random[:])

	stdin := &watchedReader{Reader: streams.Stdin, eof: make(chan struct{})}
	ends := streams
	if streams.Stdin != nil {
		ends.Stdin = stdin
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	var p *pipes
	process, err := t.Exec(call, execID, spec, newPipes(filepath.Join(d.cfg.runDir(), "fifo"), ends, s.Terminal, &p))
	if err != nil {
		return 0, notRunning(err)
	}
	x := &execution{d: d, f: f, p: process, id: execID}
	defer x.discard(ctx)
	err = process.Start(call)
	p.Cancel()
	if err != nil {
		x.abandoned = true
		return 127, notRunning(err)
	}

	if s.Terminal && s.Width > 0 && s.Height > 0 {
		// runsc does not take the first size from the specification.
		_ = process.Resize(call, uint32(s.Width), uint32(s.Height))
	}

	// Everything that serves the process ends with it.
	served, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	if streams.Stdin != nil {
		wg.Go(func() { x.endInput(served, stdin.eof) })
	}
	wg.Go(func() { x.serve(served, streams) })
	code, err := x.wait(ctx)
	x.abandoned = err != nil
	return code, err
}

// notRunning names the loss of the container under an exec.
func notRunning(err error) error {
	if errdefs.IsNotFound(err) || strings.Contains(err.Error(), "cannot exec in a") {
		return fmt.Errorf("%w: %w", driver.ErrNotRunning, err)
	}
	return err
}

// execProcess is the container's own process with what s changes.
func (d *Driver) execProcess(ctx context.Context, f *found, s driver.ExecSpec) (*specs.Process, error) {
	if len(s.Command) == 0 {
		return nil, errors.New("no command was given")
	}
	call, cancel := d.bound(ctx, askFor)
	defer cancel()
	spec, err := f.Spec(call)
	if err != nil {
		return nil, fmt.Errorf("read its specification: %w", err)
	}
	if s.User != "" {
		info, err := f.Info(call)
		if err != nil {
			return nil, err
		}
		if err := oci.WithUser(s.User)(call, d.client, &info, spec); err != nil {
			return nil, fmt.Errorf("user %q: %w", s.User, err)
		}
	}
	p := spec.Process
	p.Args = s.Command
	if s.WorkingDir != "" {
		if !path.IsAbs(s.WorkingDir) {
			return nil, fmt.Errorf("working directory %q is not absolute", s.WorkingDir)
		}
		p.Cwd = s.WorkingDir
	}
	p.Env = environment(p.Env, s.Env, spec.Hostname)
	p.Terminal = s.Terminal
	if s.Terminal {
		if s.Width > 0 && s.Height > 0 {
			p.ConsoleSize = &specs.Box{Width: uint(s.Width), Height: uint(s.Height)}
		}
		if !hasEnv(p.Env, "TERM") {
			p.Env = append(p.Env, "TERM=xterm")
		}
	}
	return p, nil
}

func hasEnv(env []string, key string) bool {
	for _, e := range env {
		if strings.HasPrefix(e, key+"=") {
			return true
		}
	}
	return false
}

// execution is one running exec.
type execution struct {
	d  *Driver
	f  *found
	p  containerd.Process
	id string
	// abandoned: nobody waits for it any more; discard kills it.
	abandoned bool
}

// wait returns the exit code. It outlives a restart of the daemon.
func (x *execution) wait(ctx context.Context) (int, error) {
	var lost time.Time
	for {
		waiting, cancel := context.WithCancel(ctx)
		status, err := x.p.Wait(waiting)
		if err != nil {
			cancel()
			return 0, cmp.Or(ctx.Err(), err)
		}
		var st containerd.ExitStatus
		select {
		case st = <-status:
		case <-ctx.Done():
			cancel()
			return 0, ctx.Err()
		}
		cancel()
		switch err := st.Error(); {
		case err == nil:
			return int(st.ExitCode()), nil
		case errdefs.IsNotFound(err):
			return 0, fmt.Errorf("%w: it ended, and the exec with it", driver.ErrNotRunning)
		case lost.IsZero():
			lost = time.Now()
		case time.Since(lost) > 30*time.Second:
			return 0, err
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// endInput passes the end of the input on.
func (x *execution) endInput(ctx context.Context, eof <-chan struct{}) {
	select {
	case <-ctx.Done():
	case <-eof:
		call, cancel := x.d.bound(ctx, askFor)
		defer cancel()
		_ = x.p.CloseIO(call, containerd.WithStdinCloser)
	}
}

// serve passes sizes and signals on.
func (x *execution) serve(ctx context.Context, streams driver.Streams) {
	resize, signals := streams.Resize, streams.Signals
	for {
		select {
		case <-ctx.Done():
			return
		case size, ok := <-resize:
			if !ok {
				resize = nil
				continue
			}
			call, cancel := x.d.bound(ctx, askFor)
			_ = x.p.Resize(call, uint32(size[0]), uint32(size[1]))
			cancel()
		case name, ok := <-signals:
			if !ok {
				signals = nil
				continue
			}
			sig, err := parseSignal(name)
			if err != nil {
				continue
			}
			call, cancel := x.d.bound(ctx, killFor)
			if err := x.signal(call, sig); err != nil {
				x.d.log.Debug("signal to an exec failed", "instance", string(x.f.id), "signal", name, "cause", err)
			}
			cancel()
		}
	}
}

// signal reaches the process inside. What the shim would signal with a sandbox
// is only the process on the host that waits for it.
func (x *execution) signal(ctx context.Context, sig syscall.Signal) error {
	if name, _ := x.f.runtime(); name != "gvisor" {
		return x.p.Kill(ctx, sig)
	}
	file := filepath.Join(x.d.cfg.bundle(string(x.f.id)), x.id+".pid.internal")
	data, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("pid inside the sandbox: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return fmt.Errorf("pid inside the sandbox: %w", err)
	}
	root := filepath.Join(x.d.cfg.runtimeRoot(), x.d.cfg.namespace())
	cmd := exec.CommandContext(ctx, x.f.labels[labelHandler], "--root", root,
		"kill", "--pid", strconv.Itoa(pid), string(x.f.id), strconv.Itoa(int(sig)))
	cmd.WaitDelay = time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("signal pid %d inside the sandbox: %w: %s", pid, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// discard removes the exec from the shim and waits until its output is
// through. One that still runs is killed, until it has ended.
func (x *execution) discard(ctx context.Context) {
	call, cancel := x.d.detached(ctx, deleteFor)
	defer cancel()
	for i := 0; call.Err() == nil; i++ {
		if x.abandoned && i%10 == 0 {
			if err := x.signal(call, syscall.SIGKILL); err != nil {
				x.d.log.Debug("an exec that nobody waits for is not killed yet", "instance", string(x.f.id), "cause", err)
			}
		}
		_, err := x.p.Delete(call)
		if !errdefs.IsFailedPrecondition(err) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	_ = os.Remove(filepath.Join(x.d.cfg.bundle(string(x.f.id)), x.id+".pid.internal"))
	if streams := x.p.IO(); streams != nil {
		streams.Cancel()
		_ = streams.Close()
	}
}

// watchedReader tells when it has been read to its end.
type watchedReader struct {
	io.Reader
	eof  chan struct{}
	once sync.Once
}

func (r *watchedReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err != nil {
		r.once.Do(func() { close(r.eof) })
	}
	return n, err
}
