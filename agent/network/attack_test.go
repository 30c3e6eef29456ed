package network

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// An instance with CAP_NET_RAW can put any frame on its link. This test sends
// what an attacker would, and listens where it would do harm: at the neighbour,
// at the host's end and beyond the host.

var (
	broadcastMAC = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	allNodesMAC  = net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
	allNodes     = netip.MustParseAddr("ff02::1")
)

// mark ends each frame, so that a listener knows its own.
var mark = []byte("redoubt-attack-frame")

func ethernet(dst, src net.HardwareAddr, kind uint16, payload ...byte) []byte {
	f := slices.Concat(dst, src, binary.BigEndian.AppendUint16(nil, kind), payload)
	return append(f, mark...)
}

func arp(op uint16, sha net.HardwareAddr, spa netip.Addr, tha net.HardwareAddr, tpa netip.Addr) []byte {
	b := []byte{0, 1, 8, 0, 6, 4}
	b = binary.BigEndian.AppendUint16(b, op)
	return slices.Concat(b, sha, spa.AsSlice(), tha, tpa.AsSlice())
}

// checksum is the one's complement of the sum of 16-bit words.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		w := uint32(b[i]) << 8
		if i+1 < len(b) {
			w |= uint32(b[i+1])
		}
		sum += w
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// udp4 is a datagram that ends with the mark.
func udp4(src, dst netip.Addr, sport, dport uint16) []byte {
	length := 20 + 8 + len(mark)
	ip := []byte{0x45, 0, byte(length >> 8), byte(length), 0, 1, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
	ip = slices.Concat(ip, src.AsSlice(), dst.AsSlice())
	binary.BigEndian.PutUint16(ip[10:], checksum(ip))
	u := binary.BigEndian.AppendUint16(nil, sport)
	u = binary.BigEndian.AppendUint16(u, dport)
	u = binary.BigEndian.AppendUint16(u, uint16(8+len(mark)))
	return slices.Concat(ip, u, []byte{0, 0}) // no checksum
}

// icmp6 is a message of neighbour discovery that ends with the mark.
func icmp6(src, dst netip.Addr, kind byte, body []byte) []byte {
	m := slices.Concat([]byte{kind, 0, 0, 0}, body, mark)
	pseudo := slices.Concat(src.AsSlice(), dst.AsSlice(), binary.BigEndian.AppendUint32(nil, uint32(len(m))), []byte{0, 0, 0, unix.IPPROTO_ICMPV6}, m)
	binary.BigEndian.PutUint16(m[2:], checksum(pseudo))
	ip := []byte{0x60, 0, 0, 0, byte(len(m) >> 8), byte(len(m)), unix.IPPROTO_ICMPV6, 255}
	return slices.Concat(ip, src.AsSlice(), dst.AsSlice(), m[:len(m)-len(mark)])
}

// raw opens a packet socket on the link in ns.
func (w *world) raw(ns *namespace, link string) (fd, index int) {
	w.t.Helper()
	w.ok(ns.do(func() (err error) {
		i, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		index = i.Index
		const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8 // in network order
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all); err != nil {
			return err
		}
		return errors.Join(
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: index}),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 10_000}),
		)
	}))
	w.t.Cleanup(func() { unix.Close(fd) })
	return fd, index
}

// heard tells whether a frame with the mark arrives within the patience.
func heard(fd int, patience time.Duration) bool {
	buf := make([]byte, 4096)
	for end := time.Now().Add(patience); time.Now().Before(end); {
		n, from, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			continue
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if bytes.Contains(buf[:n], mark) {
			return true
		}
	}
	return false
}

