package identity

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"
)

// Conn is a gRPC client connection that outlives SVIDs. When the own SVID has
// been renewed, or the validity of either side nears its end, it dials a new
// connection beside the old one, moves new calls over once that is ready, and
// closes the old one when its last call has ended. A stream that is still open
// at the old connection's NotAfter is cut: its owner finds the moment to move
// in Peer.DrainAt.
//
// It has no goroutine of its own: the check is made as each call begins, so a
// Conn without calls dials nothing, and its connection just ends in time.
type Conn struct {
	target     string
	src        Source
	authorizer Authorizer
	opts       []grpc.DialOption

	mu     sync.Mutex
	cur    *member
	next   *member // being dialled to replace cur
	old    map[*member]bool
	closed bool
}

var _ grpc.ClientConnInterface = (*Conn)(nil)

// member is one gRPC connection of a Conn. Conn.mu guards its fields.
type member struct {
	cc      *grpc.ClientConn
	own     *x509svid.SVID // presented by the newest handshake
	shaken  bool           // a handshake has succeeded
	drainAt time.Time      // earliest over all handshakes
	endAt   time.Time      // likewise
	calls   int
}

// NewConn returns a Conn to target, in gRPC's syntax, that dials at the first
// call. Transport credentials in opts are overridden.
func NewConn(target string, src Source, authorizer Authorizer, opts ...grpc.DialOption) (*Conn, error) {
	c := &Conn{target: target, src: src, authorizer: authorizer, opts: opts, old: map[*member]bool{}}
	// Made now so that a malformed target is an error here and not at a call.
	m, err := c.newMember()
	if err != nil {
		return nil, err
	}
	c.cur = m
	return c, nil
}

func (c *Conn) newMember() (*member, error) {
	m := &member{}
	creds := newTransport(c.src, c.authorizer, nil)
	creds.connected = func(own *x509svid.SVID, p Peer) {
		c.mu.Lock()
		defer c.mu.Unlock()
		m.own, m.shaken = own, true
		if m.drainAt.IsZero() || p.DrainAt.Before(m.drainAt) {
			m.drainAt, m.endAt = p.DrainAt, p.NotAfter
		}
	}
	opts := append(append([]grpc.DialOption{}, c.opts...), grpc.WithTransportCredentials(creds))
	cc, err := grpc.NewClient(c.target, opts...)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", c.target, err)
	}
	m.cc = cc
	return m, nil
}

// acquire returns the member for a new call, which must be released.
func (c *Conn) acquire() (*member, error) {
	c.mu.Lock()
	var idle []*member
	defer func() {
		c.mu.Unlock()
		for _, m := range idle {
			m.cc.Close()
		}
	}()
	if c.closed {
		return nil, status.Error(codes.Canceled, "the connection is closed")
	}
	if c.stale(time.Now()) {
		if c.next == nil {
			next, err := c.newMember()
			if err != nil {
				return nil, status.Error(codes.Unavailable, err.Error())
			}
			c.next = next
		}
		// Connect only asks; the handshake runs in gRPC's goroutines.
		if c.next.cc.GetState() == connectivity.Idle {
			c.next.cc.Connect()
		}
		if c.mustMove(time.Now()) {
			if c.cur.calls == 0 {
				idle = append(idle, c.cur)
			} else {
				c.old[c.cur] = true
			}
			c.cur, c.next = c.next, nil
		}
	}
	c.cur.calls++
	return c.cur, nil
}

// stale says whether cur should be replaced. One that was never connected
// need not be: it will present what src holds when it is.
func (c *Conn) stale(now time.Time) bool {
	if !c.cur.shaken {
		return false
	}
	if !now.Before(c.cur.drainAt) {
		return true
	}
	svid, err := c.src.GetX509SVID()
	return err == nil && svid != c.cur.own
}

// mustMove says whether new calls go to next: when it is ready; or when cur is
// no better, being disconnected or near its end.
func (c *Conn) mustMove(now time.Time) bool {
	if c.next.cc.GetState() == connectivity.Ready || c.cur.cc.GetState() != connectivity.Ready {
		return true
	}
	grace := c.cur.endAt.Sub(c.cur.drainAt) / 2
	return !now.Before(c.cur.endAt.Add(-grace))
}

func (c *Conn) release(m *member) {
	c.mu.Lock()
	m.calls--
	done := m.calls == 0 && c.old[m]
	if done {
		delete(c.old, m)
	}
	c.mu.Unlock()
	if done {
		m.cc.Close()
	}
}

// Invoke implements grpc.ClientConnInterface.
func (c *Conn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	m, err := c.acquire()
	if err != nil {
		return err
	}
	defer c.release(m)
	return m.cc.Invoke(ctx, method, args, reply, opts...)
}

// NewStream implements grpc.ClientConnInterface. gRPC's rule holds that a
// stream must be read to its end or its context cancelled.
func (c *Conn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	m, err := c.acquire()
	if err != nil {
		return nil, err
	}
	release := sync.OnceFunc(func() { c.release(m) })
	opts = append(append([]grpc.CallOption{}, opts...), grpc.OnFinish(func(error) { release() }))
	s, err := m.cc.NewStream(ctx, desc, method, opts...)
	if err != nil {
		release()
		return nil, err
	}
	return s, nil
}

// Close closes every connection; calls in flight fail.
func (c *Conn) Close() error {
	c.mu.Lock()
	members := []*member{c.cur}
	if c.next != nil {
		members = append(members, c.next)
	}
	for m := range c.old {
		members = append(members, m)
	}
	if c.closed {
		members = nil
	}
	c.closed = true
	c.old = map[*member]bool{}
	c.mu.Unlock()
	var first error
	for _, m := range members {
		if err := m.cc.Close(); err != nil && first == nil {
			first = err
		}
	}
	return first
}
