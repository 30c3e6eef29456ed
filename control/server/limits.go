package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"redoubt.dev/redoubt/control/state"
	"redoubt.dev/redoubt/identity"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// What one server takes. docs/limits.md lists all of them, and
// TestTheLimitsPageIsComplete holds it to these values.
const (
	// maxMessage bounds one message of any call, bytes.
	maxMessage = 4 << 20
	// maxAnswer bounds what this server says in one message: all assignments of
	// a node at once, or a list. Agents and the command line take as much.
	maxAnswer = 64 << 20
	// maxHeaders bounds the metadata of one call, bytes.
	maxHeaders = 16 << 10
	// maxStreams bounds the calls at once on one connection.
	maxStreams = 256
	// streamWindow is what a server takes in of one stream before it is read,
	// connWindow of one connection before it is looked at. They are fixed, so that
	// a reader who stands still holds so much and no more.
	streamWindow, connWindow = 128 << 10, 1 << 20
	// maxConnections bounds connections in all, and maxConnectionsEach those of
	// one node or user; servers are not counted.
	maxConnections, maxConnectionsEach = 16_384, 512
	// maxHandshakes bounds those that have not shown who they are, in all and
	// from one address; keptHandshakes of them are for addresses of servers.
	// Enrolment counts its own, so that strangers there cost the API nothing;
	// so does Raft (consensus.Layer). handshakeWithin ends one.
	maxHandshakes, maxHandshakesEach, keptHandshakes = 2048, 64, 128
	maxEnrolHandshakes, maxEnrolHandshakesEach       = 512, 32
	handshakeWithin                                  = 10 * time.Second
	// maxCallsEach bounds the calls at once of one node or user, over all its
	// connections; maxUnaryEach those of them that are no streams. What is at
	// work and what it decodes to is bounded by that.
	maxCallsEach, maxUnaryEach = 2048, 128
	// callsPerSecond of one node or user; callBurst may come at once.
	callsPerSecond, callBurst = 200, 2000
	// unaryWithin bounds a unary call with the time that its message takes to
	// arrive.
	unaryWithin = time.Minute
	// sessionMessages and sessionBytes of one agent's session a second, with the
	// bursts after them. A session that says more is read more slowly.
	sessionMessages, sessionMessageBurst = 100, 1000
	sessionBytes, sessionByteBurst       = 256 << 10, 2 * maxMessage
	// maxStrangers bounds connections of callers without a certificate, which
	// only enrolment takes, in all and from one address. An enrolment is a call
	// or two: such a connection ends when it is idle, and when it is old.
	maxStrangers, maxStrangersEach = 1024, 64
	strangerIdle, strangerAge      = 15 * time.Second, time.Minute
	// maxEnrolMessage bounds a message of enrolment: a token, a signing request
	// and a chain have a few KiB. maxEnrolStreams bounds the calls at once on
	// one connection.
	maxEnrolMessage = 64 << 10
	maxEnrolStreams = 4
	// enrolmentsPerSecond bounds first contacts of all callers together.
	enrolmentsPerSecond, enrolmentBurst = 50, 200
	// pingsNoOftenerThan ends a connection whose client pings oftener.
	pingsNoOftenerThan = 5 * time.Second

	// MaxServers, MaxNodes, MaxWorkloads, MaxTokens are what a fleet holds. They
	// are checked before a change is proposed, so that some that come at the
	// same moment may pass together.
	MaxServers, MaxNodes, MaxWorkloads, MaxTokens = 5, 20_000, 10_000, 10_000
)

// admission counts what callers hold and how fast they call.
type admission struct {
	mu         sync.Mutex
	total      int
	each       map[identity.ID]*usage
	cleared    time.Time    // when each was last rid of who is long gone
	unread     atomic.Int64 // of all callers, see holding
	strangers  int
	strangerAt map[netip.Prefix]int
	// api and enrol let in who has not shown who they are.
	api, enrol *identity.Gate
	// refused is told of each refusal, with the name of its limit; it must not
	// block.
	refused func(limit string)
}

// forgetAfter is how long a caller's usage is kept at least after the last of it,
// and how often it is looked who may be forgotten.
const forgetAfter = time.Minute

// usage is what one node or user holds.
type usage struct {
	name                      string
	connections, calls, unary int
	rate                      *rate.Limiter
	last                      time.Time
	conns                     map[*countedConn]struct{} // those that are followed
	held                      holding
}

func newAdmission() *admission {
	return &admission{
		each: map[identity.ID]*usage{}, strangerAt: map[netip.Prefix]int{}, refused: func(string) {},
		api:   identity.NewGate(maxHandshakes, maxHandshakesEach, keptHandshakes),
		enrol: identity.NewGate(maxEnrolHandshakes, maxEnrolHandshakesEach, 0),
	}
}

