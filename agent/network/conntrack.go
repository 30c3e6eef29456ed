package network

import (
	"errors"
	"fmt"
	"net/netip"

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
