package placement

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/isolation"
)

// How much a remedy changes, the least first: what mends itself, the node's
// load, the node's state, the file's details, the file's promise, the host.
const (
	costWait = iota
	costRoom
	costUncordon
	costLink
	costRequest
	costPort
	costDegrade
	costFewer
	costSite
	costFloor    // one more for every class given up
	costHost     = costFloor + 4
	costJoin     = costHost + 1
	maxRemedies  = 5
	smallestHelp = fleet.MinMemory
)

// fixes tries every kind of remedy on the state of this turn and returns those
// that really would place a copy on a node that is in play, the smallest
// first; what an agent says of its host (costHost) cannot be tried and comes
// late.
func (t *turn) fixes(inPlay func(*account) bool) []Counterfactual {
	var out []Counterfactual
	add := func(cost int, change, format string, args ...any) {
		out = append(out, Counterfactual{cost: cost, Change: change, Effect: fmt.Sprintf(format, args...)})
	}
	if len(t.nodes) == 0 || t.onlyEmptySites() {
		t.join(add)
	}
	t.liftNode(inPlay, add)
	t.lowerRequest(inPlay, add)
	t.changeFile(inPlay, add)
	t.mendHost(inPlay, add)
	slices.SortStableFunc(out, func(a, b Counterfactual) int {
		return cmp.Or(cmp.Compare(a.cost, b.cost), cmp.Compare(a.Change, b.Change))
	})
	return out[:min(len(out), maxRemedies)]
}

type addFix func(cost int, change, format string, args ...any)

func (t *turn) onlyEmptySites() bool {
	sites := t.pendingSites()
	return len(sites) > 0 && !slices.ContainsFunc(sites, func(s string) bool { return slices.Contains(t.ledger.sites, s) })
}

func (t *turn) join(add addFix) {
	sites := t.pendingSites()
	if len(sites) == 0 {
		add(costJoin, "join a node", "redoubt node join-token prints what to run on it")
	}
	for _, s := range sites {
		add(costJoin, "join a node to site "+s, "redoubt node join-token --site %s prints what to run on it", s)
	}
}

// lifted is the best runtime of a node that nothing but the given codes keeps
// from taking the workload, with the rejections of those codes.
func (t *turn) lifted(a *account, d demand, codes ...string) (isolation.Choice, []Rejection, bool) {
	var lift []Rejection
	for _, r := range a.blockers(d) {
		if !slices.Contains(codes, r.Code) {
			return isolation.Choice{}, nil, false
		}
		lift = append(lift, r)
	}
	ranked := slices.Clone(t.rank(a, d.req))
	slices.SortStableFunc(ranked, isolation.CompareChoices)
next:
	for _, c := range ranked {
		own := slices.Clone(lift)
		for _, r := range c.Rejected {
			if !slices.Contains(codes, r.Code) {
				continue next
			}
			own = append(own, Rejection{Node: a.ID, Code: r.Code, Reason: r.Text, Fix: r.Fix})
		}
		for _, r := range a.room(d, c.Finding) {
			if !slices.Contains(codes, r.Code) {
				continue next
			}
			own = append(own, r)
		}
		if len(own) > 0 {
			return c, own, true
		}
	}
	return isolation.Choice{}, nil, false
}

// liftNode finds nodes that lack a single thing.
func (t *turn) liftNode(inPlay func(*account) bool, add addFix) {
	var room *roomFix
	for _, a := range t.nodes {
		if !inPlay(a) {
			continue
		}
		if c, _, ok := t.lifted(a, t.demand, isolation.CodeStale); ok {
			add(costWait, fmt.Sprintf("wait until %s has proven %s again", a.ID, c.Finding.Runtime),
				"it then starts there by itself (%.2f)", c.Score)
		}
		if c, rs, ok := t.lifted(a, t.demand, CodeNoRoomCPU, CodeNoRoomMemory); ok {
			if f := newRoomFix(a, t.demand, c, rs); f != nil && (room == nil || f.less(room)) {
				room = f
			}
		}
		if c, _, ok := t.lifted(a, t.demand, CodeRefused); ok {
			add(costUncordon, fmt.Sprintf("put right what %s refused it for", a.ID), "%s there is tried again by itself after a while", c.Finding.Runtime)
		}
		if c, _, ok := t.lifted(a, t.demand, CodeCordoned); ok {
			add(costUncordon, fmt.Sprintf("uncordon %s", a.ID), "%s there then takes it (%.2f)", c.Finding.Runtime, c.Score)
		}
		if c, _, ok := t.lifted(a, t.demand, CodeSilent, CodeSuspect, CodeLost); ok {
			add(costLink, fmt.Sprintf("bring %s back", a.ID), "%s there then takes it (%.2f)", c.Finding.Runtime, c.Score)
		}
	}
	if room != nil {
		add(costRoom, room.change(), "%s there then takes it (%.2f)%s", room.choice.Finding.Runtime, room.choice.Score, room.holders())
	}
}

