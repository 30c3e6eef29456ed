package fleet

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// Bounds of network rules.
const (
	MaxAllowFrom   = 64
	MaxEgress      = 64
	MaxEgressPorts = 16 // entries of one rule
)

// NetworkRules say whom instances may talk to beyond published ports. The zero
// value lets nobody in and instances out to wherever their node can.
type NetworkRules struct {
	AllowFrom []string // NAMESPACE/NAME of workloads on the same node, sorted
	// Limited: connections only to what Egress names, to workloads that let
	// it in, and to the node's resolver.
	Limited bool
	Egress  []EgressRule
}

// EgressRule is somewhere that instances may open connections to.
type EgressRule struct {
	CIDR     netip.Prefix // IPv4
	Ports    []PortRange  // empty: all
	Protocol string       // "TCP", "UDP"; "": every one, and then without ports
}

// PortRange is First to Last, both included.
type PortRange struct{ First, Last uint16 }

func (r PortRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// ParsePortRange reads "443" or "8000-8010".
func ParsePortRange(s string) (PortRange, error) {
	first, last, is := strings.Cut(s, "-")
	if !is {
		last = first
	}
	a, err1 := strconv.ParseUint(strings.TrimSpace(first), 10, 16)
	b, err2 := strconv.ParseUint(strings.TrimSpace(last), 10, 16)
	switch {
	case err1 != nil || err2 != nil || a == 0 || b == 0:
		return PortRange{}, fmt.Errorf("%q is not a port or a range of ports: write 443 or 8000-8010, from 1 to 65535", clip(s))
	case a > b:
		return PortRange{}, fmt.Errorf("%q is a range that ends before it begins; did you mean %d-%d?", clip(s), b, a)
	}
	return PortRange{uint16(a), uint16(b)}, nil
}

func (n NetworkRules) zero() bool { return len(n.AllowFrom) == 0 && !n.Limited }

func (n NetworkRules) clone() NetworkRules {
	n.AllowFrom, n.Egress = slices.Clone(n.AllowFrom), slices.Clone(n.Egress)
	for i := range n.Egress {
		n.Egress[i].Ports = slices.Clone(n.Egress[i].Ports)
	}
	return n
}

// proto is nil for the zero value.
func (n NetworkRules) proto() *redoubtv1.NetworkRules {
	if n.zero() {
		return nil
	}
	p := &redoubtv1.NetworkRules{AllowFrom: slices.Clone(n.AllowFrom), NoEgress: n.Limited && len(n.Egress) == 0}
	for _, e := range n.Egress {
		q := &redoubtv1.EgressRule{Cidr: e.CIDR.String(), Protocol: e.Protocol}
		for _, r := range e.Ports {
			q.Ports = append(q.Ports, r.String())
		}
		p.Egress = append(p.Egress, q)
	}
	return p
}

func (r *reader) networkRules(p *redoubtv1.NetworkRules, w Workload) (n NetworkRules) {
	if p == nil {
		return n
	}
	if w.Network == NetworkNone {
		r.fail("network", "has rules, which do nothing with network none; remove them or set network: bridge")
		return n
	}
	if len(p.GetAllowFrom()) > MaxAllowFrom {
		r.fail("network.allowFrom", "has %d entries, the limit is %d", len(p.GetAllowFrom()), MaxAllowFrom)
		return n
	}
	for i, s := range p.GetAllowFrom() {
		at := fmt.Sprintf("network.allowFrom[%d]", i)
		namespace, name, both := strings.Cut(s, "/")
		if !both {
			namespace, name = w.Namespace, s
		}
		if err := CheckName(name); err != nil {
			r.fail(at, "%s; write NAME, or NAMESPACE/NAME", err)
			continue
		}
		if err := CheckName(namespace); err != nil {
			r.fail(at, "%s; write NAME, or NAMESPACE/NAME", err)
			continue
		}
		full := namespace + "/" + name
		if slices.Contains(n.AllowFrom, full) {
			r.fail(at, "%q is named twice", clip(s))
			continue
		}
		n.AllowFrom = append(n.AllowFrom, full)
	}
	slices.Sort(n.AllowFrom)
	if p.GetNoEgress() && len(p.GetEgress()) > 0 {
		r.fail("network.noEgress", "excludes network.egress; remove one of them")
	}
	if len(p.GetEgress()) > MaxEgress {
		r.fail("network.egress", "has %d entries, the limit is %d", len(p.GetEgress()), MaxEgress)
		return n
	}
	n.Limited = p.GetNoEgress() || len(p.GetEgress()) > 0
	for i, e := range p.GetEgress() {
		n.Egress = append(n.Egress, r.egress(fmt.Sprintf("network.egress[%d]", i), e))
	}
	return n
}

func (r *reader) egress(at string, p *redoubtv1.EgressRule) (e EgressRule) {
	e.CIDR = r.cidr(at+".cidr", p.GetCidr())
	def := ""
	if len(p.GetPorts()) > 0 {
		def = "TCP"
	}
	e.Protocol = r.word(at+".protocol", p.GetProtocol(), def, ProtocolWords)
	if len(p.GetPorts()) > MaxEgressPorts {
		r.fail(at+".ports", "has %d entries, the limit is %d", len(p.GetPorts()), MaxEgressPorts)
		return e
	}
	for i, s := range p.GetPorts() {
		ports, err := ParsePortRange(s)
		if err != nil {
			r.fail(fmt.Sprintf("%s.ports[%d]", at, i), "%s", err)
			continue
		}
		e.Ports = append(e.Ports, ports)
	}
	return e
}

// cidr reads an IPv4 network or address.
func (r *reader) cidr(path, s string) netip.Prefix {
	if s == "" {
		r.fail(path, "is required: an IPv4 network as 10.0.0.0/8, or one address")
		return netip.Prefix{}
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		a, aerr := netip.ParseAddr(s)
		if aerr != nil || a.Zone() != "" {
			r.fail(path, "%q is not a network: write 10.0.0.0/8, or one address", clip(s))
			return netip.Prefix{}
		}
		p = netip.PrefixFrom(a, a.BitLen())
	}
	switch {
	case !p.Addr().Is4():
		r.fail(path, "%q is IPv6, which instances do not have; remove the rule", clip(s))
	case p != p.Masked():
		r.fail(path, "%q has bits beyond its length; did you mean %s?", clip(s), p.Masked())
	default:
		return p
	}
	return netip.Prefix{}
}
