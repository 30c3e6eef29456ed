package server

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/control/state"
	"redoubt.dev/redoubt/identity"
	"redoubt.dev/redoubt/isolation"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

const (
	// helloDeadline bounds how long a stream may stay silent before its Hello.
	helloDeadline = 10 * time.Second
	// sessionQueue is how many messages may wait for a slow agent. One that
	// falls further behind loses its session and resyncs; nobody waits for it.
	sessionQueue = 64
	// maxPendingStatuses bounds what one session may have unacknowledged.
	maxPendingStatuses = 10_000
	// maxPendingBytes bounds those statuses, maxReport one report, and maxHints
	// and maxHint what of gossip waits: all of it together fits a message
	// between servers.
	maxPendingBytes = 1 << 20
	maxReport       = 512 << 10
	maxHints        = 1000
	maxHint         = 1 << 10
)

// sessionStream is an agent's session.
type sessionStream = grpc.BidiStreamingServer[redoubtv1.SessionRequest, redoubtv1.SessionResponse]

// session is one agent's stream. The fields below mu are what it said and the
// leader has not heard yet.
type session struct {
	node, site string
	remote     string
	hello      *redoubtv1.Hello
	opened     time.Time
	expires    time.Time // the node's certificate
	out        chan *redoubtv1.SessionResponse
	cancel     context.CancelCauseFunc

	mu         sync.Mutex
	dirty      bool      // the leader should hear of it
	last       time.Time // of the last message
	heartbeat  uint64    // to be acknowledged, 0 if none
	load       uint32
	diskFull   bool
	warnings   []string
	report     *redoubtv1.Report
	reportAt   time.Time
	reportSent bool // to the leader of the present term
	statuses   map[string]*redoubtv1.InstanceStatus
	// statusBytes they have, and those they replaced
	statusBytes int
	statusSeq   uint64 // of the last batch received
	ackedSeq    uint64
	complete    bool
	hints       map[string]*redoubtv1.Hint
}

var (
	errSuperseded = errors.New("a newer session of the same node took over")
	errTooSlow    = errors.New("the agent does not read: its session queue is full")
	errStopping   = errors.New("this server is stopping")
	errNoLeaderIn = errors.New("this server cannot reach a leader")
)

// queue hands m to the writer; a session that is full is ended.
func (s *session) queue(m *redoubtv1.SessionResponse) bool {
	select {
	case s.out <- m:
		return true
	default:
		s.cancel(errTooSlow)
		return false
	}
}

func (s *session) goodbye(cause error) {
	select {
	case s.out <- &redoubtv1.SessionResponse{Message: &redoubtv1.SessionResponse_Goodbye{Goodbye: &redoubtv1.Goodbye{Reason: cause.Error()}}}:
	default:
		s.cancel(cause)
	}
}

