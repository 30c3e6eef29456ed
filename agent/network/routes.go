package network

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// addresses are the host's own.
func (l *links) addresses() ([]netip.Addr, error) {
	all, err := retry(func() ([]netlink.Addr, error) { return l.host.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var out []netip.Addr
	for _, a := range all {
		if p, ok := prefix(a.IPNet); ok {
			out = append(out, p.Addr())
		}
	}
	return out, nil
}

// routed lists what the host reaches by itself or by a route other than the
// default one.
func (l *links) routed() ([]netip.Prefix, error) {
	all := &netlink.Route{Table: unix.RT_TABLE_UNSPEC}
	routes, err := retry(func() ([]netlink.Route, error) {
		return l.host.RouteListFiltered(netlink.FAMILY_V4, all, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	own, err := find(l.host, l.names.host)
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, r := range routes {
		if r.Dst == nil || own != nil && r.LinkIndex == own.Attrs().Index {
			continue
		}
		if p, ok := prefix(r.Dst); ok && p.Bits() > 0 {
			out = append(out, p)
		}
	}
	return out, nil
}

// uplink is the link that the default route uses, nil if there is none.
func (l *links) uplink() (netlink.Link, error) {
	routes, err := retry(func() ([]netlink.Route, error) { return l.host.RouteList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	best, metric := 0, 0
	for _, r := range routes {
		isDefault := r.Dst == nil || r.Dst.IP.IsUnspecified()
		if isDefault && r.LinkIndex > 0 && (best == 0 || r.Priority < metric) {
			best, metric = r.LinkIndex, r.Priority
		}
	}
	if best == 0 {
		return nil, nil
	}
	link, err := l.host.LinkByIndex(best)
	if err != nil {
		return nil, nil // it went away meanwhile
	}
	return link, nil
}

// uplinkMTU is the MTU of the uplink.
func (l *links) uplinkMTU() (int, error) {
	link, err := l.uplink()
	if err == nil && link != nil && link.Attrs().MTU >= 576 {
		return min(link.Attrs().MTU, 65535), nil
	}
	return 1500, err
}

// uplinkName is "" where there is no uplink.
func (l *links) uplinkName() (string, error) {
	link, err := l.uplink()
	if err != nil || link == nil {
		return "", err
	}
	return link.Attrs().Name, nil
}
