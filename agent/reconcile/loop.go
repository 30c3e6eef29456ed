package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/agent/health"
	"redoubt.dev/redoubt/agent/store"
	"redoubt.dev/redoubt/proto/tracing"
)

// Ledger is what is on disk; agent/store has it.
type Ledger interface {
	Authoritative() bool
	Lease() store.Lease
	Facts() []store.Facts
	PutFacts(store.Facts) (store.Facts, error)
	DropFacts(uid string) error
	Watch() (<-chan struct{}, func())
}

// NetworkSpec is what an instance needs of the node's network.
type NetworkSpec struct {
	Hostname string
	Workload string // NAMESPACE/NAME
	Ports    []Port
	None     bool
	Rules    NetworkRules
}

// Attachment is a namespace that is ready for one start.
type Attachment struct {
	Netns, Address, ResolvConf, Hosts string
}

// ErrRefused, wrapped by a Network, says that trying again here will not help:
// the instance is rejected and can be placed elsewhere.
var ErrRefused = errors.New("refused")

// Network gives instances namespaces. Attach makes a new one every time; the
// address stays.
type Network interface {
	Attach(ctx context.Context, uid string, spec NetworkSpec) (Attachment, error)
	Detach(ctx context.Context, uid string) error
	// Attached are the uids that hold something, with their address ("" if none).
	Attached() map[string]string
	// Sweep clears away what a crash left of any uid that keep denies.
	Sweep(ctx context.Context, keep func(uid string) bool) error
}

// Health puts the probes of running instances; agent/health has it.
type Health interface {
	Set([]health.Target)
	Reports() map[string]health.Report
	Changed() <-chan struct{}
}

// Measurement is what was read off a live boundary process.
type Measurement struct {
	Terms  store.Measured
	Kernel string
}

// Deps are the parts that a Loop drives. All but Health, Measure and the two
// lists are required; without Health no probe is put.
type Deps struct {
	Driver      driver.Driver
	Network     Network
	Ledger      Ledger
	Assignments func() []Assignment // of the ledger, converted
	Proof       func() Proof
	// ProofChanged gets a value when Proof may answer differently.
	ProofChanged <-chan struct{}
	Connected    func() bool
	Now          func() store.Moment
	Health       Health
	Measure      func(ctx context.Context, c driver.Container) (Measurement, error)
	LogPath      func(uid string) string
	// LogStarts is called before each start of an instance's container, again
	// with the same attempt where a start is repeated. May be nil.
	LogStarts func(uid string, attempt uint64)
	// LogGone is called when nothing is left of an instance.
	LogGone func(uid string)
	// Recorded is called when something new is durable of an instance, from
	// several goroutines. May be nil.
	Recorded       func(before, now store.Facts)
	AllowHostPaths []string
	// Tracer makes the spans of starts; the zero one: none are made.
	Tracer tracing.Tracer
	Log    *slog.Logger
}

// Limits of time and number; zero fields take the default in brackets.
type Limits struct {
	Starts  int           // at once [4]
	List    time.Duration // [30s]
	Pull    time.Duration // of an image, whatever comes of it; the driver ends one that stands still [6h]
	Attach  time.Duration // [30s]
	Start   time.Duration // [2m]
	Delete  time.Duration // [1m]
	Measure time.Duration // [10s]
	Poll    time.Duration // look again even if nothing happened [10s]
}

func (l Limits) withDefaults() Limits {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	if l.Starts == 0 {
		l.Starts = 4
	}
	def(&l.List, 30*time.Second)
	def(&l.Pull, 6*time.Hour)
	def(&l.Attach, 30*time.Second)
	def(&l.Start, 2*time.Minute)
	def(&l.Delete, time.Minute)
	def(&l.Measure, 10*time.Second)
	def(&l.Poll, 10*time.Second)
	return l
}

// Loop drives the node. Make one with NewLoop; Run it once.
type Loop struct {
	d      Deps
	limits Limits
	starts chan struct{}
	// cleared: leftovers of earlier lives were swept since this agent started.
	cleared bool
	// busy and retries are the run goroutine's own.
	busy    map[string]*flight
	retries map[string]retry
	done    chan struct{}

	mu       sync.Mutex // held for moments only
	finished []string   // uids whose action is done, not yet taken back
}

// flight is an action being done.
type flight struct {
	kind   Kind
	cancel context.CancelFunc
	err    error // set before the uid is in finished
}

// retry keeps a failing action from being done in a tight loop.
type retry struct {
	after time.Time
	delay time.Duration
}

// NewLoop makes a loop; it starts nothing.
func NewLoop(d Deps, limits Limits) *Loop {
	limits = limits.withDefaults()
	return &Loop{
		d: d, limits: limits,
		starts: make(chan struct{}, limits.Starts),
		busy:   map[string]*flight{}, retries: map[string]retry{}, done: make(chan struct{}, 1),
	}
}

