package placement

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/isolation"
)

// Plan says what to start and what to stop so that the fleet comes closer to
// what was applied.
func Plan(in Input, p Policy) Result {
	return plan(in, p, "")
}

// Explain plans the whole fleet and explains one workload in full, whether it
// is pending or not. ok is false if Input does not have it.
func Explain(in Input, p Policy, namespace, name string) (e Explanation, ok bool) {
	k := key(namespace, name)
	for _, e := range plan(in, p, k).Explanations {
		if key(e.Namespace, e.Workload) == k {
			return e, true
		}
	}
	return Explanation{}, false
}

// plan explains the workload of key full even where nothing is pending.
func plan(in Input, p Policy, full string) Result {
	l := newLedger(in)
	r := Result{ScoreVersion: isolation.ScoreVersion}
	order := slices.Clone(in.Workloads)
	slices.SortFunc(order, func(a, b Workload) int {
		return cmp.Or(cmp.Compare(a.Revision, b.Revision), cmp.Compare(a.Spec.Key(), b.Spec.Key()))
	})
	for _, w := range order {
		t := newTurn(l, w, p)
		t.run()
		r.Assign = append(r.Assign, t.assigns...)
		r.Stop = append(r.Stop, t.stops...)
		r.Explanations = append(r.Explanations, t.explain(w.Spec.Key() == full))
	}
	slices.SortFunc(r.Explanations, func(a, b Explanation) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Workload, b.Workload))
	})
	return r
}

// turn is one workload's part of a plan.
type turn struct {
	*ledger
	Workload
	demand
	policy    Policy
	instances []*fleet.Instance // sorted by ordinal
	stopped   map[string]string // uid to why, in this plan
	ordinal   uint64
	assigns   []Assign
	stops     []Stop
	groups    []group
	note      string // what a change of the spec waits for
}

// group is a set of copies that are counted together: a service's copies in
// one site, or all of a workload's.
type group struct {
	site    string // "" for all
	desired int
	pending int // without a place after this plan
}

func newTurn(l *ledger, w Workload, p Policy) *turn {
	t := &turn{
		ledger: l, Workload: w, demand: w.demand(), policy: p,
		instances: slices.Clone(w.Instances), stopped: map[string]string{}, ordinal: max(w.NextOrdinal, 1),
	}
	slices.SortFunc(t.instances, func(a, b *fleet.Instance) int {
		return cmp.Or(cmp.Compare(ordinalOf(a), ordinalOf(b)), cmp.Compare(a.UID, b.UID))
	})
	return t
}

// ordinalOf reads the number at the end of an instance's name.
func ordinalOf(i *fleet.Instance) uint64 {
	n, _ := strconv.ParseUint(i.Instance[strings.LastIndexByte(i.Instance, '-')+1:], 10, 64)
	return n
}

func (t *turn) run() {
	if t.Stopping {
		for _, i := range t.instances {
			if !i.Stop && !i.Status.Phase.Ended() {
				t.stop(i, "the workload is being stopped")
			}
		}
		return
	}
	if t.Spec.Kind == fleet.KindJob {
		t.runJob()
		return
	}
	if t.Spec.Placement.PerSite == nil {
		n := 1
		if t.Spec.Placement.Replicas != nil {
			n = *t.Spec.Placement.Replicas
		}
		t.runService(group{desired: n})
		return
	}
	sites := t.sitesWanted()
	for _, i := range t.wanted("") {
		if !slices.Contains(sites, string(i.Site)) {
			t.stop(i, fmt.Sprintf("site %s is no longer among the workload's", i.Site))
		}
	}
	for _, s := range sites {
		t.runService(group{site: s, desired: *t.Spec.Placement.PerSite})
	}
}

// sitesWanted are the named sites, or every site that is known, sorted.
func (t *turn) sitesWanted() []string {
	if s := t.Spec.Placement.Sites; len(s) > 0 {
		return slices.Sorted(slices.Values(s))
	}
	return t.ledger.sites
}

