package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

func (a *app) nodeListCommand() *cobra.Command {
	c := &cobra.Command{Use: "list", Short: "List nodes with what they have proven", Args: cobra.NoArgs}
	site := c.Flags().String("site", "", "only nodes of that `SITE`")
	return a.listing(c, func(ctx context.Context, f *connection, out *output, _ []string) error {
		resp, err := f.ListNodes(ctx, &redoubtv1.ListNodesRequest{Site: *site})
		if err != nil {
			return fmt.Errorf("list nodes: %w", err)
		}
		return out.message(resp, func(t *table) {
			t.head("NAME", "SITE", "STATE", "STRONGEST", "PROVEN", "CPU", "MEMORY", "INST")
			t.wide("KVM", "KERNEL", "VERSION", "SERVER", "HINT")
			for _, n := range resp.GetNodes() {
				runtimes, strongest := proven(n)
				h := n.GetReport().GetHost()
				cpu, memory := "-", "-"
				if h != nil {
					cpu = cores(n.GetAllocatedCpuMillis()) + "/" + cores(h.GetCpuMillis())
					memory = size(n.GetAllocatedMemoryBytes()) + "/" + size(h.GetMemoryBytes())
				}
				t.row(n.GetId(), n.GetId(), n.GetSite(), marked(nodeState(n)), orDash(class(strongest)), orDash(list(runtimes, 3)), cpu, memory, n.GetInstances(),
					orDash(kvmVerdict(h.GetKvm().GetVerdict())), orDash(h.GetKernel()), orDash(n.GetAgentVersion()), orDash(n.GetSessionServer()), orDash(n.GetHint()))
			}
			t.empty("There are no nodes. `redoubt node join-token` makes the token that one joins with.")
		})
	})
}

func (a *app) nodeStatusCommand() *cobra.Command {
	c := &cobra.Command{Use: "status NODE", Short: "Show what a node has proven, what it lacks and why", Args: names(1, 1, "a node (`redoubt node list`)")}
	return a.listing(c, func(ctx context.Context, f *connection, out *output, args []string) error {
		resp, err := f.GetNode(ctx, &redoubtv1.GetNodeRequest{Id: args[0]})
		if err != nil {
			return fmt.Errorf("status of node %s: %w", args[0], err)
		}
		if out.structured() || out.format == "name" {
			return out.message(resp, func(t *table) {
				t.head("NAME")
				t.row(resp.GetNode().GetId(), resp.GetNode().GetId())
			})
		}
		if err := a.showNode(out, resp); err != nil {
			return err
		}
		return out.eventsBeside(ctx, f, &redoubtv1.EventFilter{Node: args[0]}, "--node "+args[0])
	})
}

func (a *app) showNode(out *output, resp *redoubtv1.GetNodeResponse) error {
	n, width := resp.GetNode(), a.prose()
	var b strings.Builder
	fmt.Fprintf(&b, "%s  site %s  %s\n", out.paint(cell{n.GetId(), bold}), clean(n.GetSite()), out.paint(marked(nodeState(n))))
	if n.GetHint() != "" {
		b.WriteString(hang("  ", n.GetHint(), width))
	}
	h := n.GetReport().GetHost()
	if h == nil {
		b.WriteString("  It has enrolled and not reported yet.\n")
		_, err := fmt.Fprint(out.w, b.String())
		return err
	}
	b.WriteString(hang("  ", fmt.Sprintf("%s; %s of %s cores and %s of %s memory promised", hostText(h),
		cores(n.GetAllocatedCpuMillis()), cores(h.GetCpuMillis()), size(n.GetAllocatedMemoryBytes()), size(h.GetMemoryBytes())), width))
	if n.GetSessionServer() != "" {
		agent := "agent " + orDash(n.GetAgentVersion())
		b.WriteString(hang("  ", fmt.Sprintf("%s, session with server %s, last heard %s ago", agent, n.GetSessionServer(), age(n.GetSilent().AsDuration())), width))
	}
	if end := n.GetSvidExpires(); end != nil {
		b.WriteString(hang("  ", certificateText(time.Until(end.AsTime())), width))
	}
	for _, w := range n.GetWarnings() {
		b.WriteString(hang("  Warning  ", clean(w), width))
	}
	if _, err := fmt.Fprint(out.w, b.String()); err != nil {
		return err
	}
	if err := a.showFindings(out, n); err != nil || len(resp.GetInstances()) == 0 {
		return err
	}
	fmt.Fprintln(out.w)
	return out.table(func(t *table) { instanceTable(t, resp.GetInstances()) })
}

// certificateText says how long the certificate of a node's last session holds.
func certificateText(left time.Duration) string {
	if left <= 0 {
		return "certificate expired " + age(-left) + " ago; the node renews it when it is back"
	}
	return "certificate valid for " + age(left) + "; the node renews it before"
}

// showHost is a host that belongs to no fleet.
func (a *app) showHost(out *output, n *redoubtv1.Node) error {
	h := n.GetReport().GetHost()
	_, err := fmt.Fprintf(out.w, "%s\n%s", out.paint(cell{n.GetId(), bold}),
		hang("  ", fmt.Sprintf("%s; %s cores, %s memory", hostText(h), cores(h.GetCpuMillis()), size(h.GetMemoryBytes())), a.prose()))
	if err != nil {
		return err
	}
	return a.showFindings(out, n)
}

