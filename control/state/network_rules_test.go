package state

import (
	"testing"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

func TestNetworkRulesNeedServersThatKnowThem(t *testing.T) {
	put := func(n *redoubtv1.NetworkRules) *redoubtv1.Command {
		return &redoubtv1.Command{Operations: []*redoubtv1.Operation{{Operation: &redoubtv1.Operation_PutWorkload{
			PutWorkload: &redoubtv1.PutWorkload{Workload: &redoubtv1.Workload{NetworkRules: n}},
		}}}}
	}
	if got := RequiredLevel(put(nil)); got != BaseLevel {
		t.Errorf("a workload without rules needs level %d; want %d", got, BaseLevel)
	}
	if got := RequiredLevel(put(&redoubtv1.NetworkRules{NoEgress: true})); got != NetworkRulesLevel {
		t.Errorf("a workload with rules needs level %d; want %d", got, NetworkRulesLevel)
	}
}
