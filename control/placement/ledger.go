package placement

import (
	"cmp"
	"slices"

	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/isolation"
)

// ledger is what a plan has promised so far, on top of what runs.
type ledger struct {
	nodes   []*account // sorted by id
	byID    map[isolation.NodeID]*account
	sites   []string // sorted, those that have a node
	ranked  map[rankKey][]isolation.Choice
	assigns int
}

type rankKey struct {
	node isolation.NodeID
	req  isolation.Requirement
}

// account is one node's.
type account struct {
	Node
	cpu, memory int64 // set aside
	held        []holding
	copies      map[string]int // of a workload, by key; those told to stop not counted
}

// holding is what one live instance has of a node.
type holding struct {
	instance    string
	uid         string
	cpu, memory int64
	ports       []fleet.HostPort
}

func newLedger(in Input) *ledger {
	l := &ledger{byID: map[isolation.NodeID]*account{}, ranked: map[rankKey][]isolation.Choice{}}
	for _, n := range in.Nodes {
		a := &account{Node: n, copies: map[string]int{}}
		l.nodes = append(l.nodes, a)
		l.byID[n.ID] = a
		if s := string(n.Site); !slices.Contains(l.sites, s) {
			l.sites = append(l.sites, s)
		}
	}
	slices.SortFunc(l.nodes, func(a, b *account) int { return cmp.Compare(a.ID, b.ID) })
	slices.Sort(l.sites)
	for _, w := range in.Workloads {
		for _, i := range w.Instances {
			if a := l.byID[i.Node]; a != nil && i.Live() {
				a.take(holdingOf(i))
				if !i.Stop {
					a.copies[key(i.Namespace, i.Workload)]++
				}
			}
		}
	}
	for _, a := range l.nodes {
		slices.SortFunc(a.held, func(a, b holding) int {
			return cmp.Or(cmp.Compare(a.instance, b.instance), cmp.Compare(a.uid, b.uid))
		})
	}
	return l
}

func key(namespace, name string) string { return namespace + "/" + name }

func holdingOf(i *fleet.Instance) holding {
	h := holding{instance: i.Instance, uid: i.UID, cpu: i.CPUMillis, memory: i.MemoryBytes}
	if i.Spec != nil {
		h.ports = i.Spec.HostPorts()
	}
	return h
}

func (a *account) take(h holding) {
	a.cpu += h.cpu
	a.memory += h.memory
	a.held = append(a.held, h)
}

// without runs f as if the instance were gone from its node.
func (a *account) without(uid string, f func()) {
	i := slices.IndexFunc(a.held, func(h holding) bool { return h.uid == uid })
	if i < 0 {
		f()
		return
	}
	h := a.held[i]
	before := a.held
	a.held = slices.Delete(slices.Clone(a.held), i, i+1)
	a.cpu -= h.cpu
	a.memory -= h.memory
	f()
	a.held = before
	a.cpu += h.cpu
	a.memory += h.memory
}

func (a *account) host() isolation.Host {
	if a.Report == nil {
		return isolation.Host{}
	}
	return a.Report.Host
}

func (a *account) freeCPU() int64    { return a.host().CPUMillis - a.cpu }
func (a *account) freeMemory() int64 { return a.host().MemoryBytes - a.memory }

// load is the share of memory that is set aside.
func (a *account) load() float64 {
	if m := a.host().MemoryBytes; m > 0 {
		return float64(a.memory) / float64(m)
	}
	return 1
}

// fresh answers for a finding of this node's report.
func (a *account) fresh(f isolation.Finding) bool {
	for i, g := range a.Report.Findings {
		if g.Runtime == f.Runtime && g.Variant == f.Variant {
			return i < len(a.Fresh) && a.Fresh[i]
		}
	}
	return false
}

// rank is isolation.Rank for the node, remembered for the length of a plan:
// few requirements differ.
func (l *ledger) rank(a *account, req isolation.Requirement) []isolation.Choice {
	if a.Report == nil {
		return nil
	}
	k := rankKey{a.ID, req}
	c, ok := l.ranked[k]
	if !ok {
		c = isolation.Rank(req, *a.Report, a.fresh)
		l.ranked[k] = c
	}
	return c
}
