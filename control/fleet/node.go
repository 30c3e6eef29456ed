package fleet

import (
	"fmt"
	"time"

	"redoubt.dev/redoubt/isolation"
)

// Node is an enrolled host, as the replicated state knows it. What only the
// leader hears (silence, freshness, load) is not here.
type Node struct {
	ID   isolation.NodeID
	Site isolation.SiteID
	// KeyHash is of the public key that was enrolled; it changes only by a
	// token that names the node.
	KeyHash  string
	Enrolled time.Time
	// Report is the node's own word; nil until the first one.
	Report                      *isolation.Report
	AgentVersion, GossipAddress string
	// Cordoned is an operator's mark: no new work.
	Cordoned bool
	// Lost is the leader's mark: silent for so long that work was replaced.
	// The node's next report clears it.
	Lost bool
	// Revision is the log index of the last change of this value.
	Revision uint64
}

// Generation of the node's report, 0 before the first one.
func (n *Node) Generation() uint64 {
	if n.Report == nil {
		return 0
	}
	return n.Report.Generation
}

// Finding returns what the node's report says of a runtime in a variant.
func (n *Node) Finding(runtime isolation.Name, variant string) (isolation.Finding, bool) {
	if n.Report != nil {
		for _, f := range n.Report.Findings {
			if f.Runtime == runtime && f.Variant == variant {
				return f, true
			}
		}
	}
	return isolation.Finding{}, false
}

// NodeState is what the leader makes of a node now.
type NodeState uint8

const (
	NodeStateUnknown NodeState = iota
	NodeReady
	// NodeSuspect: a hint says that it may be gone. No new work, nothing moves.
	NodeSuspect
	// NodeSilent: no session, while others of its site have one.
	NodeSilent
	// NodeDisconnected: no node of its site has a session; its work waits.
	NodeDisconnected
	// NodeLost: silent for so long that its work was replaced.
	NodeLost
	// NodeEnrolled: has not reported yet.
	NodeEnrolled
)

var nodeStateNames = [...]string{"unknown", "ready", "suspect", "silent", "disconnected", "lost", "enrolled"}

func (s NodeState) String() string {
	if int(s) < len(nodeStateNames) {
		return nodeStateNames[s]
	}
	return fmt.Sprintf("node-state(%d)", uint8(s))
}
