package attack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"

	"golang.org/x/sys/unix"
)

// Place is what a forger knows of where it is.
type Place struct {
	Self, Victim, Gateway, Outside netip.Addr
	SelfMAC, VictimMAC, GatewayMAC string
}

// Forgery is a frame to send. May: it may get to the host's end of the bridge,
// where the host's rules meet it.
type Forgery struct {
	Name  string
	Frame []byte
	May   bool
	// Control: it is honest, and must be heard beyond the host.
	Control bool
}

// markOf ends the i-th frame, so that who hears it knows which it is.
func markOf(i int) []byte { return fmt.Appendf(nil, "redoubt-attack-%03d", i) }

var marks = regexp.MustCompile(`redoubt-attack-(\d{3})`)

// Marked tells which frame a capture is; -1: none of these.
func Marked(b []byte) int {
	m := marks.FindSubmatch(b)
	if m == nil {
		return -1
	}
	return int(m[1][0]-'0')*100 + int(m[1][1]-'0')*10 + int(m[1][2]-'0')
}

var (
	everybody   = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	allNodesMAC = net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
	allNodes    = netip.MustParseAddr("ff02::1")
	zero4       = netip.MustParseAddr("0.0.0.0")
	all4        = netip.MustParseAddr("255.255.255.255")
	zeroMAC     = make(net.HardwareAddr, 6)
)

// Forgeries are all frames, the honest one first.
func Forgeries(p Place) ([]Forgery, error) {
	own, err1 := net.ParseMAC(p.SelfMAC)
	theirs, err2 := net.ParseMAC(p.VictimMAC)
	gw, err3 := net.ParseMAC(p.GatewayMAC)
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	local6, host6 := netip.MustParseAddr("fe80::bad"), netip.MustParseAddr("fe80::1")
	advert := slices.Concat([]byte{64, 0, 7, 8}, make([]byte, 8)) // router, lifetime
	neighbour := slices.Concat([]byte{0x60, 0, 0, 0}, host6.AsSlice(), []byte{2, 1}, own)
	const ip4, ip6, arp4 = unix.ETH_P_IP, unix.ETH_P_IPV6, unix.ETH_P_ARP
	var out []Forgery
	// mark is that of the frame which comes next.
	mark := func() []byte { return markOf(len(out)) }
	add := func(name string, may bool, dst, src net.HardwareAddr, kind uint16, payload []byte) {
		f := slices.Concat(dst, src, binary.BigEndian.AppendUint16(nil, kind), payload)
		if Marked(f) < 0 {
			f = append(f, mark()...)
		}
		out = append(out, Forgery{Name: name, Frame: f, May: may})
	}
	udp := func(src, dst netip.Addr, dport uint16) []byte { return datagram(src, dst, nil, 5000, dport, mark()) }
	meta := func(s string) netip.Addr { return netip.MustParseAddr(s) }
	const no, host = false, true

	add("its own, honestly", host, gw, own, ip4, udp(p.Self, p.Outside, 80))
	out[0].Control = true
	add("to the neighbour itself", no, theirs, own, ip4, udp(p.Self, p.Victim, 80))
	add("to the neighbour by the gateway", host, gw, own, ip4, udp(p.Self, p.Victim, 80))
	add("to everybody", host, everybody, own, ip4, udp(p.Self, all4, 80))
	add("from the neighbour's address", no, gw, own, ip4, udp(p.Victim, p.Outside, 80))
	add("from the gateway's address", no, theirs, own, ip4, udp(p.Gateway, p.Victim, 80))
	add("from an address of nobody", no, gw, own, ip4, udp(meta("198.51.100.77"), p.Outside, 80))
	add("from the neighbour's hardware address", no, gw, theirs, ip4, udp(p.Self, p.Outside, 80))
	add("from both of the neighbour's addresses", no, gw, theirs, ip4, udp(p.Victim, p.Outside, 80))
	add("from the gateway's hardware address", no, theirs, gw, ip4, udp(p.Self, p.Victim, 80))
	add("a resolver's answer that is none", no, theirs, own, ip4, datagram(p.Gateway, p.Victim, nil, 53, 5000, mark()))
	add("ARP: the gateway is here", no, theirs, own, arp4, arp(2, own, p.Gateway, theirs, p.Victim))
	add("ARP: the neighbour is here", no, gw, own, arp4, arp(2, own, p.Victim, gw, p.Gateway))
	add("gratuitous ARP of the neighbour's address", no, everybody, own, arp4, arp(1, own, p.Victim, zeroMAC, p.Victim))
	add("gratuitous ARP of the gateway's address", no, everybody, own, arp4, arp(2, own, p.Gateway, everybody, p.Gateway))
	add("ARP from the neighbour", no, everybody, theirs, arp4, arp(1, theirs, p.Victim, zeroMAC, p.Victim))
	add("ARP: its own address is at the gateway", no, gw, own, arp4, arp(2, gw, p.Self, gw, p.Gateway))
	// A raw socket fills a source of zeros in, and what goes to all may reach the
	// host, which is no DHCP server.
	add("DHCP question", host, everybody, own, ip4, datagram(zero4, all4, nil, 68, 67, mark()))
	add("DHCP offer", host, theirs, own, ip4, datagram(p.Self, all4, nil, 67, 68, mark()))
	add("DHCP offer to all, in the gateway's name", no, everybody, own, ip4, datagram(p.Gateway, all4, nil, 67, 68, mark()))
	add("router advertisement", no, allNodesMAC, own, ip6, icmp6(local6, allNodes, 134, advert, mark()))
	add("router advertisement to the neighbour", no, theirs, own, ip6, icmp6(local6, host6, 134, advert, mark()))
	add("neighbour advertisement", no, allNodesMAC, own, ip6, icmp6(local6, allNodes, 136, neighbour, mark()))
	add("neighbour solicitation", no, allNodesMAC, own, ip6, icmp6(local6, allNodes, 135, neighbour, mark()))
	add("redirect to itself", no, theirs, own, ip6, icmp6(local6, host6, 137, neighbour, mark()))
	add("router advertisement in a VLAN", no, allNodesMAC, own, unix.ETH_P_8021Q,
		slices.Concat([]byte{0, 0, 0x86, 0xdd}, icmp6(local6, allNodes, 134, advert, mark())))
	add("IPv4 in a VLAN", no, gw, own, unix.ETH_P_8021Q, slices.Concat([]byte{0, 0, 8, 0}, udp(p.Victim, p.Outside, 80)))
	add("IPv4 in two VLANs", no, gw, own, unix.ETH_P_8021AD, slices.Concat([]byte{0, 1, 0x81, 0, 0, 1, 8, 0}, udp(p.Victim, p.Outside, 80)))
	add("LLDP", no, net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0x0e}, own, 0x88cc, []byte{0, 0})
	add("spanning tree", no, net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0}, own, 0x0026, []byte{0x42, 0x42, 3})
	add("a protocol of nobody", no, theirs, own, 0x88b5, nil)
	// Source routing: by the gateway to the neighbour, and past a rule's address.
	byGateway := slices.Concat([]byte{131, 7, 4}, p.Victim.AsSlice(), []byte{0})
	strict := slices.Concat([]byte{137, 7, 4}, p.Victim.AsSlice(), []byte{0})
	add("loose source route to the neighbour", host, gw, own, ip4, datagram(p.Self, p.Gateway, byGateway, 5000, 80, mark()))
	add("strict source route to the neighbour", host, gw, own, ip4, datagram(p.Self, p.Gateway, strict, 5000, 80, mark()))
	add("record route to the neighbour", host, gw, own, ip4, datagram(p.Self, p.Victim, []byte{7, 7, 4, 0, 0, 0, 0, 0}, 5000, 80, mark()))
	for i := range 2 {
		add(fmt.Sprintf("part %d of 2, to the neighbour", i+1), host, gw, own, ip4, fragments(p.Self, p.Victim, mark())[i])
	}
	for i := range 2 {
		add(fmt.Sprintf("part %d of 2, from the neighbour's address", i+1), no, gw, own, ip4, fragments(p.Victim, p.Outside, mark())[i])
	}
	for _, to := range []string{"169.254.169.254", "100.100.100.200", "168.63.129.16", "192.0.0.192", "127.0.0.1"} {
		add("to "+to, host, gw, own, ip4, udp(p.Self, meta(to), 80))
	}
	return out, nil
}

