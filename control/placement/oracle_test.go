package placement

import (
	"cmp"
	"fmt"
	"math/rand"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/isolation"
)

// drawFleet is a small fleet with some of everything: what runs, what was told
// to stop, what a node refused.
func drawFleet(t *rapid.T) Input {
	var in Input
	sites := []string{"lab", "oslo", "rome"}
	states := []fleet.NodeState{fleet.NodeReady, fleet.NodeReady, fleet.NodeReady, fleet.NodeSuspect, fleet.NodeSilent, fleet.NodeDisconnected, fleet.NodeLost}
	runtimes := []isolation.Finding{
		{Runtime: "runc", Class: isolation.ClassContainer}, {Runtime: "gvisor", Variant: "systrap", Class: isolation.ClassSandbox},
		{Runtime: "gvisor", Variant: "kvm", Class: isolation.ClassSandbox}, {Runtime: "nabla", Class: isolation.ClassSandbox},
		{Runtime: "kata-qemu", Class: isolation.ClassVM}, {Runtime: "firecracker", Class: isolation.ClassMicroVM},
	}
	for i := range rapid.IntRange(1, 5).Draw(t, "nodes") {
		n := Node{
			Node: &fleet.Node{ID: isolation.NodeID(fmt.Sprintf("n%d", i)), Site: isolation.SiteID(rapid.SampledFrom(sites).Draw(t, "site")),
				Cordoned: rapid.IntRange(0, 7).Draw(t, "cordoned") == 0},
			State: rapid.SampledFrom(states).Draw(t, "state"),
		}
		if rapid.IntRange(0, 9).Draw(t, "reported") > 0 {
			n.Report = &isolation.Report{Generation: 1, Host: isolation.Host{Arch: "amd64",
				CPUMillis: rapid.Int64Range(0, 8).Draw(t, "cpu") * 100, MemoryBytes: rapid.Int64Range(0, 8).Draw(t, "mem") * 64 << 20}}
			for _, f := range runtimes {
				if rapid.Bool().Draw(t, "has") {
					f.State = rapid.SampledFrom([]isolation.State{isolation.StateVerified, isolation.StateVerified, isolation.StateInstalled, isolation.StateUnusable}).Draw(t, "finding")
					f.OverheadMemory = rapid.Int64Range(0, 2).Draw(t, "overhead") * 32 << 20
					f.Terms.Surface = isolation.Surface{Syscalls: rapid.IntRange(1, 4).Draw(t, "calls") * 50, SyscallsTotal: 362, Devices: rapid.IntRange(0, 2).Draw(t, "devices")}
					n.Report.Findings = append(n.Report.Findings, f)
					n.Fresh = append(n.Fresh, rapid.IntRange(0, 4).Draw(t, "fresh") > 0)
				}
			}
		}
		in.Nodes = append(in.Nodes, n)
	}
	for i := range rapid.IntRange(1, 4).Draw(t, "workloads") {
		in.Workloads = append(in.Workloads, drawWorkload(t, i, in.Nodes, sites))
	}
	return in
}

