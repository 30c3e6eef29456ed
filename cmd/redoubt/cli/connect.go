package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"redoubt.dev/redoubt/identity"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
	"redoubt.dev/redoubt/proto/tracing"
)

const (
	// connectTimeout is how long one address may take to shake hands.
	connectTimeout = 2 * time.Second
	// callTimeout bounds one try of a call.
	callTimeout = 15 * time.Second
	// patience is how long a call is repeated while the fleet has no leader.
	patience = 15 * time.Second
	between  = 250 * time.Millisecond
)

// connection is a fleet that can be talked to.
type connection struct {
	redoubtv1.FleetServiceClient
	conn *fleetConn
}

// connect opens the chosen context. It dials at the first call.
func (a *app) connect() (*connection, error) {
	name, path, err := a.choose()
	if err != nil {
		return nil, err
	}
	file, err := identity.LoadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no context file %s; `redoubt context list` shows the contexts that there are", path)
	}
	if err != nil {
		return nil, err
	}
	if len(file.Addresses) == 0 {
		return nil, fmt.Errorf("context %s names no server; add it again from a file that does", name)
	}
	source := file.Source()
	if err := identity.CheckClock(source, time.Now()); err != nil {
		return nil, err
	}
	if end := file.SVID.Certificates[0].NotAfter; !time.Now().Before(end) {
		return nil, fmt.Errorf("the identity %s of context %s expired %s ago, on %s: an administrator gets a new one with `redoubt server admin-context FILE` on a server's host, then `redoubt context add --replace %s FILE`",
			file.SVID.ID, name, age(time.Since(end)), end.UTC().Format(time.DateTime+" UTC"), name)
	}
	c := &fleetConn{name: name, path: path, file: file, source: source, conns: map[string]*identity.Conn{}, say: a.say}
	return &connection{FleetServiceClient: redoubtv1.NewFleetServiceClient(c), conn: c}, nil
}

// with runs f on a connection to the chosen fleet.
func (a *app) with(ctx context.Context, f func(context.Context, *connection) error) error {
	fl, err := a.connect()
	if err != nil {
		return err
	}
	defer fl.conn.close()
	if err = f(ctx, fl); err != nil {
		err = fl.meant(ctx, err, a.namespace)
	}
	fl.conn.refresh(ctx)
	return err
}

// fleetConn is a connection to whichever server of a fleet answers. It may be
// used from several goroutines; mu is never held during a call.
type fleetConn struct {
	name, path string
	source     *identity.MemorySource
	say        func(string, ...any)

	mu       sync.Mutex
	file     identity.File
	conns    map[string]*identity.Conn // by address
	at       int                       // index of the address in use
	answered bool                      // a server has answered
	renewing bool
	renewed  time.Time // last try
}

var _ grpc.ClientConnInterface = (*fleetConn)(nil)

// dial returns the connection to the address in use, and the address.
func (c *fleetConn) dial() (*identity.Conn, string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	address := c.file.Addresses[c.at%len(c.file.Addresses)]
	if conn, ok := c.conns[address]; ok {
		return conn, address, nil
	}
	if _, _, err := net.SplitHostPort(address); err != nil {
		return nil, "", fmt.Errorf("context %s: server address %q is not host:port", c.name, address)
	}
	conn, err := identity.NewConn("passthrough:///"+address, c.source, identity.AuthorizeServers(c.file.Bundle.TrustDomain()),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: connectTimeout,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 15 * time.Second, Timeout: 5 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		return nil, "", fmt.Errorf("context %s: %w", c.name, err)
	}
	c.conns[address] = conn
	return conn, address, nil
}

// leave moves on to the next address, unless another call has done so.
func (c *fleetConn) leave(address string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := len(c.file.Addresses); c.file.Addresses[c.at%n] == address {
		c.at = (c.at + 1) % n
	}
}

func (c *fleetConn) didAnswer() {
	c.mu.Lock()
	c.answered = true
	c.mu.Unlock()
}

// look returns what is known of the servers.
func (c *fleetConn) look() (servers int, answered bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.file.Addresses), c.answered
}