// Session serves one agent until either side ends it.
func (a *agentAPI) Session(stream sessionStream) error {
	node := callerFrom(stream.Context()).Name()
	hello, err := recvHello(stream)
	if err != nil {
		return err
	}
	if err := a.admit(stream.Context(), node, hello); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	s := &session{
		node: node, site: hello.GetSite(), hello: hello, remote: remoteOf(ctx),
		out: make(chan *redoubtv1.SessionResponse, sessionQueue), cancel: cancel,
		opened: time.Now(), expires: certificateEnd(ctx), dirty: true, last: time.Now(), statuses: map[string]*redoubtv1.InstanceStatus{}, hints: map[string]*redoubtv1.Hint{},
	}
	log := a.log.With("node", node, "site", s.site)
	if older := a.sessions.add(s); older != nil {
		if older.remote != s.remote {
			log.Warn("second session of one node: the older is closed; if this repeats, two agents share one identity", "older", older.remote, "newer", s.remote)
		}
		older.goodbye(errSuperseded)
		older.cancel(errSuperseded)
	}
	defer a.sessions.remove(s)
	log.Info("session opened", "remote", s.remote, "agent", hello.GetAgentVersion())
	a.sessions.poke()

	// Recv and a Send that waits for a slow reader end with the stream, and the
	// stream ends when this handler returns: both therefore run beside it and
	// are not waited for.
	go func() { cancel(a.write(ctx, s, stream, hello.GetAssignmentVersion())) }()
	read := make(chan error, 1)
	go func() { read <- a.read(s, stream) }()
	select {
	case err = <-read:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	log.Info("session closed", "reason", errText(err))
	switch {
	case err == nil || errors.Is(err, io.EOF) || errors.Is(err, context.Canceled):
		return nil
	case errors.Is(err, errSuperseded):
		return status.Error(codes.Aborted, err.Error())
	case errors.Is(err, errStopping), errors.Is(err, errNoLeaderIn), errors.Is(err, errTooSlow):
		return status.Error(codes.Unavailable, err.Error())
	}
	return err
}

func recvHello(stream sessionStream) (*redoubtv1.Hello, error) {
	type received struct {
		m   *redoubtv1.SessionRequest
		err error
	}
	got := make(chan received, 1)
	go func() {
		m, err := stream.Recv()
		got <- received{m, err}
	}()
	timer := time.NewTimer(helloDeadline)
	defer timer.Stop()
	select {
	case r := <-got:
		if r.err != nil {
			return nil, r.err
		}
		if r.m.GetHello() == nil {
			return nil, status.Error(codes.InvalidArgument, "the first message of a session must be a Hello")
		}
		cleanHello(r.m.GetHello())
		return r.m.GetHello(), nil
	case <-timer.C:
		return nil, status.Errorf(codes.DeadlineExceeded, "no Hello within %s", helloDeadline)
	}
}

// admit checks that the caller may open a session here and now.
func (a *agentAPI) admit(ctx context.Context, node string, hello *redoubtv1.Hello) error {
	if hello.GetNode() != "" && hello.GetNode() != node {
		return status.Errorf(codes.PermissionDenied, "node %s may not speak for node %s: a node speaks only for itself", node, hello.GetNode())
	}
	if a.sessionsClosed.Load() {
		return status.Error(codes.Unavailable, errStopping.Error())
	}
	// What this server hands out must not be older than what the leader has
	// applied, nor than what the agent knows.
	ctx, cancel := context.WithTimeout(ctx, leaderWait)
	defer cancel()
	if err := a.catchUp(ctx, hello.GetAssignmentVersion()); err != nil {
		return status.Errorf(codes.Unavailable, "this server cannot tell what is current: %v", err)
	}
	view := a.store.Snapshot()
	if c := view.Cluster(); hello.GetClusterId() != "" && hello.GetClusterId() != c.ID {
		return status.Errorf(codes.FailedPrecondition, "the agent's data is of cluster %s, this is cluster %s: give it an empty data directory and a join token", hello.GetClusterId(), c.ID)
	}
	n, ok := view.Node(nil, isolation.NodeID(node))
	if !ok {
		return status.Errorf(codes.PermissionDenied, "node %s is not enrolled in this fleet: enrol it with a join token", node)
	}
	if hello.GetSite() != string(n.Site) {
		return status.Errorf(codes.InvalidArgument, "node %s is enrolled at site %q and says that it is at %q: enrol it again with a token for the new site", node, n.Site, hello.GetSite())
	}
	return nil
}

// read takes in what the agent says.
func (a *agentAPI) read(s *session, stream sessionStream) error {
	pace := newPace()
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		if err := pace.wait(stream.Context(), proto.Size(m)); err != nil {
			return err
		}
		if err := a.take(s, m); err != nil {
			return err
		}
		a.sessions.poke()
	}
}