func hostText(h *redoubtv1.HostFacts) string {
	cgroup := "v1"
	if h.GetCgroupV2() {
		cgroup = "v2"
	}
	return fmt.Sprintf("Linux %s, %s, cgroup %s", h.GetKernel(), h.GetArch(), cgroup)
}

// showFindings shows what was proven, and for the rest why not.
func (a *app) showFindings(out *output, n *redoubtv1.Node) error {
	width := a.prose()
	if _, err := fmt.Fprint(out.w, hang("  KVM ", kvmText(n.GetReport().GetHost().GetKvm()), width)+"\n"); err != nil {
		return err
	}
	if err := out.table(func(t *table) { findingTable(t, n) }); err != nil {
		return err
	}
	_, err := fmt.Fprint(out.w, reasons(n.GetReport().GetFindings(), width))
	return err
}

// kvmText says what the probe of a real guest made of KVM.
func kvmText(k *redoubtv1.Kvm) string {
	s := orDash(kvmVerdict(k.GetVerdict()))
	if k.GetReason() != "" {
		s += ": " + k.GetReason()
	}
	if k.GetFix() != "" {
		s += ". Fix: " + k.GetFix()
	}
	return s
}

func findingTable(t *table, n *redoubtv1.Node) {
	t.head("RUNTIME", "CLASS", "STATE", "SCORE", "PROVEN", "SYSCALLS", "DEV")
	t.wide("VERSION", "DIGEST", "OVERHEAD", "SOURCE")
	for i, f := range n.GetReport().GetFindings() {
		name := runtimeName(f.GetRuntime(), f.GetVariant())
		verified := f.GetState() == redoubtv1.FindingState_FINDING_STATE_VERIFIED
		st, score, ago, calls, devices := orDash(findingState(f.GetState())), "-", "-", "-", "-"
		if verified {
			if ago = age(f.GetAge().AsDuration()) + " ago"; !fresh(n, i) {
				st = "stale"
			}
			if i < len(n.GetScores()) {
				score = fmt.Sprintf("%.2f", n.GetScores()[i])
			}
			s := f.GetTerms().GetSurface()
			calls, devices = fmt.Sprintf("%d/%d", s.GetSyscalls(), s.GetSyscallsTotal()), fmt.Sprint(s.GetDevices())
		}
		source := f.GetTerms().GetSurface().GetSource()
		if f.GetTerms().GetSurface().GetMeasured() {
			source = strings.TrimSuffix("measured, "+source, ", ")
		}
		overhead := "-"
		if f.GetOverheadMemoryBytes() > 0 {
			overhead = size(f.GetOverheadMemoryBytes())
		}
		t.row(name, name, class(f.GetClass()), marked(st), score, ago, calls, devices,
			orDash(f.GetVersion()), orDash(f.GetDigest()), overhead, orDash(source))
	}
}

// reasons says for what is not verified why, and what would help; runtimes
// with the same reason together.
func reasons(findings []*redoubtv1.Finding, width int) string {
	type ground struct{ reason, fix string }
	var order []ground
	who := map[ground][]string{}
	for _, f := range findings {
		g := ground{f.GetReason(), f.GetFix()}
		if f.GetState() == redoubtv1.FindingState_FINDING_STATE_VERIFIED || g.reason == "" {
			continue
		}
		if who[g] == nil {
			order = append(order, g)
		}
		who[g] = append(who[g], runtimeName(f.GetRuntime(), f.GetVariant()))
	}
	var b strings.Builder
	for _, g := range order {
		b.WriteString("\n" + hang("", strings.Join(who[g], ", ")+":", width))
		b.WriteString(hang("  Why  ", g.reason, width))
		if g.fix != "" {
			b.WriteString(hang("  Fix  ", g.fix, width))
		}
	}
	return b.String()
}

func (a *app) siteListCommand() *cobra.Command {
	c := &cobra.Command{Use: "list", Short: "List sites", Args: cobra.NoArgs}
	return a.listing(c, func(ctx context.Context, f *connection, out *output, _ []string) error {
		resp, err := f.ListSites(ctx, &redoubtv1.ListSitesRequest{})
		if err != nil {
			return fmt.Errorf("list sites: %w", err)
		}
		return out.message(resp, func(t *table) {
			t.head("NAME", "STATE", "NODES", "READY", "STRONGEST", "INSTANCES")
			for _, s := range resp.GetSites() {
				st := "ready"
				switch {
				case s.GetDisconnected():
					st = "disconnected " + age(s.GetSilent().AsDuration())
				case s.GetReady() == 0:
					st = "silent"
				case s.GetReady() < s.GetNodes():
					st = "partial"
				}
				t.row(s.GetId(), s.GetId(), marked(st), s.GetNodes(), s.GetReady(), orDash(class(s.GetStrongest())), s.GetInstances())
			}
			t.empty("There are no sites: no node has joined yet.")
		})
	})
}
