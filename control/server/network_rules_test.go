package server

import (
	"testing"

	"redoubt.dev/redoubt/control/fleet"
)

// An agent refuses a word of network that it does not know, and would skip a
// field that it does not know.
func TestAnOldAgentRefusesNetworkRules(t *testing.T) {
	known := map[string]bool{"": true, "bridge": true, "none": true} // to agents before rules
	for _, limited := range []bool{false, true} {
		i := &fleet.Instance{Assignment: fleet.Assignment{Spec: &fleet.Workload{
			Network: fleet.NetworkBridge, Rules: fleet.NetworkRules{Limited: limited},
		}}}
		got := assignmentsToProto([]*fleet.Instance{i})[0].GetSpec().GetNetwork()
		if known[got] == limited {
			t.Errorf("limited %v: network is %q", limited, got)
		}
	}
}