// take records one message. It never blocks.
func (a *agentAPI) take(s *session, m *redoubtv1.SessionRequest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last, s.dirty = time.Now(), true
	switch m := m.GetMessage().(type) {
	case *redoubtv1.SessionRequest_Hello:
		return status.Error(codes.InvalidArgument, "a session has one Hello")
	case *redoubtv1.SessionRequest_Heartbeat:
		s.heartbeat, s.load, s.diskFull = m.Heartbeat.GetSequence(), m.Heartbeat.GetLoad(), m.Heartbeat.GetDiskFull()
		s.warnings = cleanWarnings(m.Heartbeat.GetWarnings())
	case *redoubtv1.SessionRequest_Report:
		r := m.Report.GetReport()
		if r.GetNode() != s.node {
			return status.Errorf(codes.PermissionDenied, "node %s may not report for node %q: a node speaks only for itself", s.node, r.GetNode())
		}
		if r.GetSite() != s.site {
			return status.Errorf(codes.InvalidArgument, "node %s at site %q reports for site %q", s.node, s.site, r.GetSite())
		}
		if size := proto.Size(r); size > maxReport {
			return status.Errorf(codes.ResourceExhausted, "the report of node %s has %d bytes, at most %d are taken", s.node, size, maxReport)
		}
		cleanReport(r)
		s.report, s.reportAt, s.reportSent = r, s.last, false
	case *redoubtv1.SessionRequest_Status:
		for _, st := range m.Status.GetStatuses() {
			cleanStatus(st)
			s.statuses[st.GetUid()] = st
			s.statusBytes += proto.Size(st)
		}
		if len(s.statuses) > maxPendingStatuses || s.statusBytes > maxPendingBytes {
			return status.Errorf(codes.ResourceExhausted, "node %s has more than %d statuses or %d bytes of them unacknowledged", s.node, maxPendingStatuses, maxPendingBytes)
		}
		s.statusSeq = m.Status.GetSequence()
		s.complete = s.complete || m.Status.GetComplete()
	case *redoubtv1.SessionRequest_Hints:
		for _, h := range m.Hints.GetHints() {
			if len(s.hints) < maxHints && proto.Size(h) <= maxHint {
				s.hints[h.GetNode()] = h
			}
		}
	}
	return nil
}

// write sends the Welcome, then assignments as the state changes, and what is
// queued. It is the only sender of the stream.
func (a *agentAPI) write(ctx context.Context, s *session, stream sessionStream, known uint64) error {
	update := a.fleetUpdate(a.store.Snapshot(), nil, s)
	if err := stream.Send(&redoubtv1.SessionResponse{Message: &redoubtv1.SessionResponse_Welcome{Welcome: &redoubtv1.Welcome{
		ClusterId: a.store.Snapshot().Cluster().ID, Server: a.cfg.ID, FeatureLevel: state.FeatureLevel,
		HeartbeatInterval: durationpb.New(a.cfg.Timing.Heartbeat), Fleet: update,
	}}}); err != nil {
		return err
	}
	sent := update
	first := true
	var ack *redoubtv1.SessionResponse
	for {
		ws := state.NewWatchSet()
		view := a.store.Snapshot()
		msg, version := a.assignments(view, ws, s.node, known, first)
		if msg != nil {
			if err := stream.Send(&redoubtv1.SessionResponse{Message: &redoubtv1.SessionResponse_Assignments{Assignments: msg}}); err != nil {
				return err
			}
			first = false
		}
		known = version
		if u := a.fleetUpdate(view, ws, s); !sameUpdate(u, sent) {
			if err := stream.Send(&redoubtv1.SessionResponse{Message: &redoubtv1.SessionResponse_Fleet{Fleet: u}}); err != nil {
				return err
			}
			sent = u
		}
		if ack != nil {
			if err := stream.Send(ack); err != nil {
				return err
			}
		}
		var err error
		if ack, err = a.flush(ctx, s, stream, ws); err != nil {
			return err
		}
	}
}

