package placement

import (
	"redoubt.dev/redoubt/control/fleet"
)

// Input is the fleet at one moment. Everything in it is read only.
type Input struct {
	Nodes     []Node
	Workloads []Workload
}

// Node is a node as the leader sees it now.
type Node struct {
	*fleet.Node
	State fleet.NodeState
	// Fresh tells for each finding of the report, in its order, whether its
	// proof still counts. A missing entry is not fresh.
	Fresh []bool
	// Hint is what made the leader doubt the node, one line, or "".
	Hint string
}

// Workload is a stored workload with all of its instances that the state
// knows, the ended ones too. A rejected instance keeps its node and runtime
// from being tried again, until the node's generation or the workload's
// revision moves or the instance is removed: whoever removes it decides when
// the next try is due.
type Workload struct {
	*fleet.StoredWorkload
	Instances []*fleet.Instance
}

// Policy is how careful a plan is.
type Policy struct {
	// MaxUnavailable copies of a service (of each site, with perSite) may be
	// down because of a change of its spec. 0 means 1.
	MaxUnavailable int
	// MaxAssign bounds the assignments of one plan; what is left over comes
	// with the next. 0 means no bound.
	MaxAssign int
}

func (p Policy) maxUnavailable() int { return max(p.MaxUnavailable, 1) }
