package placement

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/isolation"
)

// why says in one line why a copy got this runtime and nothing stronger.
func (t *turn) why(c candidate) string {
	f := c.choice.Finding
	got := fmt.Sprintf("%s gives %s", isolation.Label(f), f.Class)
	if f.Class == isolation.ClassMicroVM {
		return got + ", the strongest there is"
	}
	above := f.Class + 1
	if !c.choice.MeetsPrefer {
		above = t.req.Prefer
	}
	gs := t.nothingAt(above, func(a *account) bool { return a.Site == c.account.Site })
	if len(gs) == 0 {
		return fmt.Sprintf("%s; nothing stronger is installed in site %s", got, c.account.Site)
	}
	g := gs[0]
	return fmt.Sprintf("%s; no %s on %s: %s", got, above, t.nodesOf(c.account.Site, g.Nodes), g.Reason)
}

// nodesOf names nodes of a site as shortly as can be.
func (t *turn) nodesOf(site isolation.SiteID, nodes []isolation.NodeID) string {
	all := 0
	for _, a := range t.nodes {
		if a.Site == site {
			all++
		}
	}
	switch {
	case len(nodes) == 1:
		return string(nodes[0])
	case len(nodes) == all && all == 2:
		return fmt.Sprintf("either node of %s", site)
	case len(nodes) == all:
		return fmt.Sprintf("any of the %d nodes of %s", all, site)
	}
	return fmt.Sprintf("%d of %d nodes of %s", len(nodes), all, site)
}

// nothingAt groups the reasons for which the nodes that keep accepts do not
// offer class above or a stronger one.
func (t *turn) nothingAt(above isolation.Class, keep func(*account) bool) []ReasonGroup {
	d := t.demand
	d.req.Floor, d.req.Prefer, d.req.Pend = above, isolation.ClassUnknown, false
	var rs []Rejection
	for _, a := range t.nodes {
		if !keep(a) {
			continue
		}
		ranked := t.rank(a, d.req)
		proven := len(ranked) > 0 && ranked[0].OK()
		for _, r := range t.judge(a, d).deciding() {
			// Where the class is not to be had, the node's state is beside the point.
			if r.Code != isolation.CodeBelowFloor && (proven || r.Runtime != "") {
				rs = append(rs, r)
			}
		}
	}
	return gather(rs)
}

// deciding keeps of one node what stands between it and the workload: that its
// site is not asked for, else its own reasons with those of the runtimes that
// come nearest to being taken. What a runtime lacks that is farther off, or
// besides a proof, is in the rejections for whoever wants to know all.
func (v verdict) deciding() (out []Rejection) {
	type id struct {
		runtime isolation.Name
		variant string
	}
	far := map[id]int{}
	nearest := len(tiers)
	for _, r := range v.rejections {
		if r.Code == CodeSiteMismatch {
			return []Rejection{r}
		}
		if r.Runtime != "" {
			k := id{r.Runtime, r.Variant}
			far[k] = max(far[k], tier(r.Code))
		}
	}
	for _, n := range far {
		nearest = min(nearest, n)
	}
	for _, r := range v.rejections {
		if r.Runtime == "" {
			out = append(out, r)
		} else if !v.able && far[id{r.Runtime, r.Variant}] == nearest && tier(r.Code) == nearest {
			out = append(out, r)
		}
	}
	return out
}

// tiers are codes by how far a runtime that they hold for is from being taken.
var tiers = [][]string{
	{CodeNoRoomCPU, CodeNoRoomMemory, CodeRefused},
	{isolation.CodeStale},
	{isolation.CodeNotVerified},
	{isolation.CodePreferUnmet},
	{isolation.CodeBelowFloor, isolation.CodeIncompatible, isolation.CodeArchMismatch},
}

func tier(code string) int {
	return slices.IndexFunc(tiers, func(codes []string) bool { return slices.Contains(codes, code) })
}

// gather groups rejections by what they say: the reason of the most nodes
// first, then the one that is nearest to being lifted.
func gather(rs []Rejection) (groups []ReasonGroup) {
	at := map[string]int{}
	for _, r := range rs {
		i, ok := at[r.Code+"\x00"+r.Reason]
		if !ok {
			i = len(groups)
			at[r.Code+"\x00"+r.Reason] = i
			groups = append(groups, ReasonGroup{Code: r.Code, Reason: r.Reason, Fix: r.Fix})
		}
		if !slices.Contains(groups[i].Nodes, r.Node) {
			groups[i].Nodes = append(groups[i].Nodes, r.Node)
		}
	}
	for i := range groups {
		slices.Sort(groups[i].Nodes)
	}
	slices.SortStableFunc(groups, func(a, b ReasonGroup) int {
		return cmp.Or(
			cmp.Compare(len(b.Nodes), len(a.Nodes)),
			cmp.Compare(distance(a.Code), distance(b.Code)),
			cmp.Compare(a.Reason, b.Reason),
		)
	})
	return groups
}