// flush sends queued messages until the state changes, or until one of them
// acknowledges a heartbeat. That one is handed back: the assignments as of now
// go before it, so that a lease is never renewed for what was given up.
func (a *agentAPI) flush(ctx context.Context, s *session, stream sessionStream, ws state.WatchSet) (ack *redoubtv1.SessionResponse, err error) {
	watchCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	changed := ws.WatchCh(watchCtx)
	for {
		select {
		case m := <-s.out:
			if m.GetHeartbeatAck() != nil {
				return m, nil
			}
			if err := stream.Send(m); err != nil {
				return nil, err
			}
			if g := m.GetGoodbye(); g != nil {
				return nil, status.Error(codes.Unavailable, g.GetReason())
			}
		case <-changed:
			return nil, context.Cause(ctx)
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// assignments makes the next message of the chain, nil if there is nothing to
// say, and the version that the agent then knows.
func (a *agentAPI) assignments(view *state.View, ws state.WatchSet, node string, known uint64, first bool) (*redoubtv1.Assignments, uint64) {
	id := isolation.NodeID(node)
	if c, ok := view.AssignmentsSince(ws, id, known); ok {
		if c.Empty() && !first {
			return nil, known
		}
		return &redoubtv1.Assignments{
			Kind: redoubtv1.Assignments_KIND_INCREMENTAL, FromVersion: known, Version: c.Version,
			Updated: assignmentsToProto(c.Updated), Removed: c.Removed,
		}, c.Version
	}
	c := view.Assignments(ws, id)
	return &redoubtv1.Assignments{
		Kind: redoubtv1.Assignments_KIND_COMPLETE, Version: c.Version, Updated: assignmentsToProto(c.Updated),
	}, c.Version
}

func assignmentsToProto(instances []*fleet.Instance) []*redoubtv1.Assignment {
	var out []*redoubtv1.Assignment
	for _, i := range instances {
		a := state.AssignmentToProto(&i.Assignment)
		if a.GetSpec().GetNetworkRules() != nil {
			// An agent that does not know rules does not know this word either,
			// and refuses the instance rather than run it without its limits.
			a.Spec.Network = "rules"
		}
		a.Stop = i.MustStop()
		out = append(out, a)
	}
	return out
}

// fleetUpdate is what an agent keeps for a cold start.
func (a *agentAPI) fleetUpdate(view *state.View, ws state.WatchSet, s *session) *redoubtv1.FleetUpdate {
	u := &redoubtv1.FleetUpdate{}
	for _, srv := range view.Servers(ws) {
		u.Servers = append(u.Servers, srv.APIAddress)
		u.EnrollServers = append(u.EnrollServers, srv.EnrollAddress)
	}
	for _, c := range view.Authorities(ws) {
		u.Bundle = append(u.Bundle, c.Certificate)
	}
	if k, ok := view.SiteKeys(ws, isolation.SiteID(s.site)); ok {
		u.GossipKeys = k.Keys
	}
	for _, n := range view.NodesOf(ws, isolation.SiteID(s.site)) {
		if string(n.ID) != s.node && n.GossipAddress != "" {
			u.GossipPeers = append(u.GossipPeers, n.GossipAddress)
		}
	}
	return u
}

// sameUpdate tells whether an agent would learn nothing new.
func sameUpdate(a, b *redoubtv1.FleetUpdate) bool { return proto.Equal(a, b) }

func remoteOf(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok {
		if host, _, err := net.SplitHostPort(p.Addr.String()); err == nil {
			return host
		}
		return p.Addr.String()
	}
	return "?"
}

// certificateEnd is the end of the caller's certificate; zero: not known.
func certificateEnd(ctx context.Context) time.Time {
	p, err := identity.PeerFromContext(ctx)
	if err != nil {
		return time.Time{}
	}
	return p.Certificate.NotAfter
}

func errText(err error) string {
	if err == nil {
		return "ended"
	}
	return status.Convert(err).Message()
}