// wanted are the live copies of a group that nobody has told to stop.
func (t *turn) wanted(site string) (list []*fleet.Instance) {
	for _, i := range t.instances {
		if i.Live() && !t.told(i) && (site == "" || string(i.Site) == site) {
			list = append(list, i)
		}
	}
	return list
}

// leaving counts the copies of a group that were told to stop and still live:
// each keeps its place in the count until it is gone.
func (t *turn) leaving(site string) (n int) {
	for _, i := range t.instances {
		if i.Live() && t.told(i) && (site == "" || string(i.Site) == site) {
			n++
		}
	}
	return n
}

func (t *turn) told(i *fleet.Instance) bool {
	_, now := t.stopped[i.UID]
	return i.Stop || now
}

func (t *turn) stop(i *fleet.Instance, why string) {
	if t.told(i) {
		return
	}
	t.stopped[i.UID] = why
	if a := t.byID[i.Node]; a != nil && i.Live() {
		a.copies[t.spec.Key()]--
	}
	t.stops = append(t.stops, Stop{UID: i.UID, Namespace: i.Namespace, Workload: i.Workload, Instance: i.Instance, Node: i.Node, Why: line(why)})
}

// runService keeps desired copies of a group: below the floor stops at once,
// surplus stops, a changed spec is rolled out, what is missing is placed.
func (t *turn) runService(g group) {
	for _, i := range t.wanted(g.site) {
		if !t.Spec.Allows(i.Class) {
			t.stop(i, fmt.Sprintf("%s gives %s, below the floor %s", i.Runtime, i.Class, t.Spec.Isolation.Floor))
		}
	}
	t.stopSurplus(g, "fewer copies are wanted")
	t.roll(g)
	t.fill(&g)
	t.groups = append(t.groups, g)
}

// stopSurplus prefers copies that are not ready, then outdated ones, then the
// youngest.
func (t *turn) stopSurplus(g group, why string) {
	list := t.wanted(g.site)
	over := len(list) - g.desired
	if over <= 0 {
		return
	}
	slices.SortStableFunc(list, func(a, b *fleet.Instance) int {
		return cmp.Or(
			order(!a.Status.Ready(), !b.Status.Ready()),
			order(t.outdated(a) != "", t.outdated(b) != ""),
			cmp.Compare(ordinalOf(b), ordinalOf(a)),
		)
	})
	for _, i := range list[:over] {
		t.stop(i, why)
	}
}

// order puts true before false.
func order(a, b bool) int {
	if a == b {
		return 0
	}
	if a {
		return -1
	}
	return 1
}

// outdated says why a copy is not what the workload now asks for, "" if it is.
func (t *turn) outdated(i *fleet.Instance) string {
	if s := t.Spec.Placement.Sites; len(s) > 0 && !slices.Contains(s, string(i.Site)) {
		return fmt.Sprintf("site %s is no longer among the workload's", i.Site)
	}
	if i.Revision == t.Revision || i.Spec == nil {
		return ""
	}
	if changed := fleet.NeedsRestart(*i.Spec, *t.Spec); len(changed) > 0 {
		if len(changed) > 2 {
			changed = append(changed[:2:2], "…")
		}
		return "changed: " + strings.Join(changed, ", ")
	}
	return ""
}

// roll replaces outdated copies by stopping one and starting one: a copy that
// is ready is stopped while no more than MaxUnavailable are not, one that is
// not at any time; both only where the new one then has a place. A copy on
// a node that cannot be reached waits for its node.
func (t *turn) roll(g group) {
	var ready int
	var old []*fleet.Instance
	for _, i := range t.wanted(g.site) {
		if i.Status.Ready() {
			ready++
		}
		if a := t.byID[i.Node]; t.outdated(i) != "" && a != nil && a.State == fleet.NodeReady {
			old = append(old, i)
		}
	}
	slices.SortStableFunc(old, func(a, b *fleet.Instance) int {
		return order(!a.Status.Ready(), !b.Status.Ready())
	})
	spare := t.policy.maxUnavailable() - (g.desired - ready)
	for _, i := range old {
		up := i.Status.Ready()
		if up && spare <= 0 {
			return
		}
		placeable := false
		t.byID[i.Node].without(i.UID, func() { _, placeable = t.best(t.demand, t.inGroup(g)) })
		if !placeable {
			t.note = fmt.Sprintf("the change waits, since no node would take the new %s; %s keeps running as it was", t.Spec.Name, i.Instance)
			continue
		}
		t.stop(i, t.outdated(i))
		if up {
			spare--
		}
	}
}

