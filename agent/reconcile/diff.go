package reconcile

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/agent/health"
	"redoubt.dev/redoubt/agent/store"
	"redoubt.dev/redoubt/isolation"
)

// Desired is what the node should be like.
type Desired struct {
	Assignments []Assignment
	// Authoritative: what is not assigned is not wanted. Otherwise it may only
	// be unknown, and is left alone.
	Authoritative bool
	Lease         store.Lease
	// Connected: the control plane answered lately, so that a rejected instance
	// can be placed elsewhere.
	Connected bool
	Proof     Proof
}

// Proof is what this node found out about its runtimes.
type Proof struct {
	// Ready is false until the runtimes were proven in this boot.
	Ready    bool
	Findings []isolation.Finding // Age as of now
	// MaxAge of a finding that still counts; zero: any.
	MaxAge time.Duration
}

// Observed is what the node is like.
type Observed struct {
	Containers []driver.Container
	Networks   map[string]string // uids that hold a namespace, with their address
	Facts      []store.Facts
	Health     map[string]health.Report // by uid, of what has probes
	Now        store.Moment
}

// Kind of an Action.
type Kind uint8

const (
	// Record writes Facts and does nothing else.
	Record Kind = iota + 1
	// Start writes Facts (Starting), then fetches, attaches and starts.
	Start
	// Stop ends the container in good order; it stays known.
	Stop
	// Condemn writes Facts (with Condemned), then does as Stop does.
	Condemn
	// End writes Facts (with Ending), removes the container and its network,
	// then writes the final phase.
	End
	// Remove ends whatever lives of the instance and clears it away.
	Remove
	// Forget drops the facts of an instance of which nothing is left.
	Forget
)

var kindNames = [...]string{"", "record", "start", "stop", "condemn", "end", "remove", "forget"}

func (k Kind) String() string { return kindNames[min(int(k), len(kindNames)-1)] }

// Action is one step of one instance.
type Action struct {
	Kind  Kind
	UID   string
	Why   string
	Grace time.Duration // of Stop and Condemn
	Facts store.Facts   // of Record, Start, Condemn and End
	// Urgent: the instance must not live, so a start that is under way is cut
	// short. That a container was seen to exit is never urgent: the start that
	// made it is about to say so itself, and cutting it short would make it
	// take the container away and run it a second time.
	Urgent bool
}

// Diff returns at most one action an instance, in the order of uids. Equal
// inputs give equal actions.
func Diff(d Desired, o Observed) []Action {
	p := newPlan(d, o)
	var actions []Action
	for _, uid := range p.uids {
		if a, ok := p.decide(uid); ok {
			a.UID = uid
			actions = append(actions, a)
		}
	}
	return actions
}

// Next is how long after o.Now Diff may say something new although nothing
// happened; false if never.
func Next(d Desired, o Observed) (time.Duration, bool) {
	p := newPlan(d, o)
	next, found := time.Duration(0), false
	at := func(t time.Duration) {
		if t -= o.Now.At; t > 0 && (!found || t < next) {
			next, found = t, true
		}
	}
	for uid, a := range p.assignments {
		f := p.facts[uid]
		if f.Phase == store.BackOff && f.NotBefore.Boot == o.Now.Boot {
			at(f.NotBefore.At)
		}
		if a.StopAfter > 0 && d.Lease.Renewed.Boot == o.Now.Boot {
			at(d.Lease.Renewed.At + a.StopAfter)
		}
	}
	return next, found
}

type plan struct {
	d           Desired
	o           Observed
	uids        []string
	assignments map[string]*Assignment
	containers  map[string]*driver.Container
	facts       map[string]store.Facts
	networks    map[string]string
	// owner of an instance's name is the assignment with the newest fence.
	owner map[string]*Assignment
}

func newPlan(d Desired, o Observed) *plan {
	p := &plan{
		d: d, o: o,
		assignments: map[string]*Assignment{}, containers: map[string]*driver.Container{},
		facts: map[string]store.Facts{}, networks: o.Networks, owner: map[string]*Assignment{},
	}
	all := map[string]bool{}
	for i := range d.Assignments {
		a := &d.Assignments[i]
		p.assignments[a.UID], all[a.UID] = a, true
		if old := p.owner[name(a)]; old == nil || older(old, a) {
			p.owner[name(a)] = a
		}
	}
	for i := range o.Containers {
		if uid, ok := InstanceUID(o.Containers[i].ID); ok {
			p.containers[uid], all[uid] = &o.Containers[i], true
		}
	}
	for _, f := range o.Facts {
		p.facts[f.UID], all[f.UID] = f, true
	}
	for uid := range o.Networks {
		all[uid] = true
	}
	p.uids = slices.Sorted(maps.Keys(all))
	return p
}

func (p *plan) attached(uid string) bool {
	_, ok := p.networks[uid]
	return ok
}

func name(a *Assignment) string { return a.Namespace + "/" + a.Instance }

func older(a, b *Assignment) bool {
	if a.Fence != b.Fence {
		return a.Fence.Less(b.Fence)
	}
	return cmp.Less(a.UID, b.UID)
}

