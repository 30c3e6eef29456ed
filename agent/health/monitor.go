package health

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"redoubt.dev/redoubt/agent/driver"
)

// Target is a running attempt of an instance that has probes.
type Target struct {
	UID      string
	Instance string // the name that people see
	Attempt  uint64
	ID       driver.ID
	Address  string // "" if it has none
	Probes   Probes
	// Age of the attempt, by the boot clock.
	Age time.Duration
	// Before is the verdict that was last recorded for this attempt.
	Before Verdict
}

// Report is the verdict on one attempt.
type Report struct {
	Attempt uint64
	Verdict
}

// Exec runs a command inside an instance to its end; a driver does.
type Exec func(ctx context.Context, id driver.ID, spec driver.ExecSpec, streams driver.Streams) (code int, err error)

// Deps of a Monitor; all but Answers are required.
type Deps struct {
	Exec Exec
	Dial Dial
	// Answers tells whether the runtime says of the container that it runs. It is
	// asked where a command did not end in time: of a runtime that hangs no
	// command ever ends, and the instance is not to blame.
	Answers func(ctx context.Context, id driver.ID) bool
	Log     *slog.Logger
}

// Monitor runs the probes of what Set names. Make one with New; Run it once.
// Its methods may be called concurrently.
type Monitor struct {
	d       Deps
	changed chan struct{}
	poked   chan struct{}

	mu      sync.Mutex
	targets map[string]Target
	reports map[string]Report
}

// New makes a monitor that watches nothing yet; it starts nothing.
func New(d Deps) *Monitor {
	return &Monitor{
		d: d, changed: make(chan struct{}, 1), poked: make(chan struct{}, 1),
		targets: map[string]Target{}, reports: map[string]Report{},
	}
}

// Set names everything that is to be watched from now on, uids each once. An
// attempt that is watched already goes on; its next question goes to the address
// that it has now.
func (m *Monitor) Set(targets []Target) {
	m.mu.Lock()
	defer m.mu.Unlock()
	next, differs := make(map[string]Target, len(targets)), len(targets) != len(m.targets)
	for _, t := range targets {
		if old, ok := m.targets[t.UID]; ok && old.Attempt == t.Attempt {
			old.Address = t.Address
			t = old
		} else {
			differs = true
			delete(m.reports, t.UID)
		}
		next[t.UID] = t
	}
	for uid := range m.targets {
		if _, ok := next[uid]; !ok {
			delete(m.reports, uid)
			differs = true
		}
	}
	m.targets = next
	if differs {
		poke(m.poked)
	}
}

// Reports are the verdicts so far, by uid.
func (m *Monitor) Reports() map[string]Report {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make(map[string]Report, len(m.reports))
	for uid, r := range m.reports {
		out[uid] = r
	}
	return out
}

// Changed delivers a value soon after a verdict changed.
func (m *Monitor) Changed() <-chan struct{} { return m.changed }

func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// Run asks until ctx ends; no probe is under way when it returns.
func (m *Monitor) Run(ctx context.Context) error {
	type watched struct {
		attempt uint64
		cancel  context.CancelFunc
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	running := map[string]watched{}
	for {
		m.mu.Lock()
		targets := m.targets
		m.mu.Unlock()
		for uid, w := range running {
			if t, ok := targets[uid]; !ok || t.Attempt != w.attempt {
				w.cancel()
				delete(running, uid)
			}
		}
		for uid, t := range targets {
			if _, ok := running[uid]; ok {
				continue
			}
			watch, stop := context.WithCancel(ctx)
			running[uid] = watched{t.Attempt, stop}
			wg.Go(func() { m.watch(watch, t) })
		}
		select {
		case <-ctx.Done():
			return nil
		case <-m.poked:
		}
	}
}

// watch runs the probes of one attempt until ctx ends or it is found dead.
func (m *Monitor) watch(ctx context.Context, t Target) {
	now := time.Now()
	w := &attempt{state: Begin(t.Probes, now.Add(-t.Age), now, t.Before), moved: make(chan struct{}), inside: make(chan struct{}, 1)}
	var wg sync.WaitGroup
	for k := range kinds {
		if t.Probes.of(k) != nil {
			wg.Go(func() { m.repeat(ctx, t, w, k) })
		}
	}
	wg.Wait()
}

// attempt is the book of one attempt, which its probes share.
type attempt struct {
	inside chan struct{} // capacity 1: held while a command runs inside

	mu    sync.Mutex
	state *State
	moved chan struct{} // closed and replaced when the verdict changes
}

func (a *attempt) due(k Kind) (at time.Time, ok bool, v Verdict, moved <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	at, ok = a.state.Due(k)
	return at, ok, a.state.Verdict(), a.moved
}

// take enters an answer and tells whether the verdict changed by it.
func (a *attempt) take(k Kind, o Outcome) (changed bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	before := a.state.Verdict()
	a.state.Take(k, o, time.Now())
	if changed = a.state.Verdict() != before; changed {
		close(a.moved)
		a.moved = make(chan struct{})
	}
	return changed
}

func (a *attempt) verdict() Verdict {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.state.Verdict()
}

// voidTold is how many questions in a row that could not be put are warned of,
// once. One may be a runtime that restarts.
const voidTold = 5

// repeat puts one probe again and again.
func (m *Monitor) repeat(ctx context.Context, t Target, a *attempt, k Kind) {
	p, void := t.Probes.of(k), 0
	for {
		at, ok, v, moved := a.due(k)
		if v.Dead != "" || k == Startup && v.Up {
			return
		}
		var timer *time.Timer
		var due <-chan time.Time
		if ok {
			timer = time.NewTimer(time.Until(at))
			due = timer.C
		}
		select {
		case <-ctx.Done():
		case <-moved:
		case <-due:
		}
		if timer != nil {
			timer.Stop()
		}
		if ctx.Err() != nil {
			return
		}
		if at, ok, _, _ := a.due(k); !ok || time.Now().Before(at) {
			continue
		}
		if p.Exec != nil {
			select {
			case a.inside <- struct{}{}:
			case <-ctx.Done():
				return
			}
		}
		asking, cancel := context.WithTimeout(ctx, p.Timeout)
		o := m.ask(asking, m.addressed(t), p)
		cancel()
		if p.Exec != nil {
			<-a.inside
		}
		if ctx.Err() != nil {
			return // the answer may be of its end
		}
		if void++; !o.Void {
			void = 0
		}
		if void == voidTold {
			m.d.Log.Warn("a probe cannot be put, so nothing is known of the instance's health", "instance", t.Instance, "uid", t.UID, "probe", k.String()+": "+p.String(), "times", void)
		}
		if a.take(k, o) {
			m.report(t, a)
		}
	}
}

// addressed is t with the address that Set gave last.
func (m *Monitor) addressed(t Target) Target {
	m.mu.Lock()
	defer m.mu.Unlock()
	if now, ok := m.targets[t.UID]; ok && now.Attempt == t.Attempt {
		t.Address = now.Address
	}
	return t
}

func (m *Monitor) report(t Target, a *attempt) {
	m.mu.Lock()
	// Read under the lock: of two probes that report at once the later word
	// must stay.
	v := a.verdict()
	if now, ok := m.targets[t.UID]; ok && now.Attempt == t.Attempt {
		m.reports[t.UID] = Report{Attempt: t.Attempt, Verdict: v}
	}
	m.mu.Unlock()
	m.d.Log.Info("health changed", "instance", t.Instance, "uid", t.UID, "ready", v.NotReady == "", "not_ready", v.NotReady, "dead", v.Dead)
	poke(m.changed)
}
