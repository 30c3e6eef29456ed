package fleet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"redoubt.dev/redoubt/integration/net/topology"
)

// Daemon is a process that this fleet started.
type Daemon struct {
	Name  string
	Pid   int
	Start string
	done  chan struct{} // closed when it has ended and was reaped
	err   error         // set before done is closed
}

// Ended is closed when the daemon has ended.
func (d *Daemon) Ended() <-chan struct{} { return d.done }

// Start starts a daemon in its namespace, in a session of its own so that the
// terminal's signals do not reach it. Its output is appended to its log.
func (f *Fleet) Start(name string) (*Daemon, error) {
	args := f.DaemonArgs(name)
	namespace := f.cfg.Plan.Namespace(name)
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.record(name)
	*r = record{Name: name, Namespace: namespace, Args: args}
	if err := f.save(); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(f.Log(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	words := slices.Concat(f.cfg.Supervisor, []string{f.cfg.Binary}, args)
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = f.cfg.Clone, log, log
	cmd.Env = f.env()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := topology.In(namespace, cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	d := &Daemon{Name: name, Pid: cmd.Process.Pid, done: make(chan struct{})}
	go func() { // ends with the process
		d.err = cmd.Wait()
		close(d.done)
	}()
	if d.Start, err = StartTime(d.Pid); err == nil {
		r.Pid, r.Start = d.Pid, d.Start
		err = f.save()
	}
	f.running[name] = d
	return d, err
}

// record is the entry of a daemon, made if there is none. f.mu is held.
func (f *Fleet) record(name string) *record {
	for i := range f.state.Daemons {
		if f.state.Daemons[i].Name == name {
			return &f.state.Daemons[i]
		}
	}
	f.state.Daemons = append(f.state.Daemons, record{Name: name})
	return &f.state.Daemons[len(f.state.Daemons)-1]
}

// Daemon is the last process started under a name, nil if there is none.
func (f *Fleet) Daemon(name string) *Daemon {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.running[name]
}

// Fallen lists daemons that ended though nobody ended them here.
func (f *Fleet) Fallen() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for name, d := range f.running {
		select {
		case <-d.done:
			out = append(out, fmt.Sprintf("%s ended: %v", name, d.err))
		default:
		}
	}
	return out
}

// Kill ends a daemon with SIGKILL and waits for its end.
func (f *Fleet) Kill(ctx context.Context, name string) error {
	return f.end(ctx, name, syscall.SIGKILL)
}

// Stop ends a daemon in the orderly way and waits for its end.
func (f *Fleet) Stop(ctx context.Context, name string) error {
	return f.end(ctx, name, syscall.SIGTERM)
}

func (f *Fleet) end(ctx context.Context, name string, sig syscall.Signal) error {
	d := f.Daemon(name)
	if d == nil {
		return fmt.Errorf("%s was not started here", name)
	}
	if err := unix.Kill(d.Pid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal %s: %w", name, err)
	}
	select {
	case <-d.done:
		f.mu.Lock()
		delete(f.running, name)
		f.mu.Unlock()
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s (pid %d) does not end on %v: %w", name, d.Pid, sig, ctx.Err())
	}
}

// Output is what a command that ended had to say.
type Output struct {
	Stdout, Stderr string
	Code           int
	Took           time.Duration
}

// Run runs bin/redoubt with the administrator's context, in the host's own
// namespace or in the one of a server or node. Only a command that could not be
// run at all, or was interrupted, is an error.
func (f *Fleet) Run(ctx context.Context, in string, args ...string) (Output, error) {
	begun := time.Now()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, f.cfg.Binary, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = f.cfg.Clone, &stdout, &stderr
	cmd.Env = f.env()
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	// A ^C at the terminal is for the one who runs this, who ends the command.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	start := cmd.Start
	if in != "" {
		start = func() error { return topology.In(f.cfg.Plan.Namespace(in), cmd.Start) }
	}
	if err := start(); err != nil {
		return Output{}, fmt.Errorf("run %s: %w", f.Program(), err)
	}
	err := cmd.Wait()
	out := Output{Stdout: stdout.String(), Stderr: stderr.String(), Code: cmd.ProcessState.ExitCode(), Took: time.Since(begun)}
	if ctx.Err() != nil {
		return out, ctx.Err()
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return out, fmt.Errorf("run %s: %w", f.Program(), err)
	}
	return out, nil
}

// env keeps the caller's own contexts and settings out of the fleet's.
func (f *Fleet) env() []string {
	var out []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "REDOUBT_") {
			out = append(out, e)
		}
	}
	return append(out, "REDOUBT_CONTEXT="+f.File("admin.context"), "NO_COLOR=1")
}

// StartTime is when a process started, in clock ticks since boot: with its pid
// it names a process for good.
func StartTime(pid int) (string, error) {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return "", fmt.Errorf("process %d: %w", pid, err)
	}
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(f) < 20 {
		return "", fmt.Errorf("process %d: its stat reads %q", pid, stat)
	}
	if f[0] == "Z" || f[0] == "X" {
		return "", fmt.Errorf("process %d has ended: %w", pid, os.ErrNotExist)
	}
	return f[19], nil
}

// Processes are all on this host that have words, by pid.
func Processes() map[int][]string {
	out := map[int][]string{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		line, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if len(line) > 0 {
			out[pid] = strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
		}
	}
	return out
}
