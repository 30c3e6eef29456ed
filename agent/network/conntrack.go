package network

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// forget drops the connections that the host tracks to or from addr, so that
// they do not reach whoever gets the address or the port next.
func (l *links) forget(addrs netip.Prefix) error {
	from, to := &netlink.ConntrackFilter{}, &netlink.ConntrackFilter{}
	if err := errors.Join(
		from.AddIPNet(netlink.ConntrackOrigSrcIP, ipnet(addrs)),
		to.AddIPNet(netlink.ConntrackReplySrcIP, ipnet(addrs)),
	); err != nil {
		return err
	}
	if _, err := l.host.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, from, to); err != nil && !gone(err) {
		return fmt.Errorf("forget connections of %s: %w", addrs, err)
	}
	return nil
}

// forgetPorts drops the tracked flows to the published UDP ports.
func (l *links) forgetPorts(ports []Port) error {
	var filters []netlink.CustomConntrackFilter
	for _, p := range ports {
		if p.Protocol != "udp" {
			continue
		}
		f := &netlink.ConntrackFilter{}
		if err := errors.Join(f.AddProtocol(unix.IPPROTO_UDP), f.AddPort(netlink.ConntrackOrigDstPort, p.Host)); err != nil {
			return err
		}
		filters = append(filters, f)
	}
	if _, err := l.host.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, filters...); err != nil && !gone(err) {
		return fmt.Errorf("forget flows to published ports: %w", err)
	}
	return nil
}

// trespassers are tracked connections that the rules would not have let begin,
// or not so: they began while somebody else had taken the rules away. The rules
// hold the forbidden ones up. But one that went out untranslated would never get
// an answer, for as long as it is used, and one that missed the published port
// would go on missing it; so all of them are forgotten, and begin again.
type trespassers struct {
	subnet    netip.Prefix
	host      []netip.Addr // its own addresses
	policies  map[netip.Addr]Policy
	published map[netip.Addr][]Port
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (t trespassers) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	source, ok1 := netip.AddrFromSlice(f.Forward.SrcIP)
	aim, ok2 := netip.AddrFromSlice(f.Forward.DstIP) // as the sender named it
	goal, ok3 := netip.AddrFromSlice(f.Reverse.SrcIP)
	back, ok4 := netip.AddrFromSlice(f.Reverse.DstIP)
	if !ok1 || !ok2 || !ok3 || !ok4 {
		return false
	}
	source, aim, goal, back = source.Unmap(), aim.Unmap(), goal.Unmap(), back.Unmap()
	tcp, udp := f.Forward.Protocol == unix.IPPROTO_TCP, f.Forward.Protocol == unix.IPPROTO_UDP
	translated, port := aim != goal, f.Forward.DstPort
	local := slices.Contains(t.host, aim)
	switch {
	case slices.Contains(t.host, source):
		return false // the host may do all
	case !t.subnet.Contains(source):
		if udp && local && !translated {
			return t.publishes(aim, port) // it has missed the instance
		}
		return t.subnet.Contains(aim) && !translated
	case aim == gateway(t.subnet) && port == dnsPortNumber && (tcp || udp):
		return false
	case local && !translated:
		return f.Forward.Protocol != unix.IPPROTO_ICMP || t.refuses(source, aim, f)
	case closed(aim):
		return true
	case t.policies[aim].admits(t.policies[source].Workload):
		return false
	case t.subnet.Contains(aim):
		return true
	case !translated && back == source:
		return true // it was not masqueraded
	}
	return t.refuses(source, aim, f)
}

// refuses tells whether the egress rules of an instance do.
func (t trespassers) refuses(source, aim netip.Addr, f *netlink.ConntrackFlow) bool {
	p := t.policies[source]
	return p.Limited && !slices.ContainsFunc(p.Egress, func(e EgressRule) bool {
		return e.allows(aim, f.Forward.Protocol, f.Forward.DstPort)
	})
}

func (t trespassers) publishes(at netip.Addr, port uint16) bool {
	for _, ports := range t.published {
		for _, p := range ports {
			if p.Protocol == "udp" && p.Host == port && (p.everywhere() || p.HostIP == at) {
				return true
			}
		}
	}
	return false
}

// expel drops them.
func (l *links) expel(t trespassers) (err error) {
	if t.host, err = l.addresses(); err != nil {
		return err
	}
	if _, err := l.host.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, t); err != nil && !gone(err) {
		return fmt.Errorf("forget connections that began without rules: %w", err)
	}
	return nil
}