func drawWorkload(t *rapid.T, i int, nodes []Node, sites []string) Workload {
	class := func(label string, low isolation.Class) isolation.Class {
		return isolation.Class(rapid.IntRange(int(low), int(isolation.ClassMicroVM)).Draw(t, label))
	}
	spec := &fleet.Workload{Kind: fleet.KindService, Namespace: "default", Name: fmt.Sprintf("w%d", i)}
	spec.Isolation.Floor = class("floor", isolation.ClassContainer)
	if rapid.Bool().Draw(t, "prefers") {
		spec.Isolation.Prefer = class("prefer", spec.Isolation.Floor)
		spec.Isolation.Pend = rapid.Bool().Draw(t, "pend")
	}
	for _, s := range sites {
		if rapid.IntRange(0, 2).Draw(t, "named") == 0 {
			spec.Placement.Sites = append(spec.Placement.Sites, s)
		}
	}
	n := rapid.IntRange(0, 3).Draw(t, "count")
	switch rapid.IntRange(0, 2).Draw(t, "kind") {
	case 0:
		spec.Placement.PerSite = &n
	case 1:
		spec.Placement.Replicas = &n
	default:
		spec.Kind, spec.Job = fleet.KindJob, &fleet.JobSpec{Completions: n + 1, Parallelism: rapid.IntRange(1, 3).Draw(t, "parallelism"), BackoffLimit: 1}
	}
	c := fleet.Container{Image: "a", Resources: fleet.Resources{CPURequest: rapid.Int64Range(1, 3).Draw(t, "cpu") * 100, MemoryRequest: rapid.Int64Range(1, 3).Draw(t, "mem") * 64 << 20}}
	if rapid.IntRange(0, 2).Draw(t, "port") == 0 {
		c.Ports = []fleet.Port{{Container: 80, Host: uint16(rapid.IntRange(80, 81).Draw(t, "host port")), Protocol: "TCP"}}
	}
	spec.Containers = []fleet.Container{c}
	w := Workload{StoredWorkload: &fleet.StoredWorkload{Spec: spec, Revision: uint64(rapid.IntRange(1, 3).Draw(t, "revision")), NextOrdinal: 1,
		Completions: uint32(rapid.IntRange(0, 1).Draw(t, "completions")), Failures: uint32(rapid.IntRange(0, 2).Draw(t, "failures"))}}
	phases := []fleet.InstancePhase{fleet.InstanceRunning, fleet.InstanceRunning, fleet.InstanceStarting, fleet.InstanceBackoff,
		fleet.InstanceSucceeded, fleet.InstanceLost, fleet.InstanceRejected}
	for range rapid.IntRange(0, 3).Draw(t, "instances") {
		node := rapid.SampledFrom(nodes).Draw(t, "on")
		if node.Report == nil || len(node.Report.Findings) == 0 {
			continue
		}
		f := rapid.SampledFrom(node.Report.Findings).Draw(t, "under")
		x := &fleet.Instance{Assignment: fleet.Assignment{
			UID: fmt.Sprintf("u%d-%d", i, w.NextOrdinal), Namespace: "default", Workload: spec.Name, Instance: fleet.InstanceName(spec.Name, w.NextOrdinal),
			Node: node.ID, Site: node.Site, Runtime: f.Runtime, Variant: f.Variant, Class: f.Class, Spec: spec, Revision: w.Revision,
			Stop: rapid.IntRange(0, 4).Draw(t, "told") == 0, NodeGeneration: 1, CPUMillis: spec.CPUMillis(), MemoryBytes: spec.MemoryBytes() + f.OverheadMemory}}
		x.Status.Phase = rapid.SampledFrom(phases).Draw(t, "phase")
		w.Instances = append(w.Instances, x)
		w.NextOrdinal++
	}
	return w
}

// place is a node and a runtime that the oracle knows of.
type place struct {
	node Node
	f    isolation.Finding
}

// oracle is what runs, as the oracle counts it: nothing but instances.
type oracle struct {
	in   Input
	live []*fleet.Instance
	left map[string]bool // uids that the plan stops
}

// can tells from first principles whether a place may take a workload now.
func (o *oracle) can(p place, i int, w Workload) bool {
	var cpu, memory int64
	for _, x := range o.live {
		if x.Node != p.node.ID {
			continue
		}
		cpu, memory = cpu+x.CPUMillis, memory+x.MemoryBytes
		for _, a := range x.Spec.Containers[0].Ports {
			for _, b := range w.Spec.Containers[0].Ports {
				if a.Host == b.Host && a.Host != 0 {
					return false
				}
			}
		}
	}
	for _, x := range w.Instances {
		if x.Status.Phase == fleet.InstanceRejected && x.Node == p.node.ID && x.Runtime == p.f.Runtime && x.Variant == p.f.Variant {
			return false
		}
	}
	s, r := w.Spec, w.Spec.Containers[0].Resources
	return p.node.State == fleet.NodeReady && !p.node.Cordoned && p.f.State == isolation.StateVerified && p.node.Fresh[i] &&
		p.f.Class >= s.Isolation.Floor && (!s.Isolation.Pend || p.f.Class >= s.Isolation.Prefer) && p.f.Runtime != "nabla" &&
		(len(s.Placement.Sites) == 0 || slices.Contains(s.Placement.Sites, string(p.node.Site))) &&
		cpu+r.CPURequest <= p.node.Report.Host.CPUMillis && memory+r.MemoryRequest+p.f.OverheadMemory <= p.node.Report.Host.MemoryBytes
}

