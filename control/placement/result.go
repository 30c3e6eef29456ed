package placement

import (
	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/isolation"
)

// Result is what a plan wants. Assign is in the order in which it must be
// proposed, since each of a workload's takes the next ordinal.
type Result struct {
	Assign []Assign
	Stop   []Stop
	// Explanations has one entry for every workload, sorted by namespace and
	// name. Groups, Rejections and Fixes are filled where something is
	// pending; Explain fills them for any workload.
	Explanations []Explanation
	ScoreVersion int
}

// Assign is an instance to start. Its UID, Fence and Stop are left empty.
type Assign struct {
	fleet.Assignment
	Ordinal uint64
	Score   float64
}

// Stop is an instance to end.
type Stop struct {
	UID, Namespace, Workload, Instance string
	Node                               isolation.NodeID
	Why                                string
}

// Codes of rejections beyond those of package isolation.
const (
	CodeSiteMismatch  = "site-mismatch"
	CodeCordoned      = "cordoned"
	CodeSuspect       = "suspect"
	CodeSilent        = "silent"
	CodeLost          = "lost"
	CodeNotReported   = "not-reported"
	CodeNoRuntime     = "no-runtime"
	CodeNoRoomCPU     = "no-room-cpu"
	CodeNoRoomMemory  = "no-room-memory"
	CodeHostPortTaken = "host-port-taken"
	CodeRefused       = "refused"
)

// Rejection is one reason of one node, about one runtime if Runtime is set.
type Rejection struct {
	Node        isolation.NodeID
	Site        isolation.SiteID
	Runtime     isolation.Name
	Variant     string
	Code        string
	Reason, Fix string
	shortBy     int64 // of cpu or memory, where Code says so
}

// ReasonGroup is one reason with every node that it holds for, sorted.
type ReasonGroup struct {
	Code, Reason, Fix string
	Nodes             []isolation.NodeID
}

// Placed is where one instance runs or would run.
type Placed struct {
	Instance string
	Node     isolation.NodeID
	Site     isolation.SiteID
	Runtime  isolation.Name
	Variant  string
	Class    isolation.Class
	Score    float64
	Why      string
	Action   string // ActionStart, ActionKeep or ActionStop
}

// What a plan does with an instance.
const (
	ActionStart = "start"
	ActionKeep  = "keep"
	ActionStop  = "stop"
)

// Counterfactual is a change that would help, and what would come of it.
type Counterfactual struct {
	Change, Effect string
	cost           int
}

// Explanation answers "why here, why not there, what would help".
type Explanation struct {
	Namespace, Workload string
	// Summary is one or two sentences for a tired person.
	Summary string
	Placed  []Placed // sorted by instance
	Pending int
	// Groups are the deciding reasons: of a pending workload why no node takes
	// it, of a placed one why nothing stronger does.
	Groups []ReasonGroup
	// Rejections are all reasons of all nodes, sorted by node.
	Rejections []Rejection
	// Fixes are changes that would help, the smallest first.
	Fixes           []Counterfactual
	ScoreVersion    int
	NodesConsidered int
}

// Pending tells in one line what is pending, "" if nothing is.
func (e Explanation) Why() string {
	if e.Pending == 0 {
		return ""
	}
	return e.Summary
}