// roomFix is the node where the least has to go.
type roomFix struct {
	account     *account
	choice      isolation.Choice
	cpu, memory int64
}

// newRoomFix is nil where even an empty node would be too small.
func newRoomFix(a *account, d demand, c isolation.Choice, rs []Rejection) *roomFix {
	f := &roomFix{account: a, choice: c}
	for _, r := range rs {
		if r.Code == CodeNoRoomCPU {
			f.cpu = r.shortBy
		} else {
			f.memory = r.shortBy
		}
	}
	if d.spec.CPUMillis() > a.host().CPUMillis || d.spec.MemoryBytes()+c.Finding.OverheadMemory > a.host().MemoryBytes {
		return nil
	}
	return f
}

// less prefers the smaller share of the node that has to be freed.
func (f *roomFix) less(g *roomFix) bool {
	share := func(x *roomFix) float64 {
		h := x.account.host()
		return max(float64(x.cpu)/float64(h.CPUMillis), float64(x.memory)/float64(h.MemoryBytes))
	}
	return share(f) < share(g)
}

func (f *roomFix) change() string {
	var what []string
	if f.memory > 0 {
		what = append(what, size(f.memory))
	}
	if f.cpu > 0 {
		what = append(what, fleet.FormatCPU(f.cpu)+" cpu")
	}
	return fmt.Sprintf("free %s on %s", strings.Join(what, " and "), f.account.ID)
}

// holders names the instance that holds the least of what would be enough, or
// the one that holds the most.
func (f *roomFix) holders() string {
	var best *holding
	for i := range f.account.held {
		h := &f.account.held[i]
		enough := func(h *holding) bool { return h.memory >= f.memory && h.cpu >= f.cpu }
		switch {
		case best == nil:
			best = h
		case enough(h) != enough(best):
			if enough(h) {
				best = h
			}
		case enough(h) && h.memory < best.memory, !enough(h) && h.memory > best.memory:
			best = h
		}
	}
	if best == nil {
		return ""
	}
	return fmt.Sprintf("; %s holds %s and %s cpu there", best.instance, size(best.memory), fleet.FormatCPU(best.cpu))
}

// lowerRequest finds the largest memory request that some node could meet now.
func (t *turn) lowerRequest(inPlay func(*account) bool, add addFix) {
	var most int64
	var at *account
	var with isolation.Choice
	for _, a := range t.nodes {
		if !inPlay(a) {
			continue
		}
		if c, _, ok := t.lifted(a, t.demand, CodeNoRoomMemory); ok {
			if fits := a.freeMemory() - c.Finding.OverheadMemory; fits > most {
				most, at, with = fits, a, c
			}
		}
	}
	if most >= smallestHelp && len(t.Spec.Containers) == 1 {
		add(costRequest, fmt.Sprintf("request at most %s of memory instead of %s", fleet.FormatMemory(most>>20<<20), fleet.FormatMemory(t.Spec.MemoryBytes())),
			"%s on %s takes it now (%.2f)", with.Finding.Runtime, at.ID, with.Score)
	}
}

