package placement

import (
	"strings"
	"testing"

	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/isolation"
)

// TestPlacementNeverCrossesTheFloor: a node that has everything but the class.
func TestPlacementNeverCrossesTheFloor(t *testing.T) {
	verified := func(r isolation.Name, c isolation.Class) isolation.Finding {
		return isolation.Finding{Runtime: r, Class: c, State: isolation.StateVerified}
	}
	one := 1
	for _, floor := range isolation.Classes() {
		var fs []isolation.Finding
		for r, c := range map[isolation.Name]isolation.Class{"runc": isolation.ClassContainer, "gvisor": isolation.ClassSandbox, "kata-qemu": isolation.ClassVM} {
			if c < floor {
				fs = append(fs, verified(r, c))
			}
		}
		fresh := make([]bool, len(fs))
		for i := range fresh {
			fresh[i] = true
		}
		spec := &fleet.Workload{Kind: fleet.KindService, Namespace: "default", Name: "vault",
			Isolation: fleet.IsolationSpec{Floor: floor}, Placement: fleet.PlacementSpec{Replicas: &one},
			Containers: []fleet.Container{{Resources: fleet.Resources{MemoryRequest: 1}}}}
		r := Plan(Input{
			Nodes: []Node{{State: fleet.NodeReady, Fresh: fresh, Node: &fleet.Node{ID: "n", Site: "s",
				Report: &isolation.Report{Host: isolation.Host{CPUMillis: 1000, MemoryBytes: 1 << 30}, Findings: fs}}}},
			Workloads: []Workload{{StoredWorkload: &fleet.StoredWorkload{Spec: spec, Revision: 1, NextOrdinal: 1}}},
		}, Policy{})
		if len(r.Assign) != 0 {
			t.Errorf("floor %s: placed on %s, which gives %s", floor, r.Assign[0].Runtime, r.Assign[0].Class)
		}
		if len(r.Explanations) != 1 || r.Explanations[0].Pending != 1 {
			t.Errorf("floor %s: not pending: %+v", floor, r.Explanations)
		}
	}
}

func TestDesiredCountsWhatPlanPlaces(t *testing.T) {
	two := 2
	in := Input{Nodes: []Node{{Node: &fleet.Node{ID: "a", Site: "x"}}, {Node: &fleet.Node{ID: "b", Site: "y"}}}}
	per := &fleet.StoredWorkload{Spec: &fleet.Workload{Kind: fleet.KindService, Placement: fleet.PlacementSpec{PerSite: &two}}}
	job := &fleet.StoredWorkload{Completions: 2, Spec: &fleet.Workload{Kind: fleet.KindJob, Job: &fleet.JobSpec{Completions: 3, Parallelism: 5}}}
	for _, c := range []struct {
		w    *fleet.StoredWorkload
		want uint32
	}{{per, 4}, {job, 1}, {&fleet.StoredWorkload{Stopping: true, Spec: per.Spec}, 0}} {
		if got := Desired(in, c.w); got != c.want {
			t.Errorf("got %d, want %d", got, c.want)
		}
	}
}

func BenchmarkPlan100Nodes100Workloads(b *testing.B) {
	var in Input
	for i := range 100 {
		n := Node{State: fleet.NodeReady, Fresh: []bool{true, true}, Node: &fleet.Node{ID: isolation.NodeID(fleet.InstanceName("n", uint64(i))), Site: "s",
			Report: &isolation.Report{Host: isolation.Host{CPUMillis: 8000, MemoryBytes: 16 << 30}, Findings: []isolation.Finding{
				{Runtime: "gvisor", Class: isolation.ClassSandbox, State: isolation.StateVerified}, {Runtime: "runc", Class: isolation.ClassContainer, State: isolation.StateVerified}}}}}
		in.Nodes = append(in.Nodes, n)
		five := 5
		in.Workloads = append(in.Workloads, Workload{StoredWorkload: &fleet.StoredWorkload{Revision: uint64(i + 1), NextOrdinal: 1, Spec: &fleet.Workload{
			Kind: fleet.KindService, Namespace: "default", Name: fleet.InstanceName("w", uint64(i)), Isolation: fleet.IsolationSpec{Floor: isolation.ClassSandbox},
			Placement: fleet.PlacementSpec{Replicas: &five}, Containers: []fleet.Container{{Resources: fleet.Resources{CPURequest: 100, MemoryRequest: 64 << 20}}}}}})
	}
	b.ResetTimer()
	for range b.N {
		if r := Plan(in, Policy{}); len(r.Assign) != 500 {
			b.Fatal(len(r.Assign))
		}
	}
}

// A node whose agent writes a novel as its reason must not make assignments
// that the state refuses for their size.
func TestWhyIsOneShortLine(t *testing.T) {
	one := 1
	novel := isolation.Finding{Runtime: "kata-qemu", Class: isolation.ClassVM, State: isolation.StateUnusable, Reason: strings.Repeat("it\nrained… ", 5000)}
	gvisor := isolation.Finding{Runtime: "gvisor", Class: isolation.ClassSandbox, State: isolation.StateVerified}
	r := Plan(Input{
		Nodes: []Node{{State: fleet.NodeReady, Fresh: []bool{true, true}, Node: &fleet.Node{ID: "n", Site: "s",
			Report: &isolation.Report{Host: isolation.Host{CPUMillis: 1000, MemoryBytes: 1 << 30}, Findings: []isolation.Finding{gvisor, novel}}}}},
		Workloads: []Workload{{StoredWorkload: &fleet.StoredWorkload{Revision: 1, Spec: &fleet.Workload{Kind: fleet.KindService, Name: "web",
			Isolation: fleet.IsolationSpec{Floor: isolation.ClassSandbox}, Placement: fleet.PlacementSpec{Replicas: &one}}}}},
	}, Policy{})
	if len(r.Assign) != 1 {
		t.Fatalf("%+v", r)
	}
	if why := r.Assign[0].Why; len(why) > 310 || strings.Contains(why, "\n") || !strings.HasPrefix(why, "gvisor gives sandbox; no vm on n: it rained") {
		t.Errorf("%d bytes: %.80q", len(why), why)
	}
}
