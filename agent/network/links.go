package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// links makes and checks a node's interfaces. The caller serialises.
type links struct {
	names names
	host  *netlink.Handle
	// inside and space are the switch, nil until it was found or made.
	inside *netlink.Handle
	space  *namespace
}

func openLinks(names names, host *namespace) (*links, error) {
	h, err := handleAt(host, unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	return &links{names: names, host: h}, nil
}

func (l *links) close() {
	l.host.Close()
	l.leaveSwitch()
}

func (l *links) leaveSwitch() {
	if l.inside != nil {
		l.inside.Close()
		l.space.fd.Close()
		l.inside, l.space = nil, nil
	}
}

// enterSwitch opens the switch that is pinned at path, or makes it.
func (l *links) enterSwitch(path string) (made bool, err error) {
	if l.inside != nil && pinned(path) {
		if ns, err := openNamespace(path); err == nil {
			ns.fd.Close()
			if ns.inode == l.space.inode {
				return false, nil
			}
		}
	}
	l.leaveSwitch()
	var ns *namespace
	if pinned(path) {
		ns, err = openNamespace(path)
	} else {
		made = true
		if err = unpin(path); err == nil {
			ns, err = createNamespace(path, func() error { return setPresent(switchSettings) })
		}
	}
	if err != nil {
		return made, err
	}
	h, err := handleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return made, errors.Join(err, ns.fd.Close())
	}
	l.inside, l.space = h, ns
	return made, nil
}

// ensureBridge makes the bridge and joins it to the host. It returns what it
// had to make.
func (l *links) ensureBridge(mtu int) (made []string, err error) {
	bridge, err := find(l.inside, l.names.bridge)
	if err != nil {
		return nil, err
	}
	if bridge == nil {
		made = append(made, "bridge")
		snooping := false
		b := &netlink.Bridge{LinkAttrs: attrs(l.names.bridge, mtu), MulticastSnooping: &snooping}
		if err := l.inside.LinkAdd(b); err != nil {
			return made, fmt.Errorf("add bridge %s: %w", l.names.bridge, err)
		}
		if bridge, err = l.inside.LinkByName(l.names.bridge); err != nil {
			return made, fmt.Errorf("find bridge %s: %w", l.names.bridge, err)
		}
	}
	if err := up(l.inside, bridge); err != nil {
		return made, err
	}
	host, err := find(l.host, l.names.host)
	if err != nil {
		return made, err
	}
	uplink, err := find(l.inside, l.names.uplink)
	if err != nil {
		return made, err
	}
	if host != nil && uplink == nil {
		// Its other end is in a switch that is gone.
		if err := l.host.LinkDel(host); err != nil && !gone(err) {
			return made, fmt.Errorf("remove stale link %s: %w", l.names.host, err)
		}
		host = nil
	}
	if host == nil {
		made = append(made, "host link")
		a := attrs(l.names.host, mtu)
		a.HardwareAddr = l.names.hardware()
		v := &netlink.Veth{LinkAttrs: a, PeerName: l.names.uplink, PeerNamespace: netlink.NsFd(l.space.fd.Fd())}
		if err := l.host.LinkAdd(v); err != nil {
			return made, fmt.Errorf("add link %s: %w", l.names.host, err)
		}
		if uplink, err = l.inside.LinkByName(l.names.uplink); err != nil {
			return made, fmt.Errorf("find link %s: %w", l.names.uplink, err)
		}
	}
	if uplink.Attrs().MasterIndex != bridge.Attrs().Index {
		if err := l.inside.LinkSetMaster(uplink, bridge); err != nil {
			return made, fmt.Errorf("join link %s to bridge: %w", l.names.uplink, err)
		}
	}
	return made, up(l.inside, uplink)
}

