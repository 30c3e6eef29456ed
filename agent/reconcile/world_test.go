package reconcile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/agent/health"
	"redoubt.dev/redoubt/agent/store"
	"redoubt.dev/redoubt/isolation"
)

var errCrash = errors.New("the agent has crashed")

// world is a node: its disk and containers outlive agents. Every call of an
// agent may be made the one at which it dies, before or after the effect.
type world struct {
	t  testing.TB
	mu sync.Mutex

	boot        string
	assignments []Assignment
	facts       map[string]store.Facts
	lease       store.Lease
	complete    bool
	containers  map[driver.ID]*driver.Container
	networks    map[string]string
	findings    []isolation.Finding
	proven      bool
	offline     bool

	pid     int
	starts  map[driver.ID]int // real starts, not idempotent ones
	calls   []string
	changed chan struct{}
	ledger  chan struct{}
	// crashAt is the number of the call at which the agent dies; 0: never.
	crashAt int
	after   bool // it dies after the call's effect
	count   int
	dead    bool
	died    chan struct{}
	// fail makes a call fail without a crash.
	fail func(call string) error
	hang func(ctx context.Context, call string)
	// late holds Start back after the container runs; where it is cut short
	// there, the container is taken away, as a failed start is.
	late func(ctx context.Context) error
	// sick is the verdict of an instance's probes on the attempt that runs.
	sick    map[string]health.Verdict
	unwell  chan struct{}
	watched []health.Target
}

func newWorld(t testing.TB) *world {
	return &world{
		t: t, boot: "boot-1", complete: true, proven: true,
		facts: map[string]store.Facts{}, containers: map[driver.ID]*driver.Container{},
		networks: map[string]string{}, starts: map[driver.ID]int{},
		findings: []isolation.Finding{
			{Runtime: "gvisor", Variant: "systrap", Class: isolation.ClassSandbox, State: isolation.StateVerified},
			{Runtime: "runc", Class: isolation.ClassContainer, State: isolation.StateVerified},
		},
		changed: make(chan struct{}, 1), ledger: make(chan struct{}, 1), died: make(chan struct{}),
		sick: map[string]health.Verdict{}, unwell: make(chan struct{}, 1),
	}
}

// call runs effect as one step of the agent.
func (w *world) call(ctx context.Context, name string, effect func() error) error {
	if w.hang != nil {
		w.hang(ctx, name)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dead {
		return errCrash
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	w.count++
	w.calls = append(w.calls, name)
	if w.count == w.crashAt && !w.after {
		w.die()
		return errCrash
	}
	if w.fail != nil {
		if err := w.fail(name); err != nil {
			return err
		}
	}
	err := effect()
	if w.count == w.crashAt {
		w.die()
		return errCrash
	}
	return err
}

func (w *world) die() { w.dead = true; close(w.died) }

func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

func (w *world) now() store.Moment {
	w.mu.Lock()
	defer w.mu.Unlock()
	return store.Moment{Boot: w.boot, At: time.Since(epoch)}
}

// The ledger.

func (w *world) Authoritative() bool { return w.complete }
func (w *world) Lease() store.Lease {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lease
}
func (w *world) Facts() []store.Facts {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.SortedFunc(maps.Values(w.facts), func(a, b store.Facts) int { return strings.Compare(a.UID, b.UID) })
}

func (w *world) PutFacts(f store.Facts) (store.Facts, error) {
	err := w.call(context.Background(), "put "+f.UID+" "+string(f.Phase), func() error {
		if f.Phase.Final() {
			if c := w.containers[ContainerID(f.UID)]; c != nil {
				w.t.Errorf("%s is %s on disk while its container is %s", f.UID, f.Phase, c.State)
			}
			if _, ok := w.networks[f.UID]; ok {
				w.t.Errorf("%s is %s on disk while it holds a network", f.UID, f.Phase)
			}
		}
		f.Sequence = w.facts[f.UID].Sequence + 1
		w.facts[f.UID] = f
		poke(w.ledger)
		return nil
	})
	return f, err
}

func (w *world) DropFacts(uid string) error {
	return w.call(context.Background(), "drop "+uid, func() error { delete(w.facts, uid); return nil })
}
func (w *world) Watch() (<-chan struct{}, func()) { return w.ledger, func() {} }

// The driver.

type fakeDriver struct {
	driver.Driver // what is not needed is nil
	*world
}

func (d fakeDriver) Changed() <-chan struct{} { return d.changed }

func (d fakeDriver) EnsureImage(ctx context.Context, ref, _ string, p driver.Progress) (string, error) {
	return "sha256:1", d.call(ctx, "image "+ref, func() error { return nil })
}

func (d fakeDriver) Start(ctx context.Context, spec driver.Spec) (driver.Container, error) {
	var out driver.Container
	err := d.call(ctx, "start "+string(spec.ID), func() error {
		uid, _ := InstanceUID(spec.ID)
		f, ok := d.facts[uid]
		if !ok || f.Phase != store.Starting || spec.Labels[LabelAttempt] != fmt.Sprint(f.Attempt) {
			d.t.Errorf("%s was started before it was stored that it would be: on disk is %+v", spec.ID, f)
		}
		if !slices.ContainsFunc(d.assignments, func(a Assignment) bool { return a.UID == uid && !a.Stop }) {
			d.t.Errorf("%s was started without an assignment", spec.ID)
		}
		if c := d.containers[spec.ID]; c != nil && c.State == driver.StateRunning {
			out = *c
			return nil
		}
		for id, c := range d.containers {
			if id != spec.ID && c.State == driver.StateRunning && c.Labels[LabelInstance] == spec.Labels[LabelInstance] {
				d.t.Errorf("%s was started while %s runs: two of %s", spec.ID, id, spec.Labels[LabelInstance])
			}
		}
		d.pid++
		d.starts[spec.ID]++
		c := &driver.Container{ID: spec.ID, Labels: spec.Labels, Runtime: spec.Runtime, Variant: spec.Variant,
			State: driver.StateRunning, Pid: d.pid, StartedAt: time.Now()}
		d.containers[spec.ID] = c
		out = *c
		poke(d.changed)
		return nil
	})
	if err == nil && d.late != nil {
		if err = d.late(ctx); err != nil {
			d.mu.Lock()
			delete(d.containers, spec.ID)
			d.mu.Unlock()
		}
	}
	return out, err
}

func (d fakeDriver) Stop(ctx context.Context, id driver.ID, _ time.Duration) error {
	return d.call(ctx, "stop "+string(id), func() error {
		c := d.containers[id]
		if c == nil {
			return driver.ErrNotFound
		}
		if c.State != driver.StateExited {
			c.State, c.Pid, c.Exit = driver.StateExited, 0, &driver.Exit{Code: 143, At: time.Now()}
			poke(d.changed)
		}
		return nil
	})
}

func (d fakeDriver) Delete(ctx context.Context, id driver.ID) error {
	return d.call(ctx, "delete "+string(id), func() error { delete(d.containers, id); poke(d.changed); return nil })
}

func (d fakeDriver) List(ctx context.Context) ([]driver.Container, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return nil, errCrash
	}
	var out []driver.Container
	for _, id := range slices.Sorted(maps.Keys(d.containers)) {
		out = append(out, *d.containers[id])
	}
	return out, nil
}

// The network.

func (w *world) Attach(ctx context.Context, uid string, spec NetworkSpec) (Attachment, error) {
	err := w.call(ctx, "attach "+uid, func() error { w.networks[uid] = "10.88.0.9"; return nil })
	return Attachment{Netns: "/ns/" + uid, Address: "10.88.0.9"}, err
}
func (w *world) Detach(ctx context.Context, uid string) error {
	return w.call(ctx, "detach "+uid, func() error { delete(w.networks, uid); return nil })
}
func (w *world) Attached() map[string]string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.networks)
}
func (w *world) Sweep(ctx context.Context, keep func(string) bool) error {
	return w.call(ctx, "sweep", func() error {
		for uid := range w.networks {
			if !keep(uid) {
				delete(w.networks, uid)
			}
		}
		return nil
	})
}

