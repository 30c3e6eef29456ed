package placement

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/isolation"
)

// demand is a workload as a node meets it.
type demand struct {
	spec     *fleet.Workload
	req      isolation.Requirement
	sites    []string // allowed; empty: any
	revision uint64
	refused  []*fleet.Instance // rejected or given up by agents
}

func (w Workload) demand() demand {
	d := demand{spec: w.Spec, req: w.Spec.Requirement(), sites: w.Spec.Placement.Sites, revision: w.Revision}
	for _, i := range w.Instances {
		p := i.Status.Phase
		if p == fleet.InstanceRejected || p == fleet.InstanceFailed && w.Spec.Kind == fleet.KindService {
			d.refused = append(d.refused, i)
		}
	}
	return d
}

// candidate is a runtime on a node that can take the workload now.
type candidate struct {
	account *account
	choice  isolation.Choice
}

// blockers are the reasons of the node itself, whatever the runtime.
func (a *account) blockers(d demand) (rs []Rejection) {
	add := func(code, fix, format string, args ...any) {
		rs = append(rs, Rejection{Node: a.ID, Site: a.Site, Code: code, Fix: fix, Reason: fmt.Sprintf(format, args...)})
	}
	because := ""
	if a.Hint != "" {
		because = ": " + a.Hint
	}
	if len(d.sites) > 0 && !slices.Contains(d.sites, string(a.Site)) {
		add(CodeSiteMismatch, fmt.Sprintf("add %s to placement.sites", a.Site), "in site %s; placement.sites names %s", a.Site, strings.Join(d.sites, ", "))
	}
	if a.Cordoned {
		add(CodeCordoned, fmt.Sprintf("uncordon %s", a.ID), "cordoned: an operator keeps new work away")
	}
	switch {
	case a.Lost || a.State == fleet.NodeLost:
		add(CodeLost, "bring the node back", "lost: silent for so long that its work was replaced%s", because)
	case a.State == fleet.NodeSuspect:
		add(CodeSuspect, "", "suspect, so it gets nothing new%s", because)
	case a.State == fleet.NodeSilent:
		add(CodeSilent, "look after the node or its link", "silent: no session with a server%s", because)
	case a.State == fleet.NodeDisconnected:
		add(CodeSilent, "look after the site's link", "disconnected: no node of site %s has a session%s", a.Site, because)
	case a.Report == nil || a.State == fleet.NodeEnrolled:
		add(CodeNotReported, "wait for its first report", "enrolled, but has not reported yet")
	case a.State != fleet.NodeReady:
		add(CodeSilent, "", "its state is not known yet%s", because)
	}
	if a.Report != nil && len(a.Report.Findings) == 0 {
		add(CodeNoRuntime, "", "reports no runtime at all")
	}
	for _, p := range d.spec.HostPorts() {
		for _, h := range a.held {
			if slices.ContainsFunc(h.ports, p.Overlaps) {
				add(CodeHostPortTaken, fmt.Sprintf("publish another port than %d, or stop %s", p.Port, h.instance),
					"host port %d/%s is held by %s", p.Port, p.Protocol, h.instance)
			}
		}
	}
	return rs
}

// room is what keeps one runtime from taking the workload on this node.
func (a *account) room(d demand, f isolation.Finding) (rs []Rejection) {
	add := func(r Rejection) {
		r.Node, r.Site, r.Runtime, r.Variant = a.ID, a.Site, f.Runtime, f.Variant
		rs = append(rs, r)
	}
	if short := d.spec.CPUMillis() - a.freeCPU(); short > 0 {
		add(Rejection{Code: CodeNoRoomCPU, shortBy: short,
			Reason: fmt.Sprintf("%s cpu short: %s of %s free, %s needed", fleet.FormatCPU(short),
				fleet.FormatCPU(max(a.freeCPU(), 0)), fleet.FormatCPU(a.host().CPUMillis), fleet.FormatCPU(d.spec.CPUMillis())),
			Fix: fmt.Sprintf("free %s cpu on %s", fleet.FormatCPU(short), a.ID)})
	}
	need := d.spec.MemoryBytes() + f.OverheadMemory
	if short := need - a.freeMemory(); short > 0 {
		own := ""
		if f.OverheadMemory > 0 {
			own = fmt.Sprintf(", %s of them %s's own", size(f.OverheadMemory), f.Runtime)
		}
		add(Rejection{Code: CodeNoRoomMemory, shortBy: short,
			Reason: fmt.Sprintf("%s short: %s of %s free, %s needed%s", size(short), size(max(a.freeMemory(), 0)),
				size(a.host().MemoryBytes), size(need), own),
			Fix: fmt.Sprintf("free %s on %s", size(short), a.ID)})
	}
	for _, i := range d.refused {
		if i.Node == a.ID && i.Runtime == f.Runtime && i.Variant == f.Variant &&
			i.NodeGeneration == a.Generation() && i.Revision == d.revision {
			text := i.Status.Message
			if text == "" {
				text = "its agent gave no reason"
			}
			add(Rejection{Code: CodeRefused, Reason: "the node refused it: " + text})
		}
	}
	return rs
}

