package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/netutil"
	"golang.org/x/sys/unix"
)

const (
	dnsPort       = "53"
	dnsPortNumber = 53
	askFor        = 2 * time.Second // one try at one upstream
	queriesAtOne  = 256             // queries at one time; more are refused
	queriesOfOne  = 32              // of them by one instance
	streamsAtOne  = 128             // TCP connections at one time
)

// forwarder answers instances' questions for names: those of workloads on this
// node by itself, all others by asking the host's resolvers. It serves instances
// of this node only, keeps no cache and changes no answer; for an instance that
// may open connections to nowhere it asks nobody. One goroutine, Run's, calls
// follow and stop.
type forwarder struct {
	network *Network
	log     *slog.Logger
	at      netip.Addr // the gateway that it serves at; zero while it does not
	servers []*dns.Server
	serving sync.WaitGroup
	slots   chan struct{}

	mu   sync.Mutex // guards busy; nothing is called under it
	busy map[netip.Addr]int
}

// follow serves at the gateway's address of the moment.
func (f *forwarder) follow(ctx context.Context) error {
	n := f.network
	n.mu.Lock()
	at := gateway(n.ledger.Subnet)
	n.mu.Unlock()
	if f.at == at {
		return nil
	}
	f.stop()
	address := net.JoinHostPort(at.String(), dnsPort)
	// The address may come and go with the link; the sockets need not.
	free := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1) })
		return errors.Join(cerr, err)
	}}
	var udp net.PacketConn
	var tcp net.Listener
	if err := n.host.do(func() (err error) {
		if udp, err = free.ListenPacket(ctx, "udp4", address); err != nil {
			return err
		}
		if tcp, err = free.Listen(ctx, "tcp4", address); err != nil {
			udp.Close()
		}
		return err
	}); err != nil {
		return fmt.Errorf("serve names to instances at %s: %w", address, err)
	}
	tcp = netutil.LimitListener(tcp, streamsAtOne)
	f.slots, f.busy = make(chan struct{}, queriesAtOne), map[netip.Addr]int{}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) { f.answer(ctx, w, q) })
	f.servers = []*dns.Server{{PacketConn: udp, Handler: handler}, {Listener: tcp, Handler: handler}}
	for _, s := range f.servers {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		f.serving.Go(func() {
			if err := s.ActivateAndServe(); err != nil && ctx.Err() == nil {
				f.log.Error("serving names to instances ended", "err", err)
			}
		})
		<-started
	}
	f.at = at
	f.log.Info("serving names to instances", "address", address)
	return nil
}

func (f *forwarder) stop() {
	for _, s := range f.servers {
		_ = s.Shutdown() // waits for the answers that are under way
	}
	f.serving.Wait()
	f.servers, f.at = nil, netip.Addr{}
}

func (f *forwarder) answer(ctx context.Context, w dns.ResponseWriter, q *dns.Msg) {
	n := f.network
	client, err := netip.ParseAddrPort(w.RemoteAddr().String())
	n.mu.Lock()
	ours := err == nil && n.ledger.Subnet.Contains(client.Addr())
	upstreams := n.resolve.upstreams
	var policies map[netip.Addr]Policy
	var leased []Policy
	if ours {
		policies = n.policies()
		for _, l := range n.ledger.Leases {
			leased = append(leased, l.Policy)
		}
	}
	n.mu.Unlock()
	switch {
	case !ours:
		f.refuse(w, q, dns.RcodeRefused)
		return
	case q.Opcode != dns.OpcodeQuery:
		f.refuse(w, q, dns.RcodeNotImplemented)
		return
	case len(q.Question) != 1:
		f.refuse(w, q, dns.RcodeFormatError)
		return
	case inZone(q.Question[0].Name):
		a := answerLocal(q, client.Addr(), policies, leased)
		a.Truncate(roomFor(w, q))
		_ = w.WriteMsg(a)
		return
	case policies[client.Addr()].silent() || !f.begin(client.Addr()):
		f.refuse(w, q, dns.RcodeRefused)
		return
	}
	defer f.end(client.Addr())
	for _, up := range upstreams {
		a, err := f.ask(ctx, w.RemoteAddr().Network(), up, q)
		if err != nil {
			f.log.Debug("a resolver does not answer", "server", up, "err", err)
			continue
		}
		_ = w.WriteMsg(a) // who asked may be gone
		return
	}
	f.refuse(w, q, dns.RcodeServerFailure)
}

// roomFor is how large an answer the asker takes.
func roomFor(w dns.ResponseWriter, q *dns.Msg) int {
	if w.RemoteAddr().Network() == "tcp" {
		return dns.MaxMsgSize
	}
	if o := q.IsEdns0(); o != nil {
		// No larger than what passes everywhere in one piece.
		return min(max(int(o.UDPSize()), dns.MinMsgSize), 1232)
	}
	return dns.MinMsgSize
}

// begin takes a place for one query, unless this instance or all of them
// together ask too much at once.
func (f *forwarder) begin(client netip.Addr) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.busy[client] >= queriesOfOne {
		return false
	}
	select {
	case f.slots <- struct{}{}:
		f.busy[client]++
		return true
	default:
		return false
	}
}

func (f *forwarder) end(client netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	<-f.slots
	if f.busy[client]--; f.busy[client] == 0 {
		delete(f.busy, client)
	}
}

func (f *forwarder) refuse(w dns.ResponseWriter, q *dns.Msg, code int) {
	_ = w.WriteMsg(new(dns.Msg).SetRcode(q, code))
}

// ask puts the question to one server, by the protocol that it came by, from
// the host's namespace.
func (f *forwarder) ask(ctx context.Context, protocol string, server netip.Addr, q *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	var conn net.Conn
	if err := f.network.host.do(func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, protocol, net.JoinHostPort(server.String(), dnsPort))
		return err
	}); err != nil {
		return nil, err
	}
	defer conn.Close()
	client := dns.Client{Net: protocol, UDPSize: dns.MaxMsgSize}
	a, _, err := client.ExchangeWithConnContext(ctx, q, &dns.Conn{Conn: conn, UDPSize: dns.MaxMsgSize})
	return a, err
}
