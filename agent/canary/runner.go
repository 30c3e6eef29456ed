package canary

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/isolation"
	"redoubt.dev/redoubt/isolation/probe"
	"redoubt.dev/redoubt/isolation/surface"
)

// Launcher starts canaries through the path that workloads take.
type Launcher interface {
	// Launch starts the canary's image under the runtime and returns when the
	// task runs. If it fails it leaves nothing behind.
	Launch(ctx context.Context, id string, runtime isolation.Name, variant string, args []string) (Task, error)
}

// Task is a canary that was started.
type Task interface {
	// Pid is the host pid of the boundary process: the container's init for
	// runc, the sentry for gVisor.
	Pid() int
	// Output gives what the canary wrote to standard output once that holds a
	// whole line, or fails when ctx ends or the canary does.
	Output(ctx context.Context) ([]byte, error)
	// Kill ends the canary and removes all that it left. It may be repeated.
	Kill(ctx context.Context) error
}

// Bounds on one canary. A healthy one answers within a second; the bounds are
// those of a small box that is busy.
const (
	launchWait  = 30 * time.Second
	answerWait  = 15 * time.Second
	measureWait = 10 * time.Second
	killWait    = 20 * time.Second
	// canaryStay is how long a canary stays by itself if its agent dies.
	canaryStay = 60
)

// Runner implements probe.Runner.
type Runner struct {
	launcher Launcher
	log      *slog.Logger
	turn     chan struct{} // holds one token: the canary that may run
	meter    func(runtime isolation.Name, outcome string, took time.Duration)

	mu      sync.Mutex
	proven  map[key]time.Duration // boot clock of the last success
	kernels map[key]string        // the release that the canary read there then
}

type key struct {
	runtime isolation.Name
	variant string
}

// NewRunner makes a runner. It starts nothing.
func NewRunner(l Launcher, log *slog.Logger) *Runner {
	return &Runner{launcher: l, log: log, turn: make(chan struct{}, 1), proven: map[key]time.Duration{}, kernels: map[key]string{}}
}

// What a canary found, for figures.
const (
	Proven   = "proven"   // what the runtime's class promises
	Refuted  = "refuted"  // less than that
	Silent   = "silent"   // nothing: it said nothing in time, or containerd was away
	Unproven = "unproven" // nothing: it does not start or answer
)

// Meter has f told what each canary found. To be called before the first.
func (r *Runner) Meter(f func(runtime isolation.Name, outcome string, took time.Duration)) {
	r.meter = f
}

func outcomeOf(ok bool, err error) string {
	switch {
	case ok:
		return Proven
	case errors.Is(err, probe.ErrNoAnswer):
		return Silent
	case err != nil:
		return Unproven
	}
	return Refuted
}

// Age is how long ago the runtime was last proven here, by the boot clock; ok
// is false if it was not since this process started, or the last try failed.
func (r *Runner) Age(runtime isolation.Name, variant string) (age time.Duration, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at, ok := r.proven[key{runtime, variant}]
	return max(0, probe.BootTime()-at), ok
}

// Kernel is the release of the kernel that the canary met when the runtime was
// proven last; "" if it is not proven. A runtime with a kernel of its own may
// say what it likes there, so it is for people to read.
func (r *Runner) Kernel(runtime isolation.Name, variant string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.kernels[key{runtime, variant}]
}

// readable is text of another kernel, fit for a terminal.
func readable(text string) string {
	text = strings.Map(func(c rune) rune {
		if c <= ' ' || c > '~' {
			return '?'
		}
		return c
	}, text)
	return text[:min(len(text), 64)]
}

// RunCanary implements probe.Runner.
func (r *Runner) RunCanary(ctx context.Context, c probe.Candidate) (probe.Observation, error) {
	select {
	case r.turn <- struct{}{}:
		defer func() { <-r.turn }()
	case <-ctx.Done():
		return probe.Observation{}, fmt.Errorf("canary for %s: %w: another one is running: %w", c, probe.ErrNoAnswer, ctx.Err())
	}
	began := time.Now()
	out, err := r.observe(ctx, c)
	ok := err == nil && out.Class >= c.Class
	r.mu.Lock()
	if ok {
		r.proven[key{c.Runtime, c.Variant}] = out.At
	} else {
		delete(r.proven, key{c.Runtime, c.Variant})
		delete(r.kernels, key{c.Runtime, c.Variant})
	}
	r.mu.Unlock()
	if r.meter != nil {
		r.meter(c.Runtime, outcomeOf(ok, err), time.Since(began))
	}
	level, outcome := slog.LevelInfo, "as promised"
	if err != nil {
		level, outcome = slog.LevelWarn, err.Error()
	} else if !ok {
		level, outcome = slog.LevelWarn, out.Reason
	}
	r.log.Log(ctx, level, "canary", "runtime", c.Runtime, "variant", c.Variant, "outcome", outcome,
		"syscalls", out.Terms.Surface.Syscalls, "took", time.Since(began).Round(time.Millisecond))
	return out, err
}

// observe starts one canary, looks at both sides and removes it.
func (r *Runner) observe(ctx context.Context, c probe.Candidate) (out probe.Observation, err error) {
	e := evidence{candidate: c}
	if e.nonce, err = newNonce(); err != nil {
		return out, err
	}
	if e.host, err = hostKernel(); err != nil {
		return out, err
	}
	if e.hostNamespaces, err = surface.Namespaces(os.Getpid()); err != nil {
		return out, err
	}
	id := "canary-" + string(c.Runtime) + "-" + e.nonce[:12]
	launching, cancel := context.WithTimeout(ctx, launchWait)
	defer cancel()
	task, err := r.launcher.Launch(launching, id, c.Runtime, c.Variant, []string{e.nonce, strconv.Itoa(canaryStay)})
	if err != nil {
		return out, silent(launching, "start", err)
	}
	defer func() {
		// Also when ctx is over: a canary is never left behind for that.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killWait)
		defer cancel()
		if kerr := task.Kill(ctx); kerr != nil {
			r.log.WarnContext(ctx, "canary not removed", "instance", id, "runtime", c.Runtime, "error", kerr)
		}
	}()
	answering, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	text, err := task.Output(answering)
	if err != nil {
		return out, silent(answering, "answer", err)
	}
	if e.sight, err = parse(text); err != nil {
		return out, err
	}
	at := probe.BootTime()
	measuring, cancel := context.WithTimeout(ctx, measureWait)
	defer cancel()
	if e.boundary, err = look(measuring, task.Pid()); err != nil {
		return out, silent(measuring, "let itself be measured", err)
	}
	if c.Class > isolation.ClassContainer {
		e.onHost, _ = onHost(e.nonce)
	}
	out = judge(e)
	out.At = at
	if out.Class >= c.Class {
		r.mu.Lock()
		r.kernels[key{c.Runtime, c.Variant}] = readable(e.sight.Release)
		r.mu.Unlock()
	}
	return out, nil
}

// silent tells a runtime that failed from one that said nothing in time. Where
// containerd went away meanwhile, nothing was learnt of the runtime either: that
// must not make it unusable until the next round of proofs.
func silent(ctx context.Context, doing string, err error) error {
	if errors.Is(err, driver.ErrUnavailable) {
		return fmt.Errorf("%w: it did not %s: %w", probe.ErrNoAnswer, doing, err)
	}
	if ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w: it did not %s in time: %w", probe.ErrNoAnswer, doing, err)
	}
	return fmt.Errorf("it does not %s: %w", doing, err)
}

func newNonce() (string, error) {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", fmt.Errorf("make a nonce: %w", err)
	}
	return hex.EncodeToString(b[:]), nil
}
