package gossip

import (
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"golang.org/x/time/rate"
)

// What is taken in of a pool's port, whoever sends it: memberlist has to read a
// message before it can tell whether its sender has the key. Beyond these it is
// thrown away; a hint lost costs nothing but time.
const (
	// maxMembers bounds the pool, and how many names it learns at once;
	// namesPerSecond are learned after that.
	maxMembers, namesPerSecond = 4096, 64
	// maxStreams bounds the streams that others have opened, in all and from one
	// address; maxStreamBytes what each may say.
	maxStreams, maxStreamsEach = 16, 4
	maxStreamBytes             = 4 << 20
	// packetsPerSecond in all and from one address, with bursts of twice that.
	packetsPerSecond, packetsPerSecondEach = 2000, 500
	// maxSources bounds the addresses whose packets are counted.
	maxSources = 4096
)

// guard is a transport that takes in so much and no more. Its goroutines run
// from newGuard until stop.
type guard struct {
	memberlist.Transport
	packets chan *memberlist.Packet
	streams chan net.Conn
	done    chan struct{}
	running sync.WaitGroup

	mu   sync.Mutex
	open int
	at   map[netip.Addr]int
}

func newGuard(t memberlist.Transport) *guard {
	g := &guard{Transport: t, packets: make(chan *memberlist.Packet), streams: make(chan net.Conn), done: make(chan struct{}), at: map[netip.Addr]int{}}
	g.running.Go(g.passPackets)
	g.running.Go(g.passStreams)
	return g
}

// stop must come after the transport's Shutdown, which waits until what it has
// read is taken.
func (g *guard) stop() {
	close(g.done)
	g.running.Wait()
}

func (g *guard) PacketCh() <-chan *memberlist.Packet { return g.packets }
func (g *guard) StreamCh() <-chan net.Conn           { return g.streams }

func (g *guard) passPackets() {
	all := rate.NewLimiter(packetsPerSecond, 2*packetsPerSecond)
	each := map[netip.Addr]*rate.Limiter{}
	for {
		select {
		case <-g.done:
			return
		case p := <-g.Transport.PacketCh():
			if p == nil {
				return
			}
			from := source(p.From)
			l, ok := each[from]
			if !ok {
				if len(each) >= maxSources {
					clear(each) // who floods is bounded in all still
				}
				l = rate.NewLimiter(packetsPerSecondEach, 2*packetsPerSecondEach)
				each[from] = l
			}
			if !l.Allow() || !all.Allow() {
				continue
			}
			select {
			case g.packets <- p:
			case <-g.done:
				return
			}
		}
	}
}

func (g *guard) passStreams() {
	for {
		select {
		case <-g.done:
			return
		case c := <-g.Transport.StreamCh():
			if c == nil {
				return
			}
			bounded, ok := g.admit(c)
			if !ok {
				c.Close()
				continue
			}
			select {
			case g.streams <- bounded:
			case <-g.done:
				bounded.Close()
				return
			}
		}
	}
}

func (g *guard) admit(c net.Conn) (net.Conn, bool) {
	from := source(c.RemoteAddr())
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open >= maxStreams || g.at[from] >= maxStreamsEach {
		return nil, false
	}
	g.open++
	g.at[from]++
	return &boundedConn{Conn: c, left: maxStreamBytes, leave: sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.open--
		if g.at[from]--; g.at[from] == 0 {
			delete(g.at, from)
		}
	})}, true
}

// boundedConn ends after so many bytes were read of it.
type boundedConn struct {
	net.Conn
	left  int64
	leave func()
}

func (c *boundedConn) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, io.ErrUnexpectedEOF
	}
	n, err := c.Conn.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	return n, err
}

func (c *boundedConn) Close() error { c.leave(); return c.Conn.Close() }

func source(a net.Addr) netip.Addr {
	if a == nil {
		return netip.Addr{}
	}
	at, _ := netip.ParseAddrPort(a.String())
	return at.Addr().Unmap().WithZone("")
}

// newcomers decides whether a name that is not known may be learned. It has no
// lock of its own.
type newcomers struct{ rate *rate.Limiter }

func newNewcomers() newcomers { return newcomers{rate.NewLimiter(namesPerSecond, maxMembers)} }

func (n newcomers) admit(present int, now time.Time) bool {
	return present < maxMembers && n.rate.AllowN(now, 1)
}
