// Package fake is a driver.Driver in memory, for tests of what stands on one
// and for an agent that is told so explicitly (--driver=fake). It passes the
// conformance suite; programs in it are a few words of shell (see process).
//
// A Host is one kernel; each Driver made from it is a node. A Driver made
// again for the same node is the same node after an agent restart. All methods
// are safe for concurrent use. Goroutines run only for programs that were
// started; Host.Close ends them and waits.
//
// Locks: Host.mu guards everything and is never held while a program or a
// caller's function runs.
package fake

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/agent/image"
	"redoubt.dev/redoubt/isolation"
)

// Host is a kernel with containers. The zero value is ready for use.
type Host struct {
	mu    sync.Mutex
	nodes map[string]*node
	pid   int
	wg    sync.WaitGroup
}

type node struct {
	down       bool
	images     map[string]string
	containers map[driver.ID]*container
	changed    chan struct{}
	starts     map[driver.ID]int
}

type container struct {
	driver.Container
	spec   driver.Spec
	proc   *process
	log    *os.File
	done   chan struct{} // closed when it has exited
	silent bool          // its shim does not answer
	stuck  bool          // its boundary is stopped
}

// Driver is one node's view of a Host.
type Driver struct {
	host *Host
	n    *node
	// Runtimes that there are; NewDriver sets runc and gvisor.
	Runtimes []isolation.Name
	// OnEnsureImage, if set before use, decides about images: an error is what
	// EnsureImage returns.
	OnEnsureImage func(ref string) error
	// OnStart, if set before use, is called before a container is made; an
	// error is what Start returns.
	OnStart func(driver.Spec) error
}

var _ driver.Driver = (*Driver)(nil)

// New is the driver of the only node of a Host of its own.
func New() *Driver { return new(Host).NewDriver("node") }

// NewDriver returns the driver of a node, made new or met again.
func (h *Host) NewDriver(name string) *Driver {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.nodes == nil {
		h.nodes = map[string]*node{}
		// Above every pid that Linux can give, so that no test takes a real
		// process for one of these.
		h.pid = 5_000_000
	}
	if h.nodes[name] == nil {
		h.nodes[name] = &node{
			images: map[string]string{}, containers: map[driver.ID]*container{},
			changed: make(chan struct{}, 1), starts: map[driver.ID]int{},
		}
	}
	return &Driver{host: h, n: h.nodes[name], Runtimes: []isolation.Name{"runc", "gvisor"}}
}

// Close kills every program and waits for them.
func (h *Host) Close() {
	h.mu.Lock()
	for _, n := range h.nodes {
		for _, c := range n.containers {
			c.proc.kill()
		}
	}
	h.mu.Unlock()
	h.wg.Wait()
}

// Close ends the whole Host.
func (d *Driver) Close() { d.host.Close() }

// SetDown makes every call fail as with a runtime that is away; programs go
// on.
func (d *Driver) SetDown(down bool) {
	d.host.mu.Lock()
	d.n.down = down
	d.host.mu.Unlock()
	d.notify()
}

// Starts tells how often a container of id really was started, which must
// never be while another of its id lived.
func (d *Driver) Starts(id driver.ID) int {
	d.host.mu.Lock()
	defer d.host.mu.Unlock()
	return d.n.starts[id]
}

// Kill ends a container as the host's kernel would: nobody asked.
func (d *Driver) Kill(id driver.ID) {
	if c := d.get(id); c != nil {
		c.proc.kill()
		<-c.done
	}
}

// KillShim ends a container with its shim: its code is lost.
func (d *Driver) KillShim(id driver.ID) {
	c := d.get(id)
	if c == nil {
		return
	}
	c.proc.kill()
	<-c.done
	d.host.mu.Lock()
	c.Exit = &driver.Exit{Code: 255, At: time.Now(), Lost: true, Reason: "its shim died"}
	d.host.mu.Unlock()
	d.notify()
}

// Silence makes the shim of a container answer no more.
func (d *Driver) Silence(id driver.ID) { d.mark(id, func(c *container) { c.silent = true }) }

// Stick stops the boundary of a container as SIGSTOP does.
func (d *Driver) Stick(id driver.ID) {
	d.mark(id, func(c *container) { c.stuck = true; c.proc.pause() })
}

// Lose makes the runtime forget a container that lives on.
func (d *Driver) Lose(id driver.ID) { d.mark(id, func(c *container) { c.Orphan = true }) }

func (d *Driver) mark(id driver.ID, f func(*container)) {
	d.host.mu.Lock()
	if c := d.n.containers[id]; c != nil {
		f(c)
	}
	d.host.mu.Unlock()
	d.notify()
}

func (d *Driver) get(id driver.ID) *container {
	d.host.mu.Lock()
	defer d.host.mu.Unlock()
	return d.n.containers[id]
}

func (d *Driver) notify() {
	select {
	case d.n.changed <- struct{}{}:
	default:
	}
}

// Changed implements driver.Driver.
func (d *Driver) Changed() <-chan struct{} { return d.n.changed }

// up fails when the runtime is away or ctx has ended.
func (d *Driver) up(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	d.host.mu.Lock()
	defer d.host.mu.Unlock()
	if d.n.down {
		return driver.ErrUnavailable
	}
	return nil
}

func wrap(op string, id driver.ID, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s container %s: %w", op, id, err)
}