// offer is the best runtime of a node that can take the workload now.
func (l *ledger) offer(a *account, d demand) (candidate, bool) {
	ranked := l.rank(a, d.req)
	if len(ranked) == 0 || !ranked[0].OK() || len(a.blockers(d)) > 0 {
		return candidate{}, false
	}
	for _, c := range ranked {
		if !c.OK() {
			break
		}
		if len(a.room(d, c.Finding)) == 0 {
			return candidate{account: a, choice: c}, true
		}
	}
	return candidate{}, false
}

// verdict is everything that is to be said of one node and a demand.
type verdict struct {
	rejections []Rejection
	// able: some runtime has nothing against it. ok: nor has the node, so that
	// it can take the workload.
	able, ok bool
}

// judge lists every reason against a node and each of its runtimes.
func (l *ledger) judge(a *account, d demand) verdict {
	v := verdict{rejections: a.blockers(d)}
	blocked := len(v.rejections) > 0
	for _, c := range l.rank(a, d.req) {
		f := c.Finding
		var own []Rejection
		hopeless := false // nothing about the node's room could help
		for _, r := range c.Rejected {
			own = append(own, Rejection{Node: a.ID, Site: a.Site, Runtime: f.Runtime, Variant: f.Variant, Code: r.Code, Reason: r.Text, Fix: r.Fix})
			hopeless = hopeless || r.Code == isolation.CodeBelowFloor || r.Code == isolation.CodeIncompatible
		}
		if !hopeless {
			own = append(own, a.room(d, f)...)
		}
		v.able = v.able || len(own) == 0
		v.rejections = append(v.rejections, own...)
	}
	v.ok = v.able && !blocked
	return v
}

// best picks where the next copy goes among the nodes that keep accepts: meets
// prefer, class, fewest copies in the site (where sites compete) and on the
// node, then score, fewer syscalls and devices, the emptier node, and names.
func (l *ledger) best(d demand, keep func(*account) bool) (candidate, bool) {
	var best candidate
	var inBest int
	found := false
	k := d.spec.Key()
	inSite := map[isolation.SiteID]int{}
	for _, a := range l.nodes {
		inSite[a.Site] += a.copies[k]
	}
	for _, a := range l.nodes {
		if !keep(a) {
			continue
		}
		c, ok := l.offer(a, d)
		if !ok {
			continue
		}
		if !found || compare(c, best, k, inSite[a.Site], inBest) < 0 {
			best, found, inBest = c, true, inSite[a.Site]
		}
	}
	return best, found
}

func compare(a, b candidate, key string, siteA, siteB int) int {
	s, t := a.choice.Finding.Terms.Surface, b.choice.Finding.Terms.Surface
	meets := func(c candidate) int {
		if c.choice.MeetsPrefer {
			return 0
		}
		return 1
	}
	return cmp.Or(
		cmp.Compare(meets(a), meets(b)),
		cmp.Compare(b.choice.Finding.Class, a.choice.Finding.Class),
		cmp.Compare(siteA, siteB),
		cmp.Compare(a.account.copies[key], b.account.copies[key]),
		cmp.Compare(b.choice.Score, a.choice.Score),
		cmp.Compare(s.Syscalls, t.Syscalls),
		cmp.Compare(s.Devices, t.Devices),
		cmp.Compare(a.account.load(), b.account.load()),
		cmp.Compare(a.account.ID, b.account.ID),
	)
}

// size writes bytes for people: "120 MiB".
func size(n int64) string {
	switch {
	case n >= 1<<30 && n%(1<<30) == 0:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 4<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%d MiB", (n+1<<20-1)>>20)
	case n >= 1<<10:
		return fmt.Sprintf("%d KiB", (n+1<<10-1)>>10)
	}
	return fmt.Sprintf("%d bytes", n)
}
