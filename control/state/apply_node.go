package state

import (
	"cmp"
	"reflect"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/isolation"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// putReport takes a node's word of itself. Its generation only moves forward;
// the same generation with other facts is refused, since a plan is checked by
// generation. It clears the lost mark: the node is back.
func (a *apply) putReport(op *redoubtv1.PutReport) (outcome, error) {
	id := isolation.NodeID(op.GetReport().GetNode())
	before, ok := a.Node(nil, id)
	if !ok {
		return outcome{}, refuse(codes.NotFound, "node %.40q is not enrolled; enrol it with a join token", id)
	}
	if n := proto.Size(op.GetReport()); n > maxReport {
		return outcome{}, refuse(codes.InvalidArgument, "node %s: its report has %d bytes, at most %d are kept", id, n, maxReport)
	}
	report, err := ReportFromProto(op.GetReport())
	if err == nil {
		err = checkReport(report)
	}
	if err != nil {
		return outcome{}, refuse(codes.InvalidArgument, "report of node %s: %v", id, err)
	}
	if err := texts("agent version", op.GetAgentVersion(), "gossip address", op.GetGossipAddress()); err != nil {
		return outcome{}, err
	}
	if report.Site != before.Site {
		return outcome{}, refuse(codes.FailedPrecondition, "node %s is enrolled in site %s and reports from %q; moving it takes a token that names it", id, before.Site, report.Site)
	}
	n := *before
	n.AgentVersion, n.GossipAddress, n.Lost = op.GetAgentVersion(), op.GetGossipAddress(), false
	switch {
	case report.Generation < before.Generation():
		return outcome{}, refuse(codes.FailedPrecondition, "node %s reports generation %d after %d: it never moves back", id, report.Generation, before.Generation())
	case report.Generation == before.Generation() && before.Report != nil:
		if !sameFacts(report, before.Report) {
			return outcome{}, refuse(codes.FailedPrecondition, "node %s reports other facts under generation %d: changed facts need a new one", id, report.Generation)
		}
	default:
		n.Report = report
	}
	if nodesEqual(&n, before) {
		return outcome{revision: before.Revision, result: Unchanged}, nil
	}
	n.Revision = a.index
	a.put(tableNodes, &n)
	a.noteReport(before, &n)
	return outcome{revision: a.index, result: Changed}, nil
}

// checkReport refuses what placement could not reckon with, and sorts.
func checkReport(r *isolation.Report) error {
	switch {
	case r.Generation == 0:
		return refuse(codes.InvalidArgument, "it has no generation")
	case r.Host.CPUMillis < 0 || r.Host.MemoryBytes < 0:
		return refuse(codes.InvalidArgument, "negative capacity (cpu %dm, memory %d)", r.Host.CPUMillis, r.Host.MemoryBytes)
	case !(r.Host.KVM.Rate >= 0):
		return refuse(codes.InvalidArgument, "the KVM rate %v is no rate", r.Host.KVM.Rate)
	case len(r.Findings) > maxFindings:
		return refuse(codes.InvalidArgument, "%d findings, at most %d", len(r.Findings), maxFindings)
	}
	slices.SortStableFunc(r.Findings, compareFindings)
	for i, f := range r.Findings {
		switch {
		case f.Runtime == "":
			return refuse(codes.InvalidArgument, "a finding names no runtime")
		case f.State == isolation.StateVerified && f.Class == isolation.ClassUnknown:
			return refuse(codes.InvalidArgument, "%s is verified as no class", f.Runtime)
		case !share(f.Terms.VM) || !share(f.Terms.Sandbox):
			return refuse(codes.InvalidArgument, "%s has a level outside 0 to 1 (vm %v, sandbox %v)", f.Runtime, f.Terms.VM, f.Terms.Sandbox)
		case f.OverheadMemory < 0:
			return refuse(codes.InvalidArgument, "%s has a negative overhead", f.Runtime)
		case i > 0 && compareFindings(r.Findings[i-1], f) == 0:
			return refuse(codes.InvalidArgument, "two findings of %s %s", f.Runtime, f.Variant)
		}
	}
	return nil
}

// share is false for NaN, too, which would equal nothing and rank anywhere.
func share(l isolation.Level) bool { return l >= 0 && l <= 1 }

func compareFindings(a, b isolation.Finding) int {
	return cmp.Or(cmp.Compare(a.Runtime, b.Runtime), cmp.Compare(a.Variant, b.Variant))
}

// sameFacts compares but for the age of proofs, which is not of the generation.
func sameFacts(a, b *isolation.Report) bool {
	strip := func(r *isolation.Report) isolation.Report {
		c := *r
		c.Findings = slices.Clone(r.Findings)
		for i := range c.Findings {
			c.Findings[i].Age = 0
		}
		return c
	}
	return reflect.DeepEqual(strip(a), strip(b))
}

// nodesEqual compares two versions of a node; a report is replaced, not changed.
func nodesEqual(a, b *fleet.Node) bool { return *a == *b }

func (a *apply) setNodeMark(op *redoubtv1.SetNodeMark) (outcome, error) {
	before, ok := a.Node(nil, isolation.NodeID(op.GetNode()))
	if !ok {
		return outcome{}, refuse(codes.NotFound, "node %.40q is not enrolled", op.GetNode())
	}
	n := *before
	if op.Cordoned != nil {
		n.Cordoned = op.GetCordoned()
	}
	if op.Lost != nil {
		n.Lost = op.GetLost()
	}
	if nodesEqual(&n, before) {
		return outcome{revision: before.Revision, result: Unchanged}, nil
	}
	n.Revision = a.index
	a.put(tableNodes, &n)
	switch {
	case n.Lost && !before.Lost:
		a.noteNode(&n, fleet.ByLeader, fleet.ReasonLost, true, "silent for so long that its work is replaced")
	case n.Cordoned && !before.Cordoned:
		a.noteNode(&n, fleet.ByLeader, fleet.ReasonCordoned, false, "it gets no new work")
	case !n.Cordoned && before.Cordoned:
		a.noteNode(&n, fleet.ByLeader, fleet.ReasonUncordoned, false, "it gets new work again")
	}
	return outcome{revision: a.index, result: Changed}, nil
}