// copies counts a workload's live copies that were not told to stop.
func (o *oracle) copies(w Workload, on func(*fleet.Instance) bool) (n int) {
	for _, x := range o.live {
		if x.Workload == w.Spec.Name && !x.Stop && !o.left[x.UID] && on(x) {
			n++
		}
	}
	return n
}

// best enumerates every node and runtime, in any site or in one.
func (o *oracle) best(w Workload, site string) (place, bool) {
	type scored struct {
		place
		key []float64
	}
	var all []scored
	for _, n := range o.in.Nodes {
		if n.Report == nil || site != "" && string(n.Site) != site {
			continue
		}
		var memory int64
		for _, x := range o.live {
			if x.Node == n.ID {
				memory += x.MemoryBytes
			}
		}
		for i, f := range n.Report.Findings {
			if !o.can(place{n, f}, i, w) {
				continue
			}
			unmet := 0.0
			if f.Class < w.Spec.Isolation.Prefer {
				unmet = 1
			}
			inSite := o.copies(w, func(x *fleet.Instance) bool { return x.Site == n.Site })
			onNode := o.copies(w, func(x *fleet.Instance) bool { return x.Node == n.ID })
			all = append(all, scored{place{n, f}, []float64{unmet, -float64(f.Class), float64(inSite), float64(onNode),
				-isolation.Score(f.Class, f.Terms), float64(f.Terms.Surface.Syscalls), float64(f.Terms.Surface.Devices),
				float64(memory) / float64(n.Report.Host.MemoryBytes)}})
		}
	}
	if len(all) == 0 {
		return place{}, false
	}
	b := slices.MinFunc(all, func(a, b scored) int {
		return cmp.Or(slices.Compare(a.key, b.key), cmp.Compare(a.node.ID, b.node.ID), cmp.Compare(a.f.Runtime, b.f.Runtime), cmp.Compare(a.f.Variant, b.f.Variant))
	})
	return b.place, true
}

// TestPlanAgreesWithBruteForce follows a plan step by step: each assignment
// must be the one that enumerating every node and runtime finds best, and where
// the plan leaves a copy pending there must be none.
func TestPlanAgreesWithBruteForce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := drawFleet(t)
		r := Plan(in, Policy{})
		o := &oracle{in: in, left: map[string]bool{}}
		for _, s := range r.Stop {
			o.left[s.UID] = true
		}
		for _, w := range in.Workloads {
			for _, x := range w.Instances {
				if x.Live() {
					o.live = append(o.live, x)
				}
			}
		}
		order := slices.Clone(in.Workloads)
		slices.SortFunc(order, func(a, b Workload) int {
			return cmp.Or(cmp.Compare(a.Revision, b.Revision), cmp.Compare(a.Spec.Name, b.Spec.Name))
		})
		assigns := r.Assign
		pending := map[string]int{}
		for _, e := range r.Explanations {
			pending[e.Workload] = e.Pending
		}
		for _, w := range order {
			missing := 0
			for _, g := range oracleGroups(in, w) {
				have := 0
				for _, x := range o.live {
					if x.Workload == w.Spec.Name && (g.site == "" || string(x.Site) == g.site) {
						have++
					}
				}
				if g.site == "" { // a copy outside of the sites that are named still has its place in the count
					have = len(slices.DeleteFunc(slices.Clone(o.live), func(x *fleet.Instance) bool { return x.Workload != w.Spec.Name }))
				}
				for range max(g.want-have, 0) {
					p, ok := o.best(w, g.site)
					if !ok {
						missing++
						continue
					}
					if len(assigns) == 0 {
						t.Fatalf("%s: brute force finds %s on %s, the plan nothing", w.Spec.Name, p.f.Runtime, p.node.ID)
					}
					a := assigns[0]
					assigns = assigns[1:]
					if a.Workload != w.Spec.Name || a.Node != p.node.ID || a.Runtime != p.f.Runtime || a.Variant != p.f.Variant {
						t.Fatalf("plan: %s on %s under %s/%s; brute force: %s on %s under %s/%s",
							a.Workload, a.Node, a.Runtime, a.Variant, w.Spec.Name, p.node.ID, p.f.Runtime, p.f.Variant)
					}
					o.live = append(o.live, &fleet.Instance{Assignment: a.Assignment})
				}
			}
			if missing != pending[w.Spec.Name] {
				t.Fatalf("%s: %d pending, brute force %d", w.Spec.Name, pending[w.Spec.Name], missing)
			}
		}
		if len(assigns) > 0 {
			t.Fatalf("the plan also wants %v", assigns)
		}
	})
}