func (p *plan) decide(uid string) (Action, bool) {
	a, c, f := p.assignments[uid], p.containers[uid], p.facts[uid]
	if a == nil {
		return p.unassigned(uid, c)
	}
	f.UID, f.Instance = uid, a.Instance
	if f.Fence != a.Fence && (f.Sequence == 0 || f.Fence.Less(a.Fence)) {
		f.Fence = a.Fence
	}
	if f.Phase == "" {
		f.Phase = store.Assigned
	}
	switch {
	case f.Ending != "":
		return Action{Kind: End, Why: f.Message, Facts: f}, true
	case f.Phase.Final():
		if c != nil || p.attached(uid) {
			return Action{Kind: Remove, Why: "ended"}, true
		}
		return p.record(f)
	}
	if why := p.mustEnd(a, f); why != "" {
		return p.stop(a, c, f, why)
	}
	if c != nil {
		switch c.State {
		case driver.StateRunning, driver.StatePaused:
			if c.Orphan {
				return Action{Kind: Remove, Why: "the runtime lost it while it ran"}, true
			}
			if f.Phase == store.Assigned { // the ledger was lost, the container was not
				f = unasked(f, a)
			}
			f = adopt(f, c, p.o.Now)
			if addr := p.networks[uid]; addr != "" {
				f.Address = addr
			}
			return p.judge(a, c, f)
		case driver.StateUnknown:
			if c.Orphan {
				return Action{Kind: Remove, Why: "the runtime lost it"}, true
			}
			return Action{}, false // it may live: wait until the runtime says
		case driver.StateExited:
			// Assigned: the ledger was lost, the container was not.
			if f.Phase != store.BackOff && attempt(c) > 0 && attempt(c) >= f.Attempt {
				f.Attempt = attempt(c)
				return settle(After(a, f, exitOf(c), p.o.Now))
			}
		}
	} else if f.Phase == store.Running {
		return settle(After(a, f, driver.Exit{Lost: true}, p.o.Now))
	}
	return p.start(a, f)
}

// mustEnd says why an instance may not live, "" if it may.
func (p *plan) mustEnd(a *Assignment, f store.Facts) string {
	owner := p.owner[name(a)]
	switch {
	case a.Stop:
		return "told to stop"
	case owner != a:
		return fmt.Sprintf("a newer assignment (fence %d) holds %s", owner.Fence.Index, a.Instance)
	case a.StopAfter > 0 && f.Attempt > 0 && p.lapsed(a):
		return fmt.Sprintf("its lease ended: the control plane was out of reach for %s", a.StopAfter)
	}
	return ""
}

// lapsed: a lease that this boot knows of has run out. After a reboot nothing
// is known of it, and held is false too.
func (p *plan) lapsed(a *Assignment) bool {
	l := p.d.Lease.Renewed
	return l.Boot == p.o.Now.Boot && p.o.Now.At-l.At >= a.StopAfter
}

func (p *plan) held(a *Assignment) bool {
	l := p.d.Lease.Renewed
	return l.Boot == p.o.Now.Boot && p.o.Now.At-l.At < a.StopAfter
}

func (p *plan) stop(a *Assignment, c *driver.Container, f store.Facts, why string) (Action, bool) {
	if c != nil && !c.Orphan {
		switch c.State {
		case driver.StateRunning, driver.StatePaused, driver.StateUnknown:
			return Action{Kind: Stop, Why: why, Grace: a.Grace, Urgent: true}, true
		case driver.StateExited:
			if attempt(c) >= f.Attempt {
				f = exited(f, exitOf(c))
			}
		}
	}
	f.Ending, f.Message = store.Stopped, why
	return Action{Kind: End, Why: why, Facts: f, Urgent: true}, true
}

// unassigned decides about what no assignment speaks of.
func (p *plan) unassigned(uid string, c *driver.Container) (Action, bool) {
	const why = "no longer assigned to this node"
	switch {
	case !p.d.Authoritative:
		return Action{}, false
	case c != nil && !c.Orphan && (c.State == driver.StateRunning || c.State == driver.StatePaused):
		grace, err := time.ParseDuration(c.Labels[LabelGrace])
		if err != nil {
			grace = defaultGrace
		}
		return Action{Kind: Stop, Why: why, Grace: grace, Urgent: true}, true
	case c != nil || p.attached(uid):
		return Action{Kind: Remove, Why: why, Urgent: true}, true
	}
	return Action{Kind: Forget, Why: why, Urgent: true}, true
}

// start decides whether an instance that does not run may start now.
func (p *plan) start(a *Assignment, f store.Facts) (Action, bool) {
	if a.Invalid != "" {
		return reject(f, a.Invalid)
	}
	if f.Phase == store.BackOff && f.NotBefore.Boot == p.o.Now.Boot && p.o.Now.At < f.NotBefore.At {
		return p.record(f)
	}
	for uid, other := range p.assignments {
		if other != a && name(other) == name(a) && p.containers[uid] != nil {
			return p.hold(f, "waits for the older "+a.Instance+" to end")
		}
	}
	if a.StopAfter > 0 && !p.held(a) {
		return p.hold(f, "waits for a lease: the control plane has not answered since this node started or the lease ended")
	}
	if !p.d.Proof.Ready {
		return p.hold(f, "waits until this node has proven its runtimes")
	}
	if wait, why := p.d.Proof.admits(a); why != "" {
		if wait || (f.Attempt > 0 && !p.d.Connected) {
			return p.hold(f, why)
		}
		return reject(f, why)
	}
	if f.Phase != store.Starting {
		f.Attempt++
	}
	f.Phase, f.Message = store.Starting, ""
	f.Pid, f.Address = 0, ""
	f.Ran = p.o.Now
	return Action{Kind: Start, Facts: unasked(f, a)}, true
}