// EnsureImage implements driver.Driver: every image is there, unless
// OnEnsureImage says otherwise.
func (d *Driver) EnsureImage(ctx context.Context, ref, policy string, progress driver.Progress) (string, error) {
	if err := d.up(ctx); err != nil {
		return "", err
	}
	r, err := image.Parse(ref)
	if err != nil {
		return "", fmt.Errorf("%w: %w", driver.ErrImage, err)
	}
	if d.OnEnsureImage != nil {
		if err := d.OnEnsureImage(ref); err != nil {
			return "", err
		}
	}
	if progress != nil {
		progress("unpack", 1, 1)
	}
	d.host.mu.Lock()
	defer d.host.mu.Unlock()
	d.n.images[r.Name] = string(digest.FromString(r.Name))
	return d.n.images[r.Name], nil
}

func (d *Driver) check(s driver.Spec) error {
	id := string(s.ID)
	if id == "" || len(id) > 60 || strings.Trim(id, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" ||
		strings.Trim(id, "-") != id || strings.Contains(id, "detach") {
		return fmt.Errorf("container id %q: 1 to 60 of a-z, 0-9 and dash, without \"detach\"", id)
	}
	if !slices.Contains(d.Runtimes, s.Runtime) {
		return fmt.Errorf("runtime %q: %w", s.Runtime, driver.ErrRuntime)
	}
	if s.Limits.CPUMillis < 0 || s.Limits.Memory < 0 || s.Limits.Pids < 0 {
		return errors.New("limits: none may be negative")
	}
	r, err := image.Parse(s.Image)
	if err != nil {
		return fmt.Errorf("%w: %w", driver.ErrImage, err)
	}
	if d.n.images[r.Name] == "" {
		return fmt.Errorf("%s is not on this node: %w", r.Name, driver.ErrImage)
	}
	return nil
}

// Start implements driver.Driver.
func (d *Driver) Start(ctx context.Context, s driver.Spec) (driver.Container, error) {
	if err := d.up(ctx); err != nil {
		return driver.Container{}, wrap("start", s.ID, err)
	}
	if d.OnStart != nil {
		if err := d.OnStart(s); err != nil {
			return driver.Container{}, wrap("start", s.ID, err)
		}
	}
	d.host.mu.Lock()
	defer d.host.mu.Unlock()
	if err := d.check(s); err != nil {
		return driver.Container{}, wrap("start", s.ID, err)
	}
	if old := d.n.containers[s.ID]; old != nil {
		running := old.Exit == nil && !old.Orphan
		switch {
		case old.silent && old.Exit == nil:
			return driver.Container{}, wrap("start", s.ID, fmt.Errorf("its shim does not answer: %w", driver.ErrUnavailable))
		case running && !same(old.spec, s):
			return driver.Container{}, wrap("start", s.ID, driver.ErrConflict)
		case running:
			return old.copy(), nil
		}
		old.proc.kill() // an orphan; a program that has ended does not mind
	}
	c, err := d.make(s)
	if err != nil {
		return driver.Container{}, wrap("start", s.ID, err)
	}
	d.n.containers[s.ID] = c
	d.n.starts[s.ID]++
	d.host.wg.Go(func() { d.live(c) })
	d.notify()
	return c.copy(), nil
}

func (d *Driver) make(s driver.Spec) (*container, error) {
	d.host.pid++
	c := &container{spec: s, done: make(chan struct{})}
	c.Container = driver.Container{
		ID: s.ID, Labels: maps.Clone(s.Labels), Runtime: s.Runtime, Variant: s.Variant,
		State: driver.StateRunning, Pid: d.host.pid, StartedAt: time.Now().Round(0),
	}
	out := io.Discard
	if s.LogPath != "" {
		f, err := os.OpenFile(s.LogPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return nil, err
		}
		c.log, out = f, f
	}
	c.proc = newProcess(nil, out, out)
	c.proc.init, c.proc.memory = true, s.Limits.Memory
	return c, nil
}

// live runs c to its end.
func (d *Driver) live(c *container) {
	code, oom := c.proc.run(slices.Concat(c.spec.Command, c.spec.Args))
	if c.log != nil {
		c.log.Close()
	}
	e := driver.Exit{Code: code, At: time.Now(), OOM: oom}
	switch {
	case oom:
		e.Reason = fmt.Sprintf("memory limit of %d MiB reached", c.spec.Limits.Memory>>20)
	case code > 128:
		e.Reason = fmt.Sprintf("ended by signal %d", code-128)
	}
	d.host.mu.Lock()
	c.Exit, c.State, c.Pid, c.Orphan = &e, driver.StateExited, 0, false
	d.host.mu.Unlock()
	close(c.done)
	d.notify()
}

// same compares specs; empty and absent lists are the same.
func same(a, b driver.Spec) bool {
	flat := func(s driver.Spec) driver.Spec {
		v := reflect.ValueOf(&s).Elem()
		for i := range v.NumField() {
			if f := v.Field(i); (f.Kind() == reflect.Slice || f.Kind() == reflect.Map) && f.Len() == 0 {
				f.SetZero()
			}
		}
		return s
	}
	return reflect.DeepEqual(flat(a), flat(b))
}

func (c *container) copy() driver.Container {
	out := c.Container
	out.Labels = maps.Clone(out.Labels)
	if out.Labels == nil {
		out.Labels = map[string]string{}
	}
	if c.silent && c.Exit == nil {
		out.State = driver.StateUnknown
	}
	if out.Exit != nil {
		e := *out.Exit
		out.Exit = &e
	}
	return out
}

// List implements driver.Driver.
func (d *Driver) List(ctx context.Context) ([]driver.Container, error) {
	if err := d.up(ctx); err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	d.host.mu.Lock()
	defer d.host.mu.Unlock()
	var out []driver.Container
	for _, id := range slices.Sorted(maps.Keys(d.n.containers)) {
		out = append(out, d.n.containers[id].copy())
	}
	return out, nil
}
