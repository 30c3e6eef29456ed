package state

import (
	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/isolation"
)

// TombstoneWindow is for how many log entries a removed assignment is
// remembered, so that a session can be told of the removal alone.
const TombstoneWindow = 8192

// Changes are what an agent that knows its assignments as of an earlier version
// has to learn. A version is a log index: "everything up to here".
type Changes struct {
	Version uint64
	// Updated were assigned or told to stop, by uid.
	Updated []*fleet.Instance
	// Removed uids, sorted.
	Removed []string
}

// Empty tells that the agent's knowledge is current but for the version number.
func (c Changes) Empty() bool { return len(c.Updated)+len(c.Removed) == 0 }

// Assignments is the COMPLETE message of a node: everything that is assigned to
// it, and the version that this is. Its watch also closes for a mere status.
func (v *View) Assignments(ws WatchSet, node isolation.NodeID) Changes {
	return Changes{Version: v.Index(), Updated: v.InstancesOf(ws, node)}
}

// AssignmentsSince is the INCREMENTAL message from an earlier version. It
// answers false where that cannot be told and the node needs a COMPLETE: since
// is 0, older than what is remembered here, or newer than this view. A caller
// whose agent knows a newer version first waits for it (Store.Wait), or it
// would hand out the past.
func (v *View) AssignmentsSince(ws WatchSet, node isolation.NodeID, since uint64) (Changes, bool) {
	instances := v.InstancesOf(ws, node)
	m := v.meta()
	if since == 0 || since < m.floor || since > m.index {
		return Changes{}, false
	}
	c := Changes{Version: m.index}
	for _, i := range instances {
		if i.Version > since {
			c.Updated = append(c.Updated, i)
		}
	}
	for _, t := range list[*tombstone](v, nil, tableTombstones, prefixed(indexID), key(string(node))) {
		if t.index > since {
			c.Removed = append(c.Removed, t.uid)
		}
	}
	return c, true
}