// line keeps what is stored with every instance short: part of it is an
// agent's own words, which may be of any length.
func line(s string) string {
	const most = 300
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

func (t *turn) inGroup(g group) func(*account) bool {
	return func(a *account) bool { return g.site == "" || string(a.Site) == g.site }
}

// fill places what is missing, as far as there is a place.
func (t *turn) fill(g *group) {
	missing := g.desired - len(t.wanted(g.site)) - t.leaving(g.site)
	for ; missing > 0; missing-- {
		if t.policy.MaxAssign > 0 && t.ledger.assigns >= t.policy.MaxAssign {
			break
		}
		c, ok := t.best(t.demand, t.inGroup(*g))
		if !ok {
			break
		}
		t.assign(c)
	}
	g.pending = max(missing, 0)
}

func (t *turn) assign(c candidate) {
	f, a := c.choice.Finding, c.account
	s := Assign{
		Ordinal: t.ordinal, Score: c.choice.Score,
		Assignment: fleet.Assignment{
			Namespace: t.Spec.Namespace, Workload: t.Spec.Name, Instance: fleet.InstanceName(t.Spec.Name, t.ordinal),
			Node: a.ID, Site: a.Site, Runtime: f.Runtime, Variant: f.Variant, Class: f.Class, Floor: t.Spec.Isolation.Floor,
			Spec: t.Spec, Revision: t.Revision, NodeGeneration: a.Generation(),
			CPUMillis: t.Spec.CPUMillis(), MemoryBytes: t.Spec.MemoryBytes() + f.OverheadMemory,
		},
	}
	s.Why = line(t.why(c))
	a.take(holding{instance: s.Instance, cpu: s.CPUMillis, memory: s.MemoryBytes, ports: t.Spec.HostPorts()})
	a.copies[t.Spec.Key()]++
	t.ordinal++
	t.ledger.assigns++
	t.assigns = append(t.assigns, s)
}

// runJob keeps as many copies going as may run at once and are still needed. A
// copy that runs is not restarted for a change of the spec: the next one has it.
func (t *turn) runJob() {
	g := t.jobGroup()
	why := "fewer copies are wanted at once"
	switch {
	case t.jobComplete():
		why = "the job is complete"
	case t.jobFailed():
		why = "the job has failed: " + t.failedWhy()
	}
	for _, i := range t.wanted("") {
		if !t.Spec.Allows(i.Class) {
			t.stop(i, fmt.Sprintf("%s gives %s, below the floor %s", i.Runtime, i.Class, t.Spec.Isolation.Floor))
		}
	}
	t.stopSurplus(g, why)
	t.fill(&g)
	t.groups = append(t.groups, g)
}

func (t *turn) jobComplete() bool { return int(t.Completions) >= t.Spec.Job.Completions }

func (t *turn) jobFailed() bool {
	return !t.jobComplete() && int(t.Failures) > t.Spec.FailuresBorne()
}

// failedWhy counts what a failed job's backoffLimit is of: restarts on the node
// with OnFailure, instances with Never.
func (t *turn) failedWhy() string {
	if t.Spec.Restart == fleet.RestartOnFailure {
		return fmt.Sprintf("an instance failed more often than its backoffLimit of %d", t.Spec.Job.BackoffLimit)
	}
	return fmt.Sprintf("%s, and its backoffLimit is %d", plural(int(t.Failures), "failure", "failures"), t.Spec.Job.BackoffLimit)
}

func (t *turn) jobGroup() group {
	if t.jobComplete() || t.jobFailed() {
		return group{}
	}
	return group{desired: min(t.Spec.Job.Completions-int(t.Completions), t.Spec.Job.Parallelism)}
}