// of returns the caller's usage; it needs mu.
func (a *admission) of(id identity.ID, now time.Time) *usage {
	u, ok := a.each[id]
	if !ok {
		// Not for each newcomer: they come in thousands after a leader's death.
		if now.Sub(a.cleared) > forgetAfter {
			a.cleared = now
			for other, o := range a.each {
				if o.connections == 0 && o.calls == 0 && now.Sub(o.last) > forgetAfter {
					delete(a.each, other)
				}
			}
		}
		u = &usage{name: nameOf(id), rate: rate.NewLimiter(callsPerSecond, callBurst), conns: map[*countedConn]struct{}{}}
		a.each[id] = u
	}
	u.last = now
	return u
}

// metered says whose holdings are bounded: a server's are not, or one that is
// busy for others would be kept from working.
func metered(id identity.ID) bool {
	return id.Kind() == identity.KindNode || id.Kind() == identity.KindUser
}

func (a *admission) connect(id identity.ID) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	u := a.of(id, time.Now())
	switch {
	case metered(id) && u.connections >= maxConnectionsEach:
		a.refused("connections")
		return fmt.Errorf("%s holds %d connections, its limit", id, u.connections)
	case metered(id) && a.total >= maxConnections:
		a.refused("connections")
		return fmt.Errorf("%d connections are open on this server, its limit", a.total)
	}
	u.connections++
	a.total++
	return nil
}

// follow counts what a connection of id's holds; servers' are not looked at.
func (a *admission) follow(id identity.ID, c *countedConn, refuse func(error)) {
	c.gone, c.refuse = func() { a.disconnect(id) }, refuse
	if !metered(id) {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	u := a.of(id, time.Now())
	c.wire = newWire(a, u)
	u.conns[c] = struct{}{}
	c.gone = func() {
		a.mu.Lock()
		delete(u.conns, c)
		a.mu.Unlock()
		c.wire.close()
		a.disconnect(id)
	}
}

func (a *admission) disconnect(id identity.ID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.of(id, time.Now()).connections--
	a.total--
}

// meet admits a connection of somebody without a certificate.
func (a *admission) meet(from netip.Prefix) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.strangers >= maxStrangers || a.strangerAt[from] >= maxStrangersEach {
		a.refused("strangers")
		return fmt.Errorf("%d connections without a certificate are open, %d of them from %s: at most %d and %d", a.strangers, a.strangerAt[from], from, maxStrangers, maxStrangersEach)
	}
	a.strangers++
	a.strangerAt[from]++
	return nil
}

func (a *admission) part(from netip.Prefix) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.strangers--
	if a.strangerAt[from]--; a.strangerAt[from] == 0 {
		delete(a.strangerAt, from)
	}
}

// call admits a call before anything of it is read. It must not block.
func (a *admission) call(ctx context.Context, info *tap.Info) (context.Context, error) {
	id, err := identity.PeerID(ctx)
	if err == nil && metered(id) {
		single := unary[info.FullMethodName]
		if err := a.begin(id, single); err != nil {
			return ctx, err
		}
		// The context ends with the handler, however that ends; the answer may
		// wait for its reader still.
		context.AfterFunc(ctx, func() { a.end(id, single) })
	}
	if unary[info.FullMethodName] {
		bounded, cancel := context.WithTimeout(ctx, unaryWithin)
		context.AfterFunc(ctx, cancel)
		return bounded, nil
	}
	return ctx, nil
}

func (a *admission) begin(id identity.ID, single bool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	u := a.of(id, time.Now())
	if u.calls >= maxCallsEach {
		a.refused("calls")
		return status.Errorf(codes.ResourceExhausted, "%s %s has %d calls open on this server, its limit: end some, or use another server", id.Kind(), id.Name(), maxCallsEach)
	}
	if single && u.unary >= maxUnaryEach {
		a.refused("calls")
		return status.Errorf(codes.ResourceExhausted, "%s %s has %d calls at work on this server that are no streams, its limit: wait for their answers", id.Kind(), id.Name(), maxUnaryEach)
	}
	if u.held.streams.Load()-int64(u.calls) > maxUnanswered {
		a.refused("answers")
		return status.Errorf(codes.ResourceExhausted, "%d answers wait for %s %s to read them, its limit on this server: read or end the calls that are open", maxUnanswered, id.Kind(), id.Name())
	}
	if !u.rate.Allow() {
		a.refused("rate")
		return status.Errorf(codes.ResourceExhausted, "%s %s makes more than %d calls a second on this server, its limit: slow down", id.Kind(), id.Name(), callsPerSecond)
	}
	u.calls++
	if single {
		u.unary++
	}
	return nil
}

func (a *admission) end(id identity.ID, single bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	u := a.of(id, time.Now())
	u.calls--
	if single {
		u.unary--
	}
}

// unary are the methods with one message each way.
var unary = func() map[string]bool {
	m := map[string]bool{}
	for _, d := range []grpc.ServiceDesc{
		redoubtv1.FleetService_ServiceDesc, redoubtv1.AgentService_ServiceDesc,
		redoubtv1.PeerService_ServiceDesc, redoubtv1.EnrollmentService_ServiceDesc,
	} {
		for _, method := range d.Methods {
			m["/"+d.ServiceName+"/"+method.MethodName] = true
		}
	}
	return m
}()