// Invoke makes a unary call on the first server that answers.
func (c *fleetConn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	c.renew(ctx)
	ctx = tracing.Outgoing(ctx)
	return c.try(ctx, func(conn *identity.Conn) error {
		once, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		return conn.Invoke(once, method, args, reply, opts...)
	})
}

// NewStream opens a stream on the first server that can be reached. What the
// server says of it comes with its first message and is not tried again.
func (c *fleetConn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (s grpc.ClientStream, err error) {
	c.renew(ctx)
	err = c.try(ctx, func(conn *identity.Conn) (err error) {
		s, err = conn.NewStream(ctx, desc, method, opts...)
		return err
	})
	return s, err
}

// try goes round the addresses. A round in which none could be reached is the
// end; a server that could be reached but has no leader is asked again.
func (c *fleetConn) try(ctx context.Context, call func(*identity.Conn) error) error {
	begun, told := time.Now(), false
	for {
		var failures []string
		var last error
		servers, _ := c.look()
		for range servers {
			conn, address, err := c.dial()
			if err != nil {
				return err
			}
			err = call(conn)
			if err == nil {
				c.didAnswer()
				return nil
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			switch code := status.Code(err); {
			case unreached(err), code == codes.DeadlineExceeded:
				failures = append(failures, fmt.Sprintf("  %s: %s", address, reachProblem(err)))
			case code == codes.Unavailable, unknownOutcome(err):
				last = err
			default:
				c.didAnswer()
				return err
			}
			c.leave(address)
		}
		if _, answered := c.look(); last == nil && !answered {
			return fmt.Errorf("no server of context %s answers:\n%s\nIs a server running there, and can this host reach it?", c.name, strings.Join(failures, "\n"))
		}
		if last == nil {
			last = errors.New("no server answers any more:\n" + strings.Join(failures, "\n"))
		}
		if time.Since(begun) > patience {
			return last
		}
		if !told && time.Since(begun) > time.Second {
			c.say("waiting for the servers: %s", plain(last))
			told = true
		}
		select {
		case <-time.After(between):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// unknownOutcome tells whether a change may or may not have been made. A stale
// revision has the same code and is an answer.
func unknownOutcome(err error) bool {
	s, ok := status.FromError(err)
	return ok && s.Code() == codes.Aborted && strings.Contains(s.Message(), "outcome")
}

// unreached tells whether a call failed before a server took it, or because
// its connection broke.
func unreached(err error) bool {
	s, ok := status.FromError(err)
	return ok && s.Code() == codes.Unavailable && (strings.Contains(s.Message(), "connection error") ||
		strings.Contains(s.Message(), "error reading from server") || strings.Contains(s.Message(), "transport is closing") ||
		strings.Contains(s.Message(), "last connection error"))
}

// reachProblem says in a person's words why an address could not be reached.
func reachProblem(err error) string {
	msg := plain(err)
	for _, known := range []struct{ in, out string }{
		{"connection refused", "connection refused: nothing listens there"},
		{"no route to host", "no route to that host"},
		{"network is unreachable", "the network is unreachable"},
		{"no such host", "there is no host of that name"},
		{"i/o timeout", "no answer in " + connectTimeout.String()},
		{"context deadline exceeded", "no answer in time"},
		{"DeadlineExceeded", "no answer in time"},
		{"certificate signed by unknown authority", "it is a server of another fleet: its authority is not in this context's trust bundle"},
		{"unknown certificate authority", "it does not trust this context's identity: it is a server of another fleet"},
		{"certificate has expired", "a certificate has expired; is the clock of one of both hosts wrong?"},
		{"expired certificate", "it takes this context's identity for expired; is the clock of one of both hosts wrong?"},
		{"first record does not look like a TLS handshake", "something else than a Redoubt server listens there"},
	} {
		if strings.Contains(msg, known.in) {
			return known.out
		}
	}
	for _, prefix := range []string{"last connection error: ", "connection error: ", "desc = ", "transport: "} {
		if i := strings.LastIndex(msg, prefix); i >= 0 {
			msg = msg[i+len(prefix):]
		}
	}
	return strings.Trim(msg, `"`)
}

func (c *fleetConn) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		conn.Close()
	}
}