type oracleGroup struct {
	site string
	want int
}

func oracleGroups(in Input, w Workload) (gs []oracleGroup) {
	s := w.Spec
	if s.Kind == fleet.KindJob {
		left := s.Job.Completions - int(w.Completions)
		if int(w.Failures) > s.Job.BackoffLimit {
			left = 0
		}
		return []oracleGroup{{"", min(left, s.Job.Parallelism)}}
	}
	if s.Placement.PerSite == nil {
		return []oracleGroup{{"", *s.Placement.Replicas}}
	}
	sites := slices.Clone(s.Placement.Sites)
	if len(sites) == 0 {
		for _, n := range in.Nodes {
			sites = append(sites, string(n.Site))
		}
	}
	slices.Sort(sites)
	for _, site := range slices.Compact(sites) {
		gs = append(gs, oracleGroup{site, *s.Placement.PerSite})
	}
	return gs
}

// TestNoFloorIsCrossedAndNothingPromisedTwice is about every plan whatever.
func TestNoFloorIsCrossedAndNothingPromisedTwice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := drawFleet(t)
		r := Plan(in, Policy{})
		cpu, memory := map[isolation.NodeID]int64{}, map[isolation.NodeID]int64{}
		ports := map[string]bool{}
		for _, a := range r.Assign {
			if a.Class < a.Spec.Isolation.Floor {
				t.Fatalf("%s: class %s below the floor %s", a.Instance, a.Class, a.Spec.Isolation.Floor)
			}
			cpu[a.Node] += a.CPUMillis
			memory[a.Node] += a.MemoryBytes
			for _, p := range a.Spec.HostPorts() {
				k := fmt.Sprint(a.Node, p.Port)
				if ports[k] {
					t.Fatalf("host port %d of %s is promised twice", p.Port, a.Node)
				}
				ports[k] = true
			}
		}
		stopped := map[string]bool{}
		for _, s := range r.Stop {
			stopped[s.UID] = true
		}
		for _, w := range in.Workloads {
			for _, x := range w.Instances {
				if x.Live() {
					cpu[x.Node] += x.CPUMillis
					memory[x.Node] += x.MemoryBytes
					if x.Class < w.Spec.Isolation.Floor && !x.Stop && !stopped[x.UID] {
						t.Fatalf("%s runs on below the floor", x.Instance)
					}
				}
			}
		}
		for _, a := range r.Assign {
			for _, n := range in.Nodes {
				if n.ID == a.Node && (cpu[n.ID] > n.Report.Host.CPUMillis || memory[n.ID] > n.Report.Host.MemoryBytes) {
					t.Fatalf("%s is promised beyond its room", n.ID)
				}
			}
		}
	})
}

