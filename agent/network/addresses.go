package network

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"net/netip"
)

// gateway is the first address of the subnet after its own.
func gateway(subnet netip.Prefix) netip.Addr { return subnet.Addr().Next() }

// nextAddress returns the first address after last, going round, that is not
// taken. Going on from the last one leaves a released address unused for as
// long as possible, so that connections to its former holder die before
// somebody else answers there.
func nextAddress(subnet netip.Prefix, last netip.Addr, taken func(netip.Addr) bool) (netip.Addr, error) {
	base := toUint(subnet.Addr())
	size := uint32(1) << (32 - subnet.Bits())
	usable := size - 3 // without network, gateway and broadcast
	start := uint32(0)
	if last.IsValid() && subnet.Contains(last) {
		if off := toUint(last) - base; off >= 2 {
			start = off - 1 // the index after last's
		}
	}
	for i := range usable {
		a := fromUint(base + 2 + (start+i)%usable)
		if !taken(a) {
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("%w: all %d addresses of %s are held by instances; stop some, or give the node a larger subnet", ErrExhausted, usable, subnet)
}

// pools are where a subnet is looked for, the first being the least likely to
// be in use. Later ones help where a site routes all of 10.0.0.0/8.
var pools = []netip.Prefix{
	netip.MustParsePrefix("10.88.0.0/13"),
	netip.MustParsePrefix("172.24.0.0/14"),
	netip.MustParsePrefix("192.168.128.0/17"),
	netip.MustParsePrefix("198.18.0.0/15"),
}

// chooseSubnet returns a /24 that overlaps nothing in routed. The node's id
// decides where to begin, so that nodes that meet in one kernel rarely compete.
func chooseSubnet(node string, routed []netip.Prefix) (netip.Prefix, error) {
	h := fnv.New32a()
	h.Write([]byte(node))
	for _, pool := range pools {
		count := uint32(1) << (24 - pool.Bits())
		for i := range count {
			at := (h.Sum32() + i) % count
			p := netip.PrefixFrom(fromUint(toUint(pool.Addr())+at<<8), 24)
			if !overlapsAny(p, routed) {
				return p, nil
			}
		}
	}
	return netip.Prefix{}, fmt.Errorf("choose a subnet: this host routes all of %v; name a free one in the configuration", pools)
}

func overlapsAny(p netip.Prefix, others []netip.Prefix) bool {
	for _, o := range others {
		if p.Overlaps(o) {
			return true
		}
	}
	return false
}

func toUint(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func fromUint(v uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], v)
	return netip.AddrFrom4(b)
}
