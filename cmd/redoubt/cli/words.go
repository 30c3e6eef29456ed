package cli

import (
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// word takes the prefix of an enum's constant off: "ISOLATION_CLASS_VM" is vm.
func word(constant, prefix string) string {
	w := strings.ToLower(strings.TrimPrefix(constant, prefix))
	if w == "unspecified" {
		return ""
	}
	return w
}

func class(c redoubtv1.IsolationClass) string { return word(c.String(), "ISOLATION_CLASS_") }

func instancePhase(p redoubtv1.InstancePhase) string { return word(p.String(), "INSTANCE_PHASE_") }

func workloadPhase(p redoubtv1.WorkloadPhase) string { return word(p.String(), "WORKLOAD_PHASE_") }

func findingState(s redoubtv1.FindingState) string { return word(s.String(), "FINDING_STATE_") }

func kvmVerdict(v redoubtv1.KvmVerdict) string { return word(v.String(), "KVM_VERDICT_") }

// orDash keeps a column from looking forgotten.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

var colours = map[string]string{
	"running": green, "ready": green, "verified": green, "completed": green, "succeeded": green, "usable": green,
	"pending": yellow, "starting": yellow, "partial": yellow, "stopping": yellow, "assigned": yellow, "backoff": yellow, "unready": yellow,
	"suspect": yellow, "silent": yellow, "disconnected": yellow, "enrolled": yellow, "stale": yellow, "paravirtual": yellow,
	"failed": red, "lost": red, "rejected": red, "unreachable": red, "unusable": red,
	"disk": red, "failing": red,
}

// marked colours a cell by its first word.
func marked(text string) cell {
	first, _, _ := strings.Cut(text, " ")
	return cell{text: text, colour: colours[strings.TrimRight(first, ",")]}
}

func since(t *timestamppb.Timestamp) string {
	if t == nil {
		return "-"
	}
	return age(time.Since(t.AsTime()))
}

// phaseOf is an instance's phase, which is only the last word of a node that
// is not heard.
func phaseOf(i *redoubtv1.Instance) string {
	p := orDash(instancePhase(i.GetStatus().GetPhase()))
	if i.GetStatus() == nil || i.GetStatus().GetPhase() == redoubtv1.InstancePhase_INSTANCE_PHASE_UNSPECIFIED {
		p = "assigned"
	}
	if p == "running" && i.GetStatus().GetNotReady() != "" {
		p = "unready"
	}
	if i.GetAssignment().GetStop() && !ended(i) {
		p = "stopping"
	}
	switch i.GetNodeState() {
	case redoubtv1.NodeState_NODE_STATE_SILENT, redoubtv1.NodeState_NODE_STATE_DISCONNECTED, redoubtv1.NodeState_NODE_STATE_LOST:
		if !ended(i) && p != "lost" {
			p += "?"
		}
	}
	return p
}

// ended tells whether the agent has said that nothing of the instance is left.
func ended(i *redoubtv1.Instance) bool {
	switch i.GetStatus().GetPhase() {
	case redoubtv1.InstancePhase_INSTANCE_PHASE_SUCCEEDED, redoubtv1.InstancePhase_INSTANCE_PHASE_FAILED,
		redoubtv1.InstancePhase_INSTANCE_PHASE_STOPPED, redoubtv1.InstancePhase_INSTANCE_PHASE_REJECTED:
		return true
	}
	return false
}

// live tells whether the instance is there, as far as anyone knows.
func live(i *redoubtv1.Instance) bool {
	return !ended(i) && i.GetStatus().GetPhase() != redoubtv1.InstancePhase_INSTANCE_PHASE_LOST
}

func runtimeName(runtime, variant string) string {
	if variant == "" {
		return runtime
	}
	return runtime + " (" + variant + ")"
}

func nodeState(n *redoubtv1.Node) string {
	s := orDash(word(n.GetState().String(), "NODE_STATE_"))
	switch n.GetState() {
	case redoubtv1.NodeState_NODE_STATE_SILENT, redoubtv1.NodeState_NODE_STATE_DISCONNECTED, redoubtv1.NodeState_NODE_STATE_LOST:
		if n.GetSilent() != nil {
			s += " " + age(n.GetSilent().AsDuration())
		}
	}
	if n.GetCordoned() {
		s += ", cordoned"
	}
	return s
}

// fresh tells whether placement may count on the node's i-th finding.
func fresh(n *redoubtv1.Node, i int) bool {
	return i < len(n.GetFresh()) && n.GetFresh()[i] &&
		n.GetReport().GetFindings()[i].GetState() == redoubtv1.FindingState_FINDING_STATE_VERIFIED
}

// proven lists the runtimes that are verified and fresh, strongest first, and
// the strongest class of them.
func proven(n *redoubtv1.Node) (runtimes []string, strongest redoubtv1.IsolationClass) {
	type entry struct {
		name  string
		class redoubtv1.IsolationClass
	}
	var all []entry
	for i, f := range n.GetReport().GetFindings() {
		if fresh(n, i) && !slices.ContainsFunc(all, func(e entry) bool { return e.name == f.GetRuntime() && e.class == f.GetClass() }) {
			all = append(all, entry{f.GetRuntime(), f.GetClass()})
		}
	}
	slices.SortStableFunc(all, func(a, b entry) int { return int(b.class) - int(a.class) })
	for _, e := range all {
		runtimes = append(runtimes, e.name)
		strongest = max(strongest, e.class)
	}
	return runtimes, strongest
}
