package placement

import (
	"fmt"
	"slices"
	"strings"

	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/isolation"
)

// summary is one or two sentences.
func (t *turn) summary(e Explanation) string {
	name := t.Spec.Name
	desired, kept := 0, 0
	for _, g := range t.groups {
		desired += g.desired
	}
	for _, p := range e.Placed {
		if p.Action != ActionStop {
			kept++
		}
	}
	leaving := len(e.Placed) - kept
	switch {
	case t.Stopping && leaving == 0:
		return name + " is stopped."
	case t.Stopping:
		return fmt.Sprintf("%s is stopping: %s to end.", name, plural(leaving, "instance is still", "instances are still"))
	case t.Spec.Kind == fleet.KindJob && t.jobComplete():
		return fmt.Sprintf("%s is complete: %d of %d succeeded.", name, t.Completions, t.Spec.Job.Completions)
	case t.Spec.Kind == fleet.KindJob && t.jobFailed():
		return fmt.Sprintf("%s has failed: %s. Look at its logs; to try again, stop it and apply it again.", name, t.failedWhy())
	case e.Pending > 0 && kept == 0:
		return fmt.Sprintf("%s is pending: %s", name, t.lack())
	case e.Pending > 0:
		return fmt.Sprintf("%s has %d of %d placed, %s: %s", name, kept, desired, plural(e.Pending, "is pending", "are pending"), t.lack())
	case desired == 0 && kept == 0 && t.Spec.Placement.PerSite != nil && *t.Spec.Placement.PerSite > 0:
		return fmt.Sprintf("%s is pending: no node has joined yet.", name)
	case desired == 0 && kept == 0:
		return fmt.Sprintf("%s is scaled to none.", name)
	}
	return t.placedSummary(e, desired, kept, leaving)
}

// placedSummary says what everything runs on, and what the workload wished for.
func (t *turn) placedSummary(e Explanation, desired, kept, leaving int) string {
	var b strings.Builder
	var on []string
	unmet := false
	for _, p := range e.Placed {
		if p.Action == ActionStop {
			continue
		}
		unmet = unmet || p.Class < t.req.Prefer
		what := fmt.Sprintf("%s (%s, %.2f)", p.Runtime, p.Class, p.Score)
		if !slices.Contains(on, what) {
			on = append(on, what)
		}
	}
	fmt.Fprintf(&b, "%s has %d of %d placed", t.Spec.Name, kept, desired)
	if len(on) > 0 {
		fmt.Fprintf(&b, ", on %s", list(on))
	}
	if leaving > 0 {
		fmt.Fprintf(&b, "; %s", plural(leaving, "is stopping", "are stopping"))
	}
	b.WriteString(".")
	if unmet {
		fmt.Fprintf(&b, " It prefers %s, which %s.", t.req.Prefer, t.cannot(t.req.Prefer))
	}
	if t.note != "" {
		fmt.Fprintf(&b, " But %s.", t.note)
	}
	return b.String()
}

// lack says what keeps the pending copies from being placed.
func (t *turn) lack() string {
	if t.policy.MaxAssign > 0 && t.ledger.assigns >= t.policy.MaxAssign {
		return "its turn comes with the next plan."
	}
	inPlay := t.inPendingSites()
	if len(t.nodes) == 0 {
		return "no node has joined yet."
	}
	var missing, present []string
	for _, s := range t.pendingSites() {
		if slices.Contains(t.ledger.sites, s) {
			present = append(present, s)
		} else {
			missing = append(missing, s)
		}
	}
	if len(missing) > 0 && len(present) == 0 {
		have := fmt.Sprintf(" (there are nodes in %s)", list(t.ledger.sites))
		if len(missing) == 1 {
			return fmt.Sprintf("site %s has no node%s.", missing[0], have)
		}
		return fmt.Sprintf("sites %s have no node%s.", list(missing), have)
	}
	verb := fmt.Sprintf("its floor is %s", t.Spec.Isolation.Floor)
	class := t.Spec.Isolation.Floor
	if t.req.Pend && t.req.Prefer > class {
		class = t.req.Prefer
		verb = fmt.Sprintf("it waits for %s", class)
	}
	where := ""
	if len(present) > 0 && len(present) < len(t.ledger.sites) {
		where = " in " + list(present)
	}
	return fmt.Sprintf("%s, and %s.", verb, t.obstacle(class, where, inPlay))
}

// pendingSites are the sites in which a copy is lacking: those of the groups
// that lack one, or all that the workload names.
func (t *turn) pendingSites() (sites []string) {
	for _, g := range t.groups {
		switch {
		case g.pending == 0:
		case g.site != "":
			sites = append(sites, g.site)
		default:
			sites = append(sites, t.demand.sites...)
		}
	}
	slices.Sort(sites)
	return slices.Compact(sites)
}

// obstacle says what all nodes that are in play lack for class. where is
// " in SITE", or "" if that goes without saying.
func (t *turn) obstacle(class isolation.Class, where string, inPlay func(*account) bool) string {
	verified, reported, codes := 0, 0, map[string]int{}
	for _, a := range t.nodes {
		if !inPlay(a) || !t.named(a) {
			continue
		}
		if a.Report != nil {
			reported++
		}
		ranked := t.rank(a, t.req)
		if len(ranked) == 0 || !ranked[0].OK() {
			continue
		}
		verified++
		first := CodeNoRoomMemory
		for _, r := range t.judge(a, t.demand).deciding() {
			if r.Runtime == "" || r.Code == CodeNoRoomCPU || r.Code == CodeNoRoomMemory || r.Code == CodeRefused {
				first = r.Code
				break
			}
		}
		codes[first]++
	}
	if verified == 0 {
		switch {
		case reported == 0:
			return "no node" + where + " has reported yet"
		case t.anyStale(class, inPlay):
			return "no node" + where + " has a fresh proof of one"
		}
		return "no node" + where + " verifies one"
	}
	only := func(cs ...string) bool {
		n := 0
		for _, c := range cs {
			n += codes[c]
		}
		return n == verified
	}
	switch {
	case only(CodeNoRoomCPU, CodeNoRoomMemory):
		return "no node" + where + " that verifies one has room"
	case only(CodeHostPortTaken):
		return "no node" + where + " that verifies one has the host port free"
	case only(CodeSilent, CodeLost, CodeSuspect):
		return "no node" + where + " that verifies one can be reached"
	case only(CodeCordoned):
		return "every node" + where + " that verifies one is cordoned"
	case only(CodeRefused):
		return "every node" + where + " that verifies one refused it"
	}
	return "no node" + where + " that verifies one can take it now"
}

// anyStale tells whether class was verified somewhere, too long ago.
func (t *turn) anyStale(class isolation.Class, inPlay func(*account) bool) bool {
	for _, a := range t.nodes {
		if !inPlay(a) || !t.named(a) || a.Report == nil {
			continue
		}
		for _, f := range a.Report.Findings {
			if f.State == isolation.StateVerified && f.Class >= class && !a.fresh(f) {
				return true
			}
		}
	}
	return false
}

// cannot completes "which …" for a class that was not reached.
func (t *turn) cannot(class isolation.Class) string {
	for _, a := range t.nodes {
		if !t.named(a) || a.Report == nil {
			continue
		}
		for _, f := range a.Report.Findings {
			if f.State == isolation.StateVerified && f.Class >= class && a.fresh(f) && isolation.RunsOrdinaryImages(f.Runtime) {
				return "was not to be had where it was placed"
			}
		}
	}
	return "no node verifies"
}
