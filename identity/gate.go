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
// and by source. Where all places are taken, a newcomer gets that of the oldest
// connection of the neighbourhood and source that have most: who opens many and
// says nothing, from however many addresses, keeps out itself. Some places are
// kept for sources that are known to be servers of the fleet, so that strangers
// do not keep those from each other. It may be used concurrently.
type Gate struct {
	all, each, kept int

	mu    sync.Mutex
	n     int
	at    map[netip.Prefix]int
	near  map[netip.Prefix]int // by neighbourhood, those in open
	open  map[uint64]*opening  // of all sources but known ones
	count uint64
	known map[netip.Prefix]uint64 // when it was last said, counted
	said  uint64
}

// opening is a connection that is being opened.
type opening struct {
	from, near netip.Prefix // its source, and the neighbourhood of that
	leave      func()
	evict      func()
}

// NewGate lets all connections in at once, each of them from one source; the
// last kept places are for known ones.
func NewGate(all, each, kept int) *Gate {
	return &Gate{all: all, each: each, kept: kept, at: map[netip.Prefix]int{}, near: map[netip.Prefix]int{}, open: map[uint64]*opening{}, known: map[netip.Prefix]uint64{}}
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
// who it is, or is closed. Until then evict may be called, once, from another
// goroutine: the place is somebody else's, and the connection should be closed.
func (g *Gate) Enter(remote net.Addr, evict func()) (leave func(), err error) {
	from := Origin(remote)
	leave, victim, err := g.enter(from, evict)
	if victim != nil {
		victim()
	}
	return leave, err
}

func (g *Gate) enter(from netip.Prefix, evict func()) (leave, victim func(), err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	most := g.all - g.kept
	_, known := g.known[from]
	if known {
		most = g.all
	}
	if g.at[from] >= g.each {
		return nil, nil, fmt.Errorf("%d connections are being opened, %d of them from %s: at most %d and %d", g.n, g.at[from], from, most, g.each)
	}
	if g.n >= most {
		o := g.most()
		if o == nil {
			return nil, nil, fmt.Errorf("%d connections of servers are being opened: at most %d", g.n, most)
		}
		o.leave()
		victim = o.evict
	}
	g.count++
	place := g.count
	g.n++
	g.at[from]++
	left := false
	o := &opening{from: from, near: neighbourhood(from), evict: evict}
	o.leave = func() { // needs mu
		if left {
			return
		}
		left = true
		if g.open[place] == o {
			delete(g.open, place)
			if g.near[o.near]--; g.near[o.near] == 0 {
				delete(g.near, o.near)
			}
		}
		g.n--
		if g.at[from]--; g.at[from] == 0 {
			delete(g.at, from)
		}
	}
	if !known {
		g.open[place] = o
		g.near[o.near]++
	}
	return func() { g.mu.Lock(); defer g.mu.Unlock(); o.leave() }, victim, nil
}

// most is the oldest connection of the source that has most in the neighbourhood
// that has most; it needs mu.
func (g *Gate) most() *opening {
	var worst *opening
	var age uint64
	for n, o := range g.open {
		if worst == nil || cmp.Or(cmp.Compare(g.near[o.near], g.near[worst.near]), cmp.Compare(g.at[o.from], g.at[worst.from]), cmp.Compare(age, n)) > 0 {
			worst, age = o, n
		}
	}
	return worst
}

// neighbourhood is what one who has many addresses has them in.
func neighbourhood(from netip.Prefix) netip.Prefix {
	bits := 24
	if from.Addr().Is6() {
		bits = 48
	}
	p, _ := from.Addr().Prefix(bits)
	return p
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
