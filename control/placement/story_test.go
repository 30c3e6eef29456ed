package placement

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/isolation"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

var rewrite = flag.Bool("rewrite", false, "write what the plans say into testdata")

// TestStories runs testdata/*.txt: lines of input, "----", what comes of the
// last line, an empty line. See world.do for the words.
func TestStories(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) < 4 {
		t.Fatalf("stories are missing: %v %v", files, err)
	}
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			w := &world{}
			var out strings.Builder
			for _, part := range strings.Split(strings.TrimSpace(string(data)), "\n\n\n") {
				input, want, _ := strings.Cut(part+"\n", "\n----\n")
				want = strings.Trim(want, "\n")
				var got string
				for _, line := range strings.Split(strings.TrimSuffix(input, "\n----"), "\n") {
					if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
						got = w.do(t, line)
					}
				}
				got = strings.Trim(got, "\n")
				if !*rewrite && got != want {
					t.Errorf("%s\ngot:\n%s\n\nwant:\n%s", input, got, want)
				}
				fmt.Fprintf(&out, "%s\n----\n%s\n\n\n", strings.TrimSuffix(strings.TrimSpace(input), "\n----"), got)
			}
			if *rewrite {
				if err := os.WriteFile(path, []byte(strings.TrimRight(out.String(), "\n")+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// world is a small fleet that plans are applied to.
type world struct {
	nodes     []*Node
	workloads []*Workload
	index     uint64
	policy    Policy
}

func (w *world) input() Input {
	var in Input
	for _, n := range w.nodes {
		in.Nodes = append(in.Nodes, *n)
	}
	for _, x := range w.workloads {
		in.Workloads = append(in.Workloads, *x)
	}
	return in
}

func (w *world) do(t *testing.T, line string) string {
	t.Helper()
	f := fields(line)
	attr := map[string]string{}
	var args []string
	for _, a := range f[1:] {
		if k, v, ok := strings.Cut(a, "="); ok {
			attr[k] = v
		} else {
			args = append(args, a)
		}
	}
	w.index++
	switch f[0] {
	case "node": // node ID site=S cpu=N mem=Q state=S cordoned hint=…
		n := w.node(args[0])
		if n == nil {
			n = &Node{Node: &fleet.Node{ID: isolation.NodeID(args[0]), Report: &isolation.Report{}}, State: fleet.NodeReady}
			w.nodes = append(w.nodes, n)
			n.Report.Node, n.Report.Host = n.ID, isolation.Host{CPUMillis: 2000, MemoryBytes: 1 << 30, Arch: "amd64"}
		}
		n.Cordoned = slices.Contains(args, "cordoned")
		if slices.Contains(args, "silent-yet") {
			n.Report = nil
		}
		for k, v := range attr {
			switch k {
			case "site":
				n.Site = isolation.SiteID(v)
			case "cpu":
				n.Report.Host.CPUMillis, _ = fleet.ParseCPU(v)
			case "mem":
				n.Report.Host.MemoryBytes, _ = fleet.ParseMemory(v)
			case "hint":
				n.Hint = v
			case "state":
				n.State = map[string]fleet.NodeState{"ready": fleet.NodeReady, "suspect": fleet.NodeSuspect, "silent": fleet.NodeSilent,
					"disconnected": fleet.NodeDisconnected, "lost": fleet.NodeLost, "enrolled": fleet.NodeEnrolled}[v]
			}
		}
	case "finding": // finding NODE RUNTIME[/VARIANT] CLASS STATE calls=N overhead=Q reason=… fix=… stale
		n := w.node(args[0])
		name, variant, _ := strings.Cut(args[1], "/")
		class, err := isolation.ParseClass(args[2])
		if err != nil {
			t.Fatal(err)
		}
		g := isolation.Finding{Runtime: isolation.Name(name), Variant: variant, Class: class, Reason: attr["reason"], Fix: attr["fix"]}
		g.State = map[string]isolation.State{"verified": isolation.StateVerified, "installed": isolation.StateInstalled, "unusable": isolation.StateUnusable}[args[3]]
		g.Terms.Surface.SyscallsTotal = 362
		g.Terms.Surface.Syscalls, _ = strconv.Atoi(attr["calls"])
		g.OverheadMemory, _ = fleet.ParseMemory(attr["overhead"])
		i := slices.IndexFunc(n.Report.Findings, func(o isolation.Finding) bool { return o.Runtime == g.Runtime && o.Variant == g.Variant })
		if i < 0 {
			i = len(n.Report.Findings)
			n.Report.Findings, n.Fresh = append(n.Report.Findings, g), append(n.Fresh, true)
		}
		n.Report.Findings[i], n.Fresh[i] = g, !slices.Contains(args, "stale")
	case "service", "job": // service NAME floor= prefer= pend sites=a,b perSite= replicas= mem= cpu= port= env=
		w.apply(t, f[0], args, attr)
	case "stop":
		w.workload(args[0]).Stopping = true
	case "set": // set INSTANCE phase message=…
		i := w.instance(args[0])
		if i == nil {
			t.Logf("there is no instance %s", args[0])
			return ""
		}
		i.Status.Phase = map[string]fleet.InstancePhase{"running": fleet.InstanceRunning, "backoff": fleet.InstanceBackoff, "starting": fleet.InstanceStarting,
			"lost": fleet.InstanceLost, "rejected": fleet.InstanceRejected, "succeeded": fleet.InstanceSucceeded, "failed": fleet.InstanceFailed}[args[1]]
		i.Status.Message = attr["message"]
		x := w.workload(i.Workload)
		switch i.Status.Phase {
		case fleet.InstanceSucceeded:
			x.Completions++
		case fleet.InstanceFailed:
			x.Failures++
		}
	case "plan":
		return w.renderPlan(Plan(w.input(), w.policy))
	case "step": // plan, and let the agents do it
		r := Plan(w.input(), w.policy)
		w.take(r)
		return w.renderPlan(r)
	case "explain":
		e, ok := Explain(w.input(), w.policy, fleet.DefaultNamespace, args[0])
		if !ok {
			return "unknown"
		}
		return renderExplanation(e, slices.Contains(args, "all"))
	default:
		t.Fatalf("unknown word %q", f[0])
	}
	return ""
}

// fields splits at spaces outside of quotes.
func fields(line string) (out []string) {
	var b strings.Builder
	quoted := false
	for _, r := range line + " " {
		switch {
		case r == '"':
			quoted = !quoted
		case r == ' ' && !quoted:
			if b.Len() > 0 {
				out = append(out, b.String())
				b.Reset()
			}
		default:
			b.WriteRune(r)
		}
	}
	return out
}

func (w *world) node(id string) *Node {
	for _, n := range w.nodes {
		if string(n.ID) == id {
			return n
		}
	}
	return nil
}

func (w *world) workload(name string) *Workload {
	for _, x := range w.workloads {
		if x.Spec.Name == name {
			return x
		}
	}
	return nil
}

func (w *world) instance(name string) *fleet.Instance {
	for _, x := range w.workloads {
		for _, i := range x.Instances {
			if i.Instance == name {
				return i
			}
		}
	}
	return nil
}

func (w *world) apply(t *testing.T, kind string, args []string, attr map[string]string) {
	t.Helper()
	number := func(k string) *uint32 {
		if attr[k] == "" {
			return nil
		}
		n, err := strconv.Atoi(attr[k])
		if err != nil {
			t.Fatal(err)
		}
		u := uint32(n)
		return &u
	}
	c := &redoubtv1.Container{Image: "a", Resources: &redoubtv1.Resources{Limits: map[string]string{}, Requests: map[string]string{}}}
	if q := attr["mem"]; q != "" {
		c.Resources.Limits["memory"] = q
	}
	if q := attr["cpu"]; q != "" {
		c.Resources.Requests["cpu"] = q
	}
	if v := attr["env"]; v != "" {
		c.Env = []*redoubtv1.EnvVar{{Name: "V", Value: v}}
	}
	if p := number("port"); p != nil {
		c.Ports = []*redoubtv1.ContainerPort{{ContainerPort: 80, HostPort: *p}}
	}
	p := &redoubtv1.Workload{
		Kind: map[string]string{"service": "Service", "job": "Job"}[kind], Name: args[0],
		Isolation:  &redoubtv1.Isolation{Floor: attr["floor"], Prefer: attr["prefer"]},
		Placement:  &redoubtv1.Placement{PerSite: number("perSite"), Replicas: number("replicas")},
		Containers: []*redoubtv1.Container{c}, RestartPolicy: attr["restart"],
	}
	if slices.Contains(args, "pend") {
		p.Isolation.OnUnavailable = "Pend"
	}
	if s := attr["sites"]; s != "" {
		p.Placement.Sites = strings.Split(s, ",")
	}
	if kind == "job" {
		p.Job = &redoubtv1.Job{Completions: number("completions"), Parallelism: number("parallelism"), BackoffLimit: number("backoffLimit")}
	}
	spec, err := fleet.WorkloadFromProto(p)
	if err != nil {
		t.Fatal(err)
	}
	if x := w.workload(args[0]); x != nil {
		next := *x.StoredWorkload
		next.Spec, next.Revision = &spec, w.index
		x.StoredWorkload = &next
		return
	}
	w.workloads = append(w.workloads, &Workload{StoredWorkload: &fleet.StoredWorkload{Spec: &spec, Revision: w.index, NextOrdinal: 1}})
}

// take lets a plan come true at once: what is told to stop is gone, what is
// assigned runs.
func (w *world) take(r Result) {
	gone := map[string]bool{}
	for _, s := range r.Stop {
		gone[s.UID] = true
	}
	for _, x := range w.workloads {
		x.Instances = slices.DeleteFunc(x.Instances, func(i *fleet.Instance) bool { return gone[i.UID] })
	}
	for _, a := range r.Assign {
		x := w.workload(a.Workload)
		i := &fleet.Instance{Assignment: a.Assignment}
		i.UID, i.Status.Phase = "uid-"+a.Instance, fleet.InstanceRunning
		x.Instances = append(x.Instances, i)
		x.NextOrdinal = a.Ordinal + 1
	}
}

func (w *world) renderPlan(r Result) string {
	var b strings.Builder
	for _, s := range r.Stop {
		fmt.Fprintf(&b, "stop  %s on %s: %s\n", s.Instance, s.Node, s.Why)
	}
	for _, a := range r.Assign {
		fmt.Fprintf(&b, "start %s on %s: %s\n", a.Instance, a.Node, a.Why)
	}
	for _, e := range r.Explanations {
		fmt.Fprintf(&b, "%s\n", e.Summary)
	}
	return b.String()
}

// renderExplanation is much as the CLI shows it.
func renderExplanation(e Explanation, all bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", e.Summary)
	for _, p := range e.Placed {
		fmt.Fprintf(&b, "  %-5s %s on %s (%s): %s\n", p.Action, p.Instance, p.Node, p.Site, p.Why)
	}
	for _, g := range e.Groups {
		var ids []string
		for _, n := range g.Nodes {
			ids = append(ids, string(n))
		}
		fmt.Fprintf(&b, "  %-8s %s   %s\n", plural(len(ids), "node", "nodes"), g.Reason, strings.Join(ids, " "))
	}
	for i, f := range e.Fixes {
		word := "Or         "
		if i == 0 {
			word = "Nearest fix"
		}
		fmt.Fprintf(&b, "%s  %s: %s\n", word, f.Change, f.Effect)
	}
	if all {
		for _, r := range e.Rejections {
			fmt.Fprintf(&b, "  %s %s [%s] %s\n", r.Node, r.Runtime, r.Code, r.Reason)
		}
	}
	return b.String()
}
