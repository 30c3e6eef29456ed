package consensus

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"redoubt.dev/redoubt/identity"
)

const (
	handshakeTimeout = 10 * time.Second
	// maxStrangers bounds connections that have not shown who they are, in all
	// and from one address; keptStrangers of them are for addresses of servers.
	maxStrangers, maxStrangersEach, keptStrangers = 512, 32, 64
)

// Security authenticates connections; each function closes raw when it fails.
type Security struct {
	// Server and Client perform a side's handshake.
	Server, Client func(ctx context.Context, raw net.Conn) (net.Conn, error)
	// DrainAt is when no request may begin on conn any more, being near the end
	// of an identity; zero: never. Ending it is the connection's own matter.
	DrainAt func(conn net.Conn) time.Time
}

// Layer carries Raft's connections: it listens, dials and authenticates. It has
// no goroutine; a handshake runs in the goroutine that first uses a connection.
type Layer struct {
	listener  net.Listener
	security  Security
	dial      func(ctx context.Context, network, address string) (net.Conn, error)
	strangers *identity.Gate

	mu     sync.Mutex
	closed bool
	open   map[*layerConn]bool
	users  sync.WaitGroup // connections that Raft has not let go of
}

var _ raft.StreamLayer = (*Layer)(nil)

// NewLayer carries Raft over listener, which it owns from now on. A nil dial
// dials TCP.
func NewLayer(listener net.Listener, security Security, dial func(ctx context.Context, network, address string) (net.Conn, error)) *Layer {
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	return &Layer{listener: listener, security: security, dial: dial, strangers: identity.NewGate(maxStrangers, maxStrangersEach, keptStrangers), open: map[*layerConn]bool{}}
}

// Accept returns the next connection before its peer is known: the handshake is
// part of the first read, so that nobody who dials and then says nothing holds
// up others.
func (l *Layer) Accept() (net.Conn, error) {
	for {
		raw, err := l.listener.Accept()
		if err != nil {
			return nil, err
		}
		leave, err := l.strangers.Enter(raw.RemoteAddr(), func() { raw.Close() })
		if err != nil {
			raw.Close()
			continue
		}
		c := &layerConn{Conn: raw, layer: l}
		c.shake = sync.OnceValue(func() error {
			defer leave()
			ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
			defer cancel()
			secure, err := l.security.Server(ctx, raw)
			if err != nil {
				return fmt.Errorf("refuse Raft connection from %s: %w", raw.RemoteAddr(), err)
			}
			l.strangers.Know(raw.RemoteAddr()) // only servers are let in
			c.secure = secure
			return nil
		})
		if !l.keep(c) {
			return nil, net.ErrClosed
		}
		return c, nil
	}
}

// Dial connects to another server and knows it before it returns.
func (l *Layer) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	if timeout <= 0 {
		timeout = handshakeTimeout
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	raw, err := l.dial(ctx, "tcp", string(address))
	if err != nil {
		return nil, err
	}
	secure, err := l.security.Client(ctx, raw)
	if err != nil {
		return nil, fmt.Errorf("connect Raft to %s: %w", address, err)
	}
	l.strangers.Know(raw.RemoteAddr())
	c := &layerConn{Conn: raw, layer: l, secure: secure, dialled: true, shake: func() error { return nil }}
	if l.security.DrainAt != nil {
		c.drainAt = l.security.DrainAt(secure)
	}
	if !l.keep(c) {
		return nil, net.ErrClosed
	}
	return c, nil
}

// keep remembers c so that Close can end it; false if the layer is closed.
func (l *Layer) keep(c *layerConn) bool {
	l.mu.Lock()
	closed := l.closed
	if !closed {
		l.open[c] = true
		l.users.Add(1)
	}
	l.mu.Unlock()
	if closed {
		c.end()
	}
	return !closed
}

// Close stops listening and ends every connection.
func (l *Layer) Close() error {
	l.mu.Lock()
	l.closed = true
	open := make([]*layerConn, 0, len(l.open))
	for c := range l.open {
		open = append(open, c)
	}
	l.mu.Unlock()
	err := l.listener.Close()
	for _, c := range open {
		c.Conn.Close()
	}
	return err
}

// wait returns when Raft has let go of every connection, after Close.
func (l *Layer) wait() { l.users.Wait() }

// Addr is where the layer listens.
func (l *Layer) Addr() net.Addr { return l.listener.Addr() }

// errDraining makes Raft drop a pooled connection before it has sent anything
// on it, and dial anew: nothing is lost and nobody waits.
var errDraining = errors.New("the connection's identity ends soon: dial again")

// layerConn is one connection; Conn is the raw one, secure what speaks over it.
type layerConn struct {
	net.Conn
	layer   *Layer
	shake   func() error
	secure  net.Conn // set by shake, or before the connection is handed out
	dialled bool
	drainAt time.Time
	// midway: something was written since the last read, so a request may be
	// half sent or waiting for its answer.
	midway  atomic.Bool
	closing sync.Once
}

func (c *layerConn) Read(p []byte) (int, error) {
	if err := c.shake(); err != nil {
		return 0, err
	}
	n, err := c.secure.Read(p)
	if n > 0 {
		c.midway.Store(false)
	}
	return n, err
}

func (c *layerConn) Write(p []byte) (int, error) {
	if err := c.shake(); err != nil {
		return 0, err
	}
	if c.dialled && !c.midway.Load() {
		if !c.drainAt.IsZero() && !time.Now().Before(c.drainAt) {
			return 0, errDraining
		}
		c.midway.Store(true)
	}
	return c.secure.Write(p)
}

func (c *layerConn) SetDeadline(t time.Time) error { return c.deadline(net.Conn.SetDeadline, t) }
func (c *layerConn) SetReadDeadline(t time.Time) error {
	return c.deadline(net.Conn.SetReadDeadline, t)
}
func (c *layerConn) SetWriteDeadline(t time.Time) error {
	return c.deadline(net.Conn.SetWriteDeadline, t)
}

func (c *layerConn) deadline(set func(net.Conn, time.Time) error, t time.Time) error {
	if err := c.shake(); err != nil {
		return err
	}
	return set(c.secure, t)
}

// Close is Raft's letting go.
func (c *layerConn) Close() error {
	err := net.ErrClosed
	c.closing.Do(func() {
		c.layer.mu.Lock()
		delete(c.layer.open, c)
		c.layer.mu.Unlock()
		err = c.end()
		c.layer.users.Done()
	})
	return err
}

func (c *layerConn) end() error {
	if c.dialled {
		return c.secure.Close()
	}
	// A connection whose handshake runs or never began is ended below it.
	return c.Conn.Close()
}

// address is a net.Addr of what others dial, which may be a name.
type address string

func (address) Network() string  { return "tcp" }
func (a address) String() string { return string(a) }

// advertised is a Layer that names itself as others dial it.
type advertised struct {
	*Layer
	at address
}

func (a advertised) Addr() net.Addr { return a.at }