// ensureHost gives the host's link its alias, settings and address, and brings
// it up. It returns what it had to change.
func (l *links) ensureHost(alias string, address netip.Prefix, in *namespace) (changed []string, err error) {
	host, err := l.host.LinkByName(l.names.host)
	if err != nil {
		return nil, fmt.Errorf("find link %s: %w", l.names.host, err)
	}
	if host.Attrs().Alias != alias {
		if err := l.host.LinkSetAlias(host, alias); err != nil {
			return nil, fmt.Errorf("mark link %s: %w", l.names.host, err)
		}
	}
	if err := in.do(func() error { return setPresent(linkSettings(l.names.host)) }); err != nil {
		return nil, err
	}
	want := ipnet(address)
	addrs, err := retry(func() ([]netlink.Addr, error) { return l.host.AddrList(host, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("list addresses of %s: %w", l.names.host, err)
	}
	there := false
	for _, a := range addrs {
		if a.IPNet.String() == want.String() {
			there = true
		} else if err := l.host.AddrDel(host, &a); err != nil {
			return changed, fmt.Errorf("remove address %s from %s: %w", a.IPNet, l.names.host, err)
		}
	}
	if !there {
		changed = append(changed, "host address")
		if err := l.host.AddrAdd(host, &netlink.Addr{IPNet: want}); err != nil {
			return changed, fmt.Errorf("add address %s to %s: %w", want, l.names.host, err)
		}
	}
	if host.Attrs().Flags&net.FlagUp == 0 {
		changed = append(changed, "host link up")
	}
	return changed, up(l.host, host)
}

// connect makes the instance's port and its eth0 in ns.
func (l *links) connect(instance string, ns *namespace, address netip.Prefix, gw netip.Addr, mtu int) error {
	port := l.names.port(instance)
	bridge, err := l.inside.LinkByName(l.names.bridge)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", l.names.bridge, err)
	}
	hw := hardwareOf(address.Addr())
	v := &netlink.Veth{
		LinkAttrs: attrs(port, mtu), PeerName: "eth0", PeerHardwareAddr: hw,
		PeerNamespace: netlink.NsFd(ns.fd.Fd()),
	}
	if err := l.inside.LinkAdd(v); err != nil {
		return fmt.Errorf("add port %s: %w", port, err)
	}
	link, err := l.inside.LinkByName(port)
	if err != nil {
		return fmt.Errorf("find port %s: %w", port, err)
	}
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"join to the bridge", func() error { return l.inside.LinkSetMaster(link, bridge) }},
		{"isolate", func() error { return l.inside.LinkSetIsolated(link, true) }},
		// Without learning, no frame moves another instance's address here.
		{"stop learning", func() error { return l.inside.LinkSetLearning(link, false) }},
		{"stop flooding", func() error { return l.inside.LinkSetFlood(link, false) }},
		{"set the forwarding entry", func() error {
			return l.inside.NeighSet(&netlink.Neigh{
				LinkIndex: link.Attrs().Index, Family: unix.AF_BRIDGE, HardwareAddr: hw,
				State: netlink.NUD_NOARP, Flags: netlink.NTF_MASTER,
			})
		}},
		{"bring up", func() error { return l.inside.LinkSetUp(link) }},
		{"set the neighbour entry", func() error { return l.setNeighbour(address.Addr()) }},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("port %s: %s: %w", port, step.what, err)
		}
	}
	return configureInside(ns, address, gw)
}

// setNeighbour tells the host where addr is, so that no instance can answer
// for another.
func (l *links) setNeighbour(addr netip.Addr) error {
	host, err := l.host.LinkByName(l.names.host)
	if err != nil {
		return err
	}
	return l.host.NeighSet(&netlink.Neigh{
		LinkIndex: host.Attrs().Index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT,
		IP: addr.AsSlice(), HardwareAddr: hardwareOf(addr),
	})
}

// disconnect removes the instance's port, and with it its eth0.
func (l *links) disconnect(instance string, addr netip.Addr) error {
	if l.inside == nil {
		return nil
	}
	if err := remove(l.inside, l.names.port(instance)); err != nil {
		return err
	}
	if !addr.IsValid() {
		return nil
	}
	host, err := find(l.host, l.names.host)
	if err != nil || host == nil {
		return err
	}
	err = l.host.NeighDel(&netlink.Neigh{LinkIndex: host.Attrs().Index, Family: unix.AF_INET, IP: addr.AsSlice()})
	if err != nil && !gone(err) {
		return fmt.Errorf("remove neighbour entry of %s: %w", addr, err)
	}
	return nil
}

// ports lists the names of the instance ports that are there.
func (l *links) ports() ([]string, error) {
	all, err := list(l.inside)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, link := range all {
		if name := link.Attrs().Name; link.Type() == "veth" && name != l.names.uplink {
			out = append(out, name)
		}
	}
	return out, nil
}

// neighbours lists the host links of other nodes in the same namespace.
func (l *links) neighbours() ([]netlink.Link, error) {
	all, err := list(l.host)
	if err != nil {
		return nil, err
	}
	var out []netlink.Link
	for _, link := range all {
		a := link.Attrs()
		if a.Name != l.names.host && link.Type() == "veth" && strings.HasPrefix(a.Alias, linkAlias) {
			out = append(out, link)
		}
	}
	return out, nil
}

// removeHost removes the link between host and switch.
func (l *links) removeHost() error { return remove(l.host, l.names.host) }

func configureInside(ns *namespace, address netip.Prefix, gw netip.Addr) error {
	h, err := handleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	eth0, err := h.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("find eth0: %w", err)
	}
	if err := h.AddrAdd(eth0, &netlink.Addr{IPNet: ipnet(address)}); err != nil {
		return fmt.Errorf("add address %s to eth0: %w", address, err)
	}
	if err := h.LinkSetUp(eth0); err != nil {
		return fmt.Errorf("bring up eth0: %w", err)
	}
	if err := h.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: gw.AsSlice()}); err != nil {
		return fmt.Errorf("add default route by %s: %w", gw, err)
	}
	return nil
}

// loopbackUp runs in a fresh namespace, on its thread.
func loopbackUp() error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	if err := h.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring up loopback: %w", err)
	}
	return nil
}