func TestNothingForgedLeavesAnInstance(t *testing.T) {
	w := newWorld(t)
	w.address(w.outside, "up0", netip.MustParsePrefix("169.254.169.254/32"))
	n := w.open()
	evil, evilSpace := w.attach(n, Spec{Instance: "evil"})
	victim, victimSpace := w.attach(n, Spec{Instance: "victim"})
	own, theirs, gw := hardwareOf(evil.Address), hardwareOf(victim.Address), n.names.hardware()
	self, target, out := evil.Address, victim.Address, outsideAddr.Addr()
	local6, host6 := netip.MustParseAddr("fe80::bad"), netip.MustParseAddr("fe80::1")
	zero4, all4 := netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("255.255.255.255")
	zeroMAC := make(net.HardwareAddr, 6)
	advert := slices.Concat([]byte{64, 0, 7, 8}, make([]byte, 8)) // router, lifetime
	neighbour := slices.Concat([]byte{0x60, 0, 0, 0}, host6.AsSlice(), []byte{2, 1}, own)

	atVictim, _ := w.raw(victimSpace, "eth0")
	atHost, _ := w.raw(w.node, n.names.host)
	beyond, _ := w.raw(w.outside, "up0")
	send, index := w.raw(evilSpace, "eth0")
	put := func(frame []byte) {
		t.Helper()
		w.ok(unix.Sendto(send, frame, 0, &unix.SockaddrLinklayer{Ifindex: index, Halen: 6}))
	}

	// The listeners hear what may pass: what is silent below is stopped.
	put(ethernet(gw, own, unix.ETH_P_IP, udp4(self, out, 5000, 5000)...))
	if !heard(atHost, 3*time.Second) || !heard(beyond, 3*time.Second) {
		t.Fatal("a frame of its own is not heard: this test would see nothing")
	}

	const host = true // it may get to the host's end, where rules stop it
	for _, c := range []struct {
		name  string
		frame []byte
		may   bool
	}{
		{"to the neighbour itself", ethernet(theirs, own, unix.ETH_P_IP, udp4(self, target, 5000, 80)...), false},
		{"to everybody", ethernet(broadcastMAC, own, unix.ETH_P_IP, udp4(self, all4, 5000, 80)...), host},
		{"to the neighbour by the gateway", ethernet(gw, own, unix.ETH_P_IP, udp4(self, target, 5000, 80)...), host},
		{"from the neighbour's address", ethernet(gw, own, unix.ETH_P_IP, udp4(target, out, 5000, 80)...), false},
		{"from the gateway's address", ethernet(theirs, own, unix.ETH_P_IP, udp4(evil.Gateway, target, 5000, 80)...), false},
		{"from an address of nobody", ethernet(gw, own, unix.ETH_P_IP, udp4(netip.MustParseAddr("198.51.100.7"), out, 5000, 80)...), false},
		{"from the neighbour's hardware address", ethernet(gw, theirs, unix.ETH_P_IP, udp4(self, out, 5000, 80)...), false},
		{"from both of the neighbour's addresses", ethernet(gw, theirs, unix.ETH_P_IP, udp4(target, out, 5000, 80)...), false},
		{"from the gateway's hardware address", ethernet(theirs, gw, unix.ETH_P_IP, udp4(self, target, 5000, 80)...), false},
		{"ARP: the gateway is here", ethernet(theirs, own, unix.ETH_P_ARP, arp(2, own, evil.Gateway, theirs, target)...), false},
		{"ARP: the neighbour is here", ethernet(gw, own, unix.ETH_P_ARP, arp(2, own, target, gw, evil.Gateway)...), false},
		{"ARP: the neighbour is here, to all", ethernet(broadcastMAC, own, unix.ETH_P_ARP, arp(1, own, target, zeroMAC, target)...), false},
		{"ARP from the neighbour", ethernet(broadcastMAC, theirs, unix.ETH_P_ARP, arp(1, theirs, target, zeroMAC, target)...), false},
		{"ARP: its own address is at the gateway", ethernet(gw, own, unix.ETH_P_ARP, arp(2, gw, self, gw, evil.Gateway)...), false},
		{"DHCP question", ethernet(broadcastMAC, own, unix.ETH_P_IP, udp4(zero4, all4, 68, 67)...), false},
		{"DHCP offer", ethernet(theirs, own, unix.ETH_P_IP, udp4(self, all4, 67, 68)...), false},
		{"router advertisement", ethernet(allNodesMAC, own, unix.ETH_P_IPV6, icmp6(local6, allNodes, 134, advert)...), false},
		{"router advertisement to the neighbour", ethernet(theirs, own, unix.ETH_P_IPV6, icmp6(local6, host6, 134, advert)...), false},
		{"neighbour advertisement", ethernet(allNodesMAC, own, unix.ETH_P_IPV6, icmp6(local6, allNodes, 136, neighbour)...), false},
		{"neighbour solicitation", ethernet(allNodesMAC, own, unix.ETH_P_IPV6, icmp6(local6, allNodes, 135, neighbour)...), false},
		{"router advertisement in a VLAN", ethernet(allNodesMAC, own, unix.ETH_P_8021Q, slices.Concat([]byte{0, 0, 0x86, 0xdd}, icmp6(local6, allNodes, 134, advert))...), false},
		{"IPv4 in a VLAN", ethernet(gw, own, unix.ETH_P_8021Q, slices.Concat([]byte{0, 0, 8, 0}, udp4(target, out, 5000, 80))...), false},
		{"IPv4 in two VLANs", ethernet(gw, own, unix.ETH_P_8021AD, slices.Concat([]byte{0, 1, 0x81, 0, 0, 1, 8, 0}, udp4(target, out, 5000, 80))...), false},
		{"LLDP", ethernet(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0x0e}, own, 0x88cc, 0, 0), false},
		{"spanning tree", ethernet(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0}, own, 0x0026, 0x42, 0x42, 3), false},
		{"a cloud's metadata", ethernet(gw, own, unix.ETH_P_IP, udp4(self, netip.MustParseAddr("169.254.169.254"), 5000, 80)...), host},
		{"Azure's metadata", ethernet(gw, own, unix.ETH_P_IP, udp4(self, netip.MustParseAddr("168.63.129.16"), 5000, 80)...), host},
		{"the host's loopback", ethernet(gw, own, unix.ETH_P_IP, udp4(self, netip.MustParseAddr("127.0.0.1"), 5000, 80)...), host},
	} {
		put(c.frame)
		// A frame takes no time here; one that may pass shows that it would
		// have been seen.
		patience := 50 * time.Millisecond
		if c.may {
			patience = 3 * time.Second
		}
		switch got := heard(atHost, patience); {
		case got && !c.may:
			t.Errorf("%s: it gets to the host", c.name)
		case !got && c.may:
			t.Errorf("%s: it does not get to the host, where this test expects the rules to meet it", c.name)
		}
		if heard(atVictim, 20*time.Millisecond) {
			t.Errorf("%s: the neighbour gets it", c.name)
		}
		if heard(beyond, 20*time.Millisecond) {
			t.Errorf("%s: it gets beyond the host", c.name)
		}
	}

	t.Run("the host still knows where the neighbour is", func(t *testing.T) {
		h := must(handleAt(w.node, unix.NETLINK_ROUTE))
		defer h.Close()
		for _, e := range must(h.NeighList(must(h.LinkByName(n.names.host)).Attrs().Index, netlink.FAMILY_V4)) {
			if e.IP.Equal(target.AsSlice()) && e.HardwareAddr.String() != theirs.String() {
				t.Errorf("the neighbour is at %s; want %s", e.HardwareAddr, theirs)
			}
		}
		w.serve(victimSpace, "victim", "0.0.0.0:80")
		w.expect(w.node, target.String()+":80", "victim "+victim.Gateway.String())
	})
	t.Run("addresses of its own choice", func(t *testing.T) {
		// As root of its namespace it can have IPv6; nothing of it gets out.
		w.ok(evilSpace.do(func() error {
			_, err := setSysctl("net/ipv6/conf/eth0/disable_ipv6", "0")
			return err
		}))
		h := must(handleAt(evilSpace, unix.NETLINK_ROUTE))
		defer h.Close()
		eth0 := must(h.LinkByName("eth0"))
		w.ok(h.AddrAdd(eth0, &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP("fd00:ec2::9"), Mask: net.CIDRMask(64, 128)}, Flags: unix.IFA_F_NODAD}))
		for _, address := range []string{"[fd00:ec2::254]:80", "[fd00::1]:80"} {
			if _, err := w.call(evilSpace, "tcp6", address, 200*time.Millisecond); err == nil {
				t.Errorf("%s is reached", address)
			}
		}
	})
	w.ok(n.Detach(context.Background(), "evil"))
}
