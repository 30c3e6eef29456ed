package fleet

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

func TestNetworkRulesAreReadBack(t *testing.T) {
	base := func(n *redoubtv1.NetworkRules) *redoubtv1.Workload {
		return &redoubtv1.Workload{Kind: "Service", Name: "web", NetworkRules: n, Containers: []*redoubtv1.Container{{Image: "a"}}}
	}
	for name, c := range map[string]struct{ in, want *redoubtv1.NetworkRules }{
		"none":      {&redoubtv1.NetworkRules{NoEgress: true}, &redoubtv1.NetworkRules{NoEgress: true}},
		"no rules":  {&redoubtv1.NetworkRules{}, nil},
		"allowFrom": {&redoubtv1.NetworkRules{AllowFrom: []string{"ops/b", "a"}}, &redoubtv1.NetworkRules{AllowFrom: []string{"default/a", "ops/b"}}},
		"egress": {
			&redoubtv1.NetworkRules{Egress: []*redoubtv1.EgressRule{{Cidr: "192.0.2.1"}, {Cidr: "10.0.0.0/8", Ports: []string{"443", "1-2"}}}},
			&redoubtv1.NetworkRules{Egress: []*redoubtv1.EgressRule{{Cidr: "192.0.2.1/32"}, {Cidr: "10.0.0.0/8", Ports: []string{"443", "1-2"}, Protocol: "TCP"}}},
		},
	} {
		w, err := WorkloadFromProto(base(c.in))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(c.want, w.Clone().Proto().GetNetworkRules(), protocmp.Transform()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		again, err := WorkloadFromProto(w.Proto())
		if err != nil {
			t.Errorf("%s: read back: %v", name, err)
		}
		if diff := cmp.Diff(w.Proto(), again.Proto(), protocmp.Transform()); diff != "" {
			t.Errorf("%s: read back (-first +second):\n%s", name, diff)
		}
	}
}

// An address that no node can publish on is refused when it is asked for, and
// read where an earlier version stored it.
func TestHostAddressesOfIPv6AreRefusedAnewAndReadFromTheLog(t *testing.T) {
	w := &redoubtv1.Workload{Kind: "Service", Name: "web", Containers: []*redoubtv1.Container{{
		Image: "a", Ports: []*redoubtv1.ContainerPort{{ContainerPort: 80, HostPort: 80, HostIp: "fd00::1"}},
	}}}
	if _, err := NewWorkload(w); err == nil || !strings.Contains(err.Error(), "IPv4 address") {
		t.Errorf("asked for: %v", err)
	}
	if _, err := WorkloadFromProto(w); err != nil {
		t.Errorf("stored: %v", err)
	}
}