// TestPlanDoesNotDependOnOrder: the same fleet, listed otherwise.
func TestPlanDoesNotDependOnOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := drawFleet(t)
		rng := rand.New(rand.NewSource(rapid.Int64().Draw(t, "seed")))
		other := Input{Nodes: slices.Clone(in.Nodes), Workloads: slices.Clone(in.Workloads)}
		rng.Shuffle(len(other.Nodes), func(i, j int) { other.Nodes[i], other.Nodes[j] = other.Nodes[j], other.Nodes[i] })
		rng.Shuffle(len(other.Workloads), func(i, j int) {
			other.Workloads[i], other.Workloads[j] = other.Workloads[j], other.Workloads[i]
		})
		for i := range other.Workloads {
			xs := slices.Clone(other.Workloads[i].Instances)
			rng.Shuffle(len(xs), func(i, j int) { xs[i], xs[j] = xs[j], xs[i] })
			other.Workloads[i].Instances = xs
		}
		for i := range other.Nodes {
			n := &other.Nodes[i]
			if n.Report == nil {
				continue
			}
			report, node, fresh := *n.Report, *n.Node, slices.Clone(n.Fresh)
			report.Findings = slices.Clone(report.Findings)
			rng.Shuffle(len(fresh), func(i, j int) {
				fresh[i], fresh[j] = fresh[j], fresh[i]
				report.Findings[i], report.Findings[j] = report.Findings[j], report.Findings[i]
			})
			node.Report, n.Node, n.Fresh = &report, &node, fresh
			n.Node.Report = &report
		}
		if a, b := Plan(in, Policy{}), Plan(other, Policy{}); !reflect.DeepEqual(a, b) {
			t.Fatalf("one order:\n%+v\nanother:\n%+v", a, b)
		}
	})
}

// TestEveryRejectedNodeHasATrueReason: whoever is pending hears of every node,
// and what is said of it is so.
func TestEveryRejectedNodeHasATrueReason(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := drawFleet(t)
		specs := map[string]*fleet.Workload{}
		for _, w := range in.Workloads {
			specs[w.Spec.Name] = w.Spec
		}
		for _, e := range Plan(in, Policy{}).Explanations {
			if e.Pending == 0 {
				continue
			}
			s := specs[e.Workload]
			grouped := map[isolation.NodeID]bool{}
			for _, g := range e.Groups {
				for _, n := range g.Nodes {
					grouped[n] = true
				}
			}
			for _, n := range in.Nodes {
				found := false
				for _, r := range e.Rejections {
					if r.Node == n.ID {
						found = true
						if !holds(r, n, s) {
							t.Fatalf("%s: %s is told %q (%s), which is not so", e.Workload, n.ID, r.Reason, r.Code)
						}
					}
				}
				inPlay := s.Placement.PerSite == nil
				if !found && inPlay {
					t.Fatalf("%s is pending and nothing is said of %s", e.Workload, n.ID)
				}
				if inPlay && !grouped[n.ID] {
					t.Fatalf("%s is pending and %s is in no group: %+v", e.Workload, n.ID, e.Rejections)
				}
			}
			if e.Summary == "" || !slices.IsSortedFunc(e.Fixes, func(a, b Counterfactual) int { return cmp.Compare(a.cost, b.cost) }) {
				t.Fatalf("%s: summary %q, fixes %v", e.Workload, e.Summary, e.Fixes)
			}
		}
	})
}

// holds judges a rejection from the input alone, as far as the input tells.
func holds(r Rejection, n Node, s *fleet.Workload) bool {
	var f isolation.Finding
	fresh := false
	if n.Report != nil {
		for i, g := range n.Report.Findings {
			if g.Runtime == r.Runtime && g.Variant == r.Variant {
				f, fresh = g, n.Fresh[i]
			}
		}
	}
	switch r.Code {
	case isolation.CodeBelowFloor:
		return f.Class < s.Isolation.Floor
	case isolation.CodeNotVerified:
		return f.State != isolation.StateVerified
	case isolation.CodeStale:
		return f.State == isolation.StateVerified && !fresh
	case isolation.CodePreferUnmet:
		return s.Isolation.Pend && f.Class < s.Isolation.Prefer
	case isolation.CodeIncompatible:
		return f.Runtime == "nabla"
	case CodeSiteMismatch:
		return !slices.Contains(s.Placement.Sites, string(n.Site))
	case CodeCordoned:
		return n.Cordoned
	case CodeSuspect:
		return n.State == fleet.NodeSuspect
	case CodeSilent:
		return n.State == fleet.NodeSilent || n.State == fleet.NodeDisconnected
	case CodeLost:
		return n.State == fleet.NodeLost
	case CodeNotReported:
		return n.Report == nil
	case CodeNoRuntime:
		return len(n.Report.Findings) == 0
	case CodeHostPortTaken:
		return len(s.HostPorts()) > 0
	case CodeNoRoomCPU, CodeNoRoomMemory:
		return r.shortBy > 0
	case CodeRefused:
		return r.Runtime != ""
	}
	return false
}