func arp(op uint16, sha net.HardwareAddr, spa netip.Addr, tha net.HardwareAddr, tpa netip.Addr) []byte {
	b := binary.BigEndian.AppendUint16([]byte{0, 1, 8, 0, 6, 4}, op)
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

// header is that of IPv4, for a payload of so many bytes.
func header(src, dst netip.Addr, options []byte, payload int, fragment uint16) []byte {
	words := 5 + len(options)/4
	length := words*4 + payload
	h := []byte{byte(0x40 | words), 0, byte(length >> 8), byte(length), 0, 7, byte(fragment >> 8), byte(fragment), 64, unix.IPPROTO_UDP, 0, 0}
	h = slices.Concat(h, src.AsSlice(), dst.AsSlice(), options)
	binary.BigEndian.PutUint16(h[10:], checksum(h))
	return h
}

func udpHeader(sport, dport uint16, payload int) []byte {
	u := binary.BigEndian.AppendUint16(nil, sport)
	u = binary.BigEndian.AppendUint16(u, dport)
	u = binary.BigEndian.AppendUint16(u, uint16(8+payload))
	return append(u, 0, 0) // no checksum
}

func datagram(src, dst netip.Addr, options []byte, sport, dport uint16, payload []byte) []byte {
	return slices.Concat(header(src, dst, options, 8+len(payload), 0), udpHeader(sport, dport, len(payload)), payload)
}

// fragments are a datagram in two: the ports are in the first alone. Both end
// with the mark.
func fragments(src, dst netip.Addr, mark []byte) [2][]byte {
	body := append(make([]byte, 8-len(mark)%8), mark...) // a part's length is a multiple of 8
	const more = 0x2000
	first := slices.Concat(header(src, dst, nil, 8+len(body), more), udpHeader(5000, 80, 2*len(body)), body)
	last := slices.Concat(header(src, dst, nil, len(body), uint16((8+len(body))/8)), body)
	return [2][]byte{first, last}
}

// icmp6 is a message of neighbour discovery that ends with the mark.
func icmp6(src, dst netip.Addr, kind byte, body, mark []byte) []byte {
	m := slices.Concat([]byte{kind, 0, 0, 0}, body, mark)
	pseudo := slices.Concat(src.AsSlice(), dst.AsSlice(), binary.BigEndian.AppendUint32(nil, uint32(len(m))), []byte{0, 0, 0, unix.IPPROTO_ICMPV6}, m)
	binary.BigEndian.PutUint16(m[2:], checksum(pseudo))
	ip := []byte{0x60, 0, 0, 0, byte(len(m) >> 8), byte(len(m)), unix.IPPROTO_ICMPV6, 255}
	return slices.Concat(ip, src.AsSlice(), dst.AsSlice(), m)
}