// changeFile tries other words in the file, one at a time.
func (t *turn) changeFile(inPlay func(*account) bool, add addFix) {
	if len(t.Spec.HostPorts()) > 0 {
		spec := t.Spec.Clone()
		for i := range spec.Containers {
			for j := range spec.Containers[i].Ports {
				spec.Containers[i].Ports[j].Host = 0
			}
		}
		d := t.demand
		d.spec = &spec
		if got := t.takers(d, inPlay); len(got) > 0 {
			add(costPort, "publish another hostPort", "%s", t.would(got, inPlay))
		}
	}
	if t.req.Pend {
		d := t.demand
		d.req.Pend = false
		if got := t.takers(d, inPlay); len(got) > 0 {
			add(costDegrade, "isolation.onUnavailable: Degrade", "%s", t.would(got, inPlay))
		}
	}
	t.fewer(add)
	if len(t.demand.sites) > 0 && t.Spec.Placement.PerSite == nil {
		d := t.demand
		d.sites = nil
		elsewhere := func(a *account) bool { return !slices.Contains(t.demand.sites, string(a.Site)) }
		if got := t.takers(d, elsewhere); len(got) > 0 {
			a := got[0].account
			add(costSite, fmt.Sprintf("add %s to placement.sites", a.Site), "%s", t.would(got, elsewhere))
		}
	}
	for c := t.req.Floor - 1; c >= isolation.ClassContainer; c-- {
		d := t.demand
		d.req.Floor = c
		if got := t.takers(d, inPlay); len(got) > 0 {
			add(costFloor+int(t.req.Floor-c)-1, "floor "+c.String(), "%s", t.would(got, inPlay))
			return
		}
	}
}

// fewer copies than are wanted may all have a place.
func (t *turn) fewer(add addFix) {
	if t.Spec.Kind != fleet.KindService {
		return
	}
	least, pending := -1, false
	for _, g := range t.groups {
		if n := g.desired - g.pending; least < 0 || n < least {
			least = n
		}
		pending = pending || g.pending > 0
	}
	if !pending || least < 1 {
		return
	}
	field := "placement.replicas"
	if t.Spec.Placement.PerSite != nil {
		field = "placement.perSite"
	}
	add(costFewer, fmt.Sprintf("%s: %d", field, least), "nothing would be pending")
}

// takers are the candidates for d, the best first.
func (t *turn) takers(d demand, keep func(*account) bool) (list []candidate) {
	for _, a := range t.nodes {
		if keep(a) {
			if c, ok := t.offer(a, d); ok {
				list = append(list, c)
			}
		}
	}
	k := t.Spec.Key()
	slices.SortStableFunc(list, func(a, b candidate) int { return compare(a, b, k, 0, 0) })
	return list
}

// would says who would take it.
func (t *turn) would(list []candidate, inPlay func(*account) bool) string {
	n := 0
	for _, a := range t.nodes {
		if inPlay(a) {
			n++
		}
	}
	c := list[0]
	switch {
	case len(list) == 1:
		return fmt.Sprintf("%s on %s would take it now (%.2f)", c.choice.Finding.Runtime, c.account.ID, c.choice.Score)
	case len(list) == n && n == 2:
		return fmt.Sprintf("both nodes would take it now, %s on %s first (%.2f)", c.choice.Finding.Runtime, c.account.ID, c.choice.Score)
	case len(list) == n:
		return fmt.Sprintf("all %d nodes would take it now, %s on %s first (%.2f)", n, c.choice.Finding.Runtime, c.account.ID, c.choice.Score)
	}
	return fmt.Sprintf("%d of %d nodes would take it now, %s on %s first (%.2f)", len(list), n, c.choice.Finding.Runtime, c.account.ID, c.choice.Score)
}

// mendHost passes on what the nodes themselves say would make a runtime of the
// right class work.
func (t *turn) mendHost(inPlay func(*account) bool, add addFix) {
	nodes := map[string][]isolation.NodeID{}
	runtimes := map[string][]isolation.Name{}
	for _, a := range t.nodes {
		if !inPlay(a) || !t.named(a) {
			continue
		}
		if len(a.blockers(t.demand)) > 0 {
			continue
		}
		for _, c := range t.rank(a, t.req) {
			if len(a.room(t.demand, c.Finding)) > 0 {
				continue
			}
			var fix string
			for _, r := range c.Rejected {
				if r.Code != isolation.CodeNotVerified {
					fix = ""
					break
				}
				fix = r.Fix
			}
			if fix == "" {
				continue
			}
			if !slices.Contains(nodes[fix], a.ID) {
				nodes[fix] = append(nodes[fix], a.ID)
			}
			if !slices.Contains(runtimes[fix], c.Finding.Runtime) {
				runtimes[fix] = append(runtimes[fix], c.Finding.Runtime)
			}
		}
	}
	for fix, ids := range nodes {
		slices.Sort(runtimes[fix])
		add(costHost, fmt.Sprintf("%s (%s)", fix, list(ids)), "%s could then be proven there", list(runtimes[fix]))
	}
}