// Run reconciles until ctx ends. Containers are left as they are.
func (l *Loop) Run(ctx context.Context) error {
	changed, stop := l.d.Ledger.Watch()
	defer stop()
	var unhealthy <-chan struct{}
	if l.d.Health != nil {
		unhealthy = l.d.Health.Changed()
	}
	var workers sync.WaitGroup
	defer workers.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	var unseen time.Duration // back-off while the runtime does not answer
	for {
		wait, err := l.step(ctx, &workers)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			unseen = min(max(2*unseen, time.Second), 30*time.Second)
			wait = unseen
			l.d.Log.Warn("cannot observe this node's containers; nothing is changed meanwhile", "err", err, "again_in", wait)
		default:
			unseen = 0
		}
		timer := time.NewTimer(min(wait, l.limits.Poll))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-l.done:
		case <-changed:
		case <-l.d.Driver.Changed():
		case <-l.d.ProofChanged:
		case <-unhealthy:
		case <-timer.C:
		}
		timer.Stop()
		l.mu.Lock()
		finished := l.finished
		l.finished = nil
		l.mu.Unlock()
		for _, uid := range finished {
			l.landed(uid)
		}
	}
}

// landed takes an action back. Only the run goroutine does, and before it
// observes, so that no instance is judged by what was seen during its action.
func (l *Loop) landed(uid string) {
	f := l.busy[uid]
	delete(l.busy, uid)
	f.cancel()
	if f.err == nil || errors.Is(f.err, context.Canceled) {
		delete(l.retries, uid)
		return
	}
	r := l.retries[uid]
	r.delay = min(max(2*r.delay, time.Second), 30*time.Second)
	r.after = time.Now().Add(r.delay)
	l.retries[uid] = r
	l.d.Log.Warn("action failed", "instance", l.held(uid).Instance, "uid", uid, "action", f.kind.String(), "err", f.err, "again_in", r.delay)
}

// step observes, asks Diff, and starts what is to be done. It returns how long
// nothing needs to happen.
func (l *Loop) step(ctx context.Context, workers *sync.WaitGroup) (time.Duration, error) {
	listCtx, cancel := context.WithTimeout(ctx, l.limits.List)
	containers, err := l.d.Driver.List(listCtx)
	cancel()
	if err != nil {
		return 0, fmt.Errorf("list containers: %w", err)
	}
	desired := Desired{
		Authoritative: l.d.Ledger.Authoritative(),
		Lease:         l.d.Ledger.Lease(),
		Assignments:   l.d.Assignments(),
		Connected:     l.d.Connected(),
		Proof:         l.d.Proof(),
	}
	observed := Observed{
		Containers: containers, Networks: l.d.Network.Attached(),
		Facts: l.d.Ledger.Facts(), Now: l.d.Now(),
	}
	if desired.Authoritative && !l.cleared && len(l.busy) == 0 {
		if err := l.clear(ctx, desired, observed); err != nil {
			return 0, err
		}
		l.cleared = true
	}
	if l.d.Health != nil {
		l.d.Health.Set(Targets(desired, observed))
		observed.Health = l.d.Health.Reports()
	}
	wait := l.limits.Poll
	for _, a := range Diff(desired, observed) {
		if f := l.busy[a.UID]; f != nil {
			// An instance that must end does not wait for its image.
			if f.kind == Start && a.Urgent {
				f.cancel()
			}
			continue
		}
		if r, ok := l.retries[a.UID]; ok {
			if left := time.Until(r.after); left > 0 {
				wait = min(wait, left)
				continue
			}
		}
		l.launch(ctx, workers, a, l.find(desired, a.UID))
	}
	if next, ok := Next(desired, observed); ok {
		wait = min(wait, next)
	}
	return wait, nil
}

// clear sweeps what a crash left in the network of instances that are gone.
func (l *Loop) clear(ctx context.Context, d Desired, o Observed) error {
	keep := map[string]bool{}
	for _, a := range d.Assignments {
		keep[a.UID] = true
	}
	for _, c := range o.Containers {
		if uid, ok := InstanceUID(c.ID); ok {
			keep[uid] = true
		}
	}
	ctx, cancel := context.WithTimeout(ctx, l.limits.Delete)
	defer cancel()
	if err := l.d.Network.Sweep(ctx, func(uid string) bool { return keep[uid] }); err != nil {
		return fmt.Errorf("sweep the network's leftovers: %w", err)
	}
	return nil
}

func (l *Loop) find(d Desired, uid string) *Assignment {
	for i := range d.Assignments {
		if d.Assignments[i].UID == uid {
			return &d.Assignments[i]
		}
	}
	return nil
}

func (l *Loop) launch(ctx context.Context, workers *sync.WaitGroup, a Action, as *Assignment) {
	ctx, cancel := context.WithCancel(ctx)
	f := &flight{kind: a.Kind, cancel: cancel}
	l.busy[a.UID] = f
	workers.Go(func() {
		f.err = l.do(ctx, a, as)
		l.mu.Lock()
		l.finished = append(l.finished, a.UID)
		l.mu.Unlock()
		select {
		case l.done <- struct{}{}:
		default:
		}
	})
}
