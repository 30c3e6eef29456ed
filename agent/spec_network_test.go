package agent

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"redoubt.dev/redoubt/agent/reconcile"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

func TestNetworkRulesAreTakenWholeOrNotAtAll(t *testing.T) {
	read := func(n *redoubtv1.NetworkRules) (a reconcile.Assignment, err error) {
		err = readSpec(&a, &redoubtv1.Workload{Kind: "Service", Network: "rules", NetworkRules: n, Containers: []*redoubtv1.Container{{Image: "a"}}})
		return a, err
	}
	a, err := read(&redoubtv1.NetworkRules{AllowFrom: []string{"default/a"}, Egress: []*redoubtv1.EgressRule{{Cidr: "10.0.0.0/8", Ports: []string{"443", "1-2"}, Protocol: "TCP"}}})
	want := reconcile.NetworkRules{AllowFrom: []string{"default/a"}, Limited: true, Egress: []reconcile.EgressRule{
		{CIDR: netip.MustParsePrefix("10.0.0.0/8"), Ports: []reconcile.PortRange{{First: 443, Last: 443}, {First: 1, Last: 2}}, Protocol: "tcp"},
	}}
	if diff := cmp.Diff(want, a.NetworkRules, cmpopts.EquateComparable(netip.Prefix{})); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if a, err := read(&redoubtv1.NetworkRules{NoEgress: true}); err != nil || !a.NetworkRules.Limited {
		t.Errorf("egress none: limited %v, %v", a.NetworkRules.Limited, err)
	}
	for _, e := range []*redoubtv1.EgressRule{{}, {Cidr: "x"}, {Cidr: "10.0.0.0/8", Ports: []string{"http"}}, {Cidr: "10.0.0.0/8", Ports: []string{"1-70000"}}} {
		if _, err := read(&redoubtv1.NetworkRules{Egress: []*redoubtv1.EgressRule{e}}); err == nil {
			t.Errorf("%v is taken", e)
		}
	}
}