// distance orders codes by how near the node is to taking the workload.
func distance(code string) int {
	return slices.Index([]string{
		CodeNoRoomCPU, CodeNoRoomMemory, CodeHostPortTaken, isolation.CodeStale, CodeRefused, CodeCordoned, CodeSuspect,
		CodeSilent, CodeLost, CodeNotReported, isolation.CodePreferUnmet, isolation.CodeNotVerified, CodeNoRuntime,
		isolation.CodeIncompatible, isolation.CodeArchMismatch, isolation.CodeBelowFloor, CodeSiteMismatch,
	}, code)
}

// explain describes the turn's outcome. Reasons and remedies are worked out
// where something is pending, or if full is set.
func (t *turn) explain(full bool) Explanation {
	e := Explanation{
		Namespace: t.Spec.Namespace, Workload: t.Spec.Name,
		ScoreVersion: isolation.ScoreVersion, NodesConsidered: len(t.nodes),
		Placed: t.placed(),
	}
	for _, g := range t.groups {
		e.Pending += g.pending
	}
	if e.Pending > 0 || full {
		for _, a := range t.nodes {
			e.Rejections = append(e.Rejections, t.judge(a, t.demand).rejections...)
		}
	}
	switch {
	case e.Pending > 0:
		inPlay := t.inPendingSites()
		var rs []Rejection
		for _, a := range t.nodes {
			if inPlay(a) {
				if v := t.judge(a, t.demand); !v.ok {
					rs = append(rs, v.deciding()...)
				}
			}
		}
		e.Groups = gather(rs)
		e.Fixes = t.fixes(inPlay)
	case full && !t.Stopping:
		if above := t.unreached(e.Placed); above != isolation.ClassUnknown {
			e.Groups = t.nothingAt(above, t.named)
		}
	}
	e.Summary = t.summary(e)
	return e
}

// named accepts the nodes of the sites that the workload may run in.
func (t *turn) named(a *account) bool {
	return len(t.demand.sites) == 0 || slices.Contains(t.demand.sites, string(a.Site))
}

// inPendingSites accepts the nodes of the sites where a copy is lacking; if
// that is no site in particular, every node.
func (t *turn) inPendingSites() func(*account) bool {
	var sites []string
	for _, g := range t.groups {
		if g.pending > 0 && g.site != "" {
			sites = append(sites, g.site)
		}
	}
	return func(a *account) bool { return len(sites) == 0 || slices.Contains(sites, string(a.Site)) }
}

// unreached is the class that the weakest copy might have had and has not.
func (t *turn) unreached(placed []Placed) isolation.Class {
	least := isolation.ClassUnknown
	for _, p := range placed {
		if p.Action != ActionStop && (least == isolation.ClassUnknown || p.Class < least) {
			least = p.Class
		}
	}
	switch {
	case least == isolation.ClassUnknown || least == isolation.ClassMicroVM:
		return isolation.ClassUnknown
	case t.req.Prefer > least:
		return t.req.Prefer
	}
	return least + 1
}

func (t *turn) placed() (list []Placed) {
	for _, i := range t.instances {
		if !i.Live() {
			continue
		}
		p := Placed{
			Instance: i.Instance, Node: i.Node, Site: i.Site, Runtime: i.Runtime, Variant: i.Variant,
			Class: i.Class, Score: t.scoreOf(i), Why: i.Why, Action: ActionKeep,
		}
		if t.told(i) {
			p.Action = ActionStop
			if why := t.stopped[i.UID]; why != "" {
				p.Why = why
			}
		}
		list = append(list, p)
	}
	for _, s := range t.assigns {
		list = append(list, Placed{
			Instance: s.Instance, Node: s.Node, Site: s.Site, Runtime: s.Runtime, Variant: s.Variant,
			Class: s.Class, Score: s.Score, Why: s.Why, Action: ActionStart,
		})
	}
	return list
}

// scoreOf is by what was measured on the live instance, else by what its node
// reports of the runtime now.
func (t *turn) scoreOf(i *fleet.Instance) float64 {
	if m := i.Status.Measured; m != nil {
		return isolation.Score(i.Class, *m)
	}
	if a := t.byID[i.Node]; a != nil {
		if f, ok := a.Finding(i.Runtime, i.Variant); ok {
			return isolation.Score(i.Class, f.Terms)
		}
	}
	return 0
}

// list joins names: "a", "a and b", "a, b and c"; more than four are cut.
func list[T ~string](names []T) string {
	var s []string
	for _, n := range names {
		s = append(s, string(n))
	}
	switch {
	case len(s) == 0:
		return "none"
	case len(s) == 1:
		return s[0]
	case len(s) > 4:
		return fmt.Sprintf("%s and %d more", strings.Join(s[:3], ", "), len(s)-3)
	}
	return strings.Join(s[:len(s)-1], ", ") + " and " + s[len(s)-1]
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
