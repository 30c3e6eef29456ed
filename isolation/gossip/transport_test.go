package gossip

import (
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// web is a small lossy network in memory: packets may be dropped, and hosts cut
// off from each other.
type web struct {
	mu    sync.Mutex
	rand  *rand.Rand
	loss  float64
	hosts map[string]*host
	cut   func(a, b string) bool
}

func newWeb(seed uint64) *web {
	return &web{rand: rand.New(rand.NewPCG(seed, 1)), hosts: map[string]*host{}}
}

func (w *web) pass(a, b string, lossy bool) *host {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut != nil && w.cut(a, b) || lossy && w.rand.Float64() < w.loss {
		return nil
	}
	return w.hosts[b]
}

type host struct {
	w       *web
	addr    string
	packets chan *memberlist.Packet
	streams chan net.Conn
	done    chan struct{}
	once    sync.Once
}

func (w *web) host(i int) *host {
	h := &host{w: w, addr: fmt.Sprintf("10.0.0.%d:7453", i), packets: make(chan *memberlist.Packet, 256),
		streams: make(chan net.Conn), done: make(chan struct{})}
	w.mu.Lock()
	w.hosts[h.addr] = h
	w.mu.Unlock()
	return h
}

func (h *host) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	a, _ := net.ResolveTCPAddr("tcp", h.addr)
	return a.IP, a.Port, nil
}

type addr string

func (addr) Network() string  { return "web" }
func (a addr) String() string { return string(a) }

func (h *host) WriteTo(b []byte, to string) (time.Time, error) {
	now := time.Now()
	if p := h.w.pass(h.addr, to, true); p != nil {
		select {
		case p.packets <- &memberlist.Packet{Buf: append([]byte{}, b...), From: addr(h.addr), Timestamp: now}:
		default: // a full buffer drops, as UDP does; it never blocks
		}
	}
	return now, nil
}

func (h *host) PacketCh() <-chan *memberlist.Packet { return h.packets }
func (h *host) StreamCh() <-chan net.Conn           { return h.streams }

func (h *host) DialTimeout(to string, timeout time.Duration) (net.Conn, error) {
	p := h.w.pass(h.addr, to, false)
	t := time.NewTimer(timeout)
	defer t.Stop()
	if p != nil {
		a, b := net.Pipe()
		select {
		case p.streams <- named{b, addr(h.addr)}:
			return named{a, addr(to)}, nil
		case <-p.done:
			return nil, net.ErrClosed
		case <-t.C:
		case <-h.done:
		}
		return nil, fmt.Errorf("dial %s: timeout", to)
	}
	select {
	case <-t.C:
	case <-h.done:
	}
	return nil, fmt.Errorf("dial %s: timeout", to)
}

func (h *host) Shutdown() error {
	h.once.Do(func() {
		close(h.done)
		h.w.mu.Lock()
		if h.w.hosts[h.addr] == h {
			delete(h.w.hosts, h.addr)
		}
		h.w.mu.Unlock()
	})
	return nil
}

type named struct {
	net.Conn
	remote addr
}

func (n named) RemoteAddr() net.Addr { return n.remote }