// worldHealth are probes whose answers the test gives.
type worldHealth struct{ *world }

func (h worldHealth) Set(targets []health.Target) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.watched = targets
}

func (h worldHealth) Reports() map[string]health.Report {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := map[string]health.Report{}
	for _, t := range h.watched {
		if v, ok := h.sick[t.UID]; ok {
			out[t.UID] = health.Report{Attempt: t.Attempt, Verdict: v}
		}
	}
	return out
}

func (h worldHealth) Changed() <-chan struct{} { return h.unwell }

// agent runs a loop on the world until stop or its crash.
func (w *world) agent() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	w.mu.Lock()
	w.dead, w.died = false, make(chan struct{})
	died := w.died
	w.mu.Unlock()
	l := NewLoop(Deps{
		Driver: fakeDriver{world: w}, Network: w, Ledger: w,
		Assignments: func() []Assignment {
			w.mu.Lock()
			defer w.mu.Unlock()
			return slices.Clone(w.assignments)
		},
		Proof: func() Proof {
			w.mu.Lock()
			defer w.mu.Unlock()
			return Proof{Ready: w.proven, Findings: slices.Clone(w.findings)}
		},
		Connected: func() bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return !w.offline
		},
		Health: worldHealth{w},
		Now:    w.now, LogPath: func(uid string) string { return "/log/" + uid },
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}, Limits{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = l.Run(ctx)
	}()
	go func() {
		select {
		case <-died:
			cancel()
		case <-done:
		}
	}()
	return func() { cancel(); <-done }
}

// set changes the world under its lock and wakes the agent.
func (w *world) set(f func()) {
	w.mu.Lock()
	f()
	w.mu.Unlock()
	poke(w.ledger)
	poke(w.changed)
}

func (w *world) exit(uid string, code int) {
	w.set(func() {
		c := w.containers[ContainerID(uid)]
		c.State, c.Pid, c.Exit = driver.StateExited, 0, &driver.Exit{Code: code, At: time.Now()}
	})
}

func (w *world) fact(uid string) store.Facts {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.facts[uid]
}

func (w *world) state(uid string) driver.State {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c := w.containers[ContainerID(uid)]; c != nil {
		return c.State
	}
	return driver.StateUnknown
}

func service(uid, instance string, fence uint64) Assignment {
	return Assignment{UID: uid, Namespace: "default", Workload: "web", Instance: instance, Fence: store.Fence{Index: fence},
		Runtime: "gvisor", Variant: "systrap", Class: isolation.ClassSandbox, Floor: isolation.ClassSandbox, Grace: time.Second,
		Container: driver.Spec{Image: "img"}}
}

func job(uid, instance string, r Restart, limit uint32) Assignment {
	a := service(uid, instance, 1)
	a.Job, a.Restart, a.BackoffLimit = true, r, limit
	return a
}