// unasked is what is known of an attempt's health before its first probe.
func unasked(f store.Facts, a *Assignment) store.Facts {
	v := health.Waiting(a.Probes)
	f.Up, f.NotReady, f.Condemned = v.Up, v.NotReady, ""
	return f
}

// judge takes in what the probes of a running attempt have found.
func (p *plan) judge(a *Assignment, c *driver.Container, f store.Facts) (Action, bool) {
	if r, ok := p.o.Health[a.UID]; ok && r.Attempt == f.Attempt && f.Condemned == "" {
		f.Up, f.NotReady, f.Condemned = r.Up, r.NotReady, r.Dead
	}
	if f.Condemned == "" || c.State != driver.StateRunning {
		return p.record(f)
	}
	f.NotReady = f.Condemned
	return Action{Kind: Condemn, Why: f.Condemned, Grace: a.Grace, Facts: f}, true
}

// admits says why a may not start, "" if it may; wait if time alone can help.
func (pr Proof) admits(a *Assignment) (wait bool, why string) {
	label := string(a.Runtime)
	if a.Variant != "" {
		label += " (" + a.Variant + ")"
	}
	i := slices.IndexFunc(pr.Findings, func(f isolation.Finding) bool {
		return f.Runtime == a.Runtime && f.Variant == a.Variant
	})
	if i < 0 {
		return false, label + " is not on this node"
	}
	f := pr.Findings[i]
	switch {
	case f.State != isolation.StateVerified && f.Reason != "":
		return false, fmt.Sprintf("%s is not proven on this node: %s", label, f.Reason)
	case f.State != isolation.StateVerified:
		return false, fmt.Sprintf("%s is not proven on this node: it is %s", label, f.State)
	case f.Class < a.Floor:
		return false, fmt.Sprintf("%s gives %s here, below the floor %s", label, f.Class, a.Floor)
	case pr.MaxAge > 0 && f.Age > pr.MaxAge:
		return true, fmt.Sprintf("the proof of %s is %s old; waits for a new one", label, f.Age.Round(time.Second))
	}
	return false, ""
}

// hold keeps the phase and says what it waits for.
func (p *plan) hold(f store.Facts, why string) (Action, bool) {
	f.Message = why
	return p.record(f)
}

// record is an action only if it changes what is stored.
func (p *plan) record(f store.Facts) (Action, bool) {
	if held, ok := p.facts[f.UID]; ok && sameFacts(held, f) {
		return Action{}, false
	}
	return Action{Kind: Record, Why: f.Message, Facts: f}, true
}

func sameFacts(a, b store.Facts) bool {
	am, bm := a.Measured, b.Measured
	if (am == nil) != (bm == nil) || (am != nil && *am != *bm) {
		return false
	}
	if !a.Started.Equal(b.Started) || !a.Finished.Equal(b.Finished) {
		return false
	}
	a.Measured, b.Measured = nil, nil
	a.Started, b.Started, a.Finished, b.Finished = time.Time{}, time.Time{}, time.Time{}, time.Time{}
	return a == b
}

func reject(f store.Facts, why string) (Action, bool) {
	f.Ending, f.Message = store.Rejected, why
	return Action{Kind: End, Why: why, Facts: f}, true
}

// settle turns decided facts into an action.
func settle(f store.Facts) (Action, bool) {
	if f.Ending != "" {
		return Action{Kind: End, Why: f.Message, Facts: f}, true
	}
	return Action{Kind: Record, Why: f.Message, Facts: f}, true
}

// adopt takes note of a container that runs.
func adopt(f store.Facts, c *driver.Container, now store.Moment) store.Facts {
	if f.Phase == store.Running && f.Pid == c.Pid {
		f.Attempt = max(f.Attempt, attempt(c))
		return f
	}
	if f.Pid != c.Pid {
		f.Measured, f.Kernel = nil, ""
	}
	if f.Ran.Boot != now.Boot {
		f.Ran = now
	}
	f.Attempt = max(f.Attempt, attempt(c), 1)
	f.Phase, f.Message, f.Pid = store.Running, "", c.Pid
	f.Runtime, f.Started, f.Finished = string(c.Runtime), c.StartedAt, time.Time{}
	return f
}

func attempt(c *driver.Container) uint64 {
	n, _ := strconv.ParseUint(c.Labels[LabelAttempt], 10, 64)
	return n
}

func exitOf(c *driver.Container) driver.Exit {
	if c.Exit == nil {
		return driver.Exit{Lost: true}
	}
	return *c.Exit
}
