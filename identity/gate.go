package identity

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
)

// maxKnown bounds the sources that a Gate knows; the oldest is forgotten.
const maxKnown = 64

// Gate bounds connections whose other side has not shown who it is yet, in all
// and by source. Some places are kept for sources that are known to be servers
// of the fleet, so that strangers do not keep those from each other. It may be
// used concurrently.
type Gate struct {
	all, each, kept int

	mu    sync.Mutex
	n     int
	at    map[netip.Prefix]int
	known map[netip.Prefix]uint64 // when it was last said, counted
	said  uint64
}

// NewGate lets all connections in at once, each of them from one source; the
// last kept places are for known ones.
func NewGate(all, each, kept int) *Gate {
	return &Gate{all: all, each: each, kept: kept, at: map[netip.Prefix]int{}, known: map[netip.Prefix]uint64{}}
}

// Origin is what connections are counted by where nothing else is known of their
// other side: an IPv4 address, or an IPv6 network of 64 bits, which is what one
// host can have for nothing. What is neither counts as one.
func Origin(remote net.Addr) netip.Prefix {
	if remote == nil {
		return netip.Prefix{}
	}
	return originOf(remote.String())
}

func originOf(hostport string) netip.Prefix {
	at, err := netip.ParseAddrPort(hostport)
	if err != nil {
		return netip.Prefix{}
	}
	a := at.Addr().Unmap().WithZone("")
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits)
	return p
}

// Enter admits a connection from remote; leave must be called once it has shown
// who it is, or is closed.
func (g *Gate) Enter(remote net.Addr) (leave func(), err error) {
	from := Origin(remote)
	g.mu.Lock()
	defer g.mu.Unlock()
	most := g.all - g.kept
	if _, ok := g.known[from]; ok {
		most = g.all
	}
	if g.n >= most || g.at[from] >= g.each {
		return nil, fmt.Errorf("%d connections are being opened, %d of them from %s: at most %d and %d", g.n, g.at[from], from, most, g.each)
	}
	g.n++
	g.at[from]++
	return sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.n--
		if g.at[from]--; g.at[from] == 0 {
			delete(g.at, from)
		}
	}), nil
}

// Know says that a server of the fleet is at remote.
func (g *Gate) Know(remote net.Addr) { g.know(Origin(remote)) }

// KnowAddress says so of host:port; a host that is a name tells nothing.
func (g *Gate) KnowAddress(hostport string) { g.know(originOf(hostport)) }

func (g *Gate) know(p netip.Prefix) {
	if !p.IsValid() {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.said++
	g.known[p] = g.said
	if len(g.known) > maxKnown {
		oldest := slices.MinFunc(slices.Collect(maps.Keys(g.known)), func(a, b netip.Prefix) int { return cmp.Compare(g.known[a], g.known[b]) })
		delete(g.known, oldest)
	}
}