// counted are credentials that admit a connection by who opens it.
type counted struct {
	credentials.TransportCredentials
	admission *admission
	gate      *identity.Gate
	refused   func(net.Addr, error)
}

func (c counted) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	leave, err := c.gate.Enter(raw.RemoteAddr(), func() {
		c.admission.refused("handshakes")
		raw.Close()
	})
	if err != nil {
		c.admission.refused("handshakes")
		return c.refuse(raw, err)
	}
	defer leave()
	conn, info, err := c.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return nil, nil, err
	}
	id, err := identity.PeerID(peer.NewContext(context.Background(), &peer.Peer{Addr: raw.RemoteAddr(), AuthInfo: info}))
	if err != nil { // first contact: nobody yet
		from := identity.Origin(raw.RemoteAddr())
		if err := c.admission.meet(from); err != nil {
			return c.refuse(conn, err)
		}
		return &countedConn{Conn: conn, gone: func() { c.admission.part(from) }}, info, nil
	}
	if id.Kind() == identity.KindServer {
		c.gate.Know(raw.RemoteAddr())
	}
	if err := c.admission.connect(id); err != nil {
		return c.refuse(conn, err)
	}
	counted := &countedConn{Conn: conn}
	refuse := func(err error) { c.refused(raw.RemoteAddr(), err) }
	c.admission.follow(id, counted, refuse)
	return counted, info, nil
}

func (c counted) refuse(conn net.Conn, err error) (net.Conn, credentials.AuthInfo, error) {
	c.refused(conn.RemoteAddr(), err)
	return nil, nil, errors.Join(err, conn.Close())
}

func (c counted) Clone() credentials.TransportCredentials {
	return counted{c.TransportCredentials.Clone(), c.admission, c.gate, c.refused}
}

type countedConn struct {
	net.Conn
	once   sync.Once
	gone   func()
	wire   *wire // nil: what it holds is not counted
	refuse func(error)
}

func (c *countedConn) Close() error {
	c.once.Do(c.gone)
	return c.Conn.Close()
}

// limitedServer is a gRPC server with every limit; of two options that differ, the
// further one holds.
func (s *Server) limitedServer(creds credentials.TransportCredentials, gate *identity.Gate, further ...grpc.ServerOption) *grpc.Server {
	return grpc.NewServer(append([]grpc.ServerOption{
		grpc.Creds(counted{creds, s.admission, gate, s.refused}), grpc.InTapHandle(s.admission.call),
		grpc.MaxRecvMsgSize(maxMessage), grpc.ForceServerCodecV2(newCodec()), grpc.MaxSendMsgSize(maxAnswer), grpc.MaxHeaderListSize(maxHeaders),
		grpc.MaxConcurrentStreams(maxStreams), grpc.InitialWindowSize(streamWindow), grpc.InitialConnWindowSize(connWindow),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingsNoOftenerThan, PermitWithoutStream: true}),
		grpc.ConnectionTimeout(handshakeWithin),
		grpc.ChainUnaryInterceptor(s.metrics.unaryMeter, holdUnary, s.unaryTracer, s.unaryAuthorizer), grpc.ChainStreamInterceptor(s.metrics.streamMeter, holdStream, s.streamAuthorizer),
	}, further...)...)
}

// forStrangers are the options of a server whose callers nobody knows.
func forStrangers() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxEnrolMessage), grpc.MaxConcurrentStreams(maxEnrolStreams),
		grpc.InitialWindowSize(maxEnrolMessage), grpc.InitialConnWindowSize(2 * maxEnrolMessage),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: 20 * time.Second, Timeout: 10 * time.Second,
			MaxConnectionIdle: strangerIdle, MaxConnectionAge: strangerAge, MaxConnectionAgeGrace: unaryWithin,
		}),
	}
}

// refused says once a second at most that a connection was refused.
func (s *Server) refused(remote net.Addr, err error) {
	if s.refusals.Allow() {
		s.log.Info("refused a connection", "remote", remote.String(), "reason", err)
	}
}

// pace reads a session no faster than its limit: what is not read yet waits at
// the agent.
type pace struct{ messages, bytes *rate.Limiter }

func newPace() pace {
	return pace{rate.NewLimiter(sessionMessages, sessionMessageBurst), rate.NewLimiter(sessionBytes, sessionByteBurst)}
}

func (p pace) wait(ctx context.Context, size int) error {
	if err := p.messages.Wait(ctx); err != nil {
		return err
	}
	return p.bytes.WaitN(ctx, min(size, sessionByteBurst))
}

// room refuses a new object where the fleet holds as many as it may.
func room(what string, have, most int) error {
	if have < most {
		return nil
	}
	return status.Errorf(codes.ResourceExhausted, "the fleet holds %d %s, its limit: remove some first", have, what)
}

func roomForWorkload(view *state.View, namespace, name string) error {
	if _, ok := view.Workload(nil, namespace, name); ok {
		return nil
	}
	return room("workloads", len(view.Workloads(nil, "")), MaxWorkloads)
}
