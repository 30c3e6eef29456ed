package server

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"redoubt.dev/redoubt/identity"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// attachDeadline is how long an agent has to dial back for a stream. It covers
// one handshake over a slow link.
const attachDeadline = 20 * time.Second

// maxPendingStreams bounds the execs, logs and forwards that one server pairs at
// once, those that wait for an agent to dial back included; maxStreamsEach those
// of one caller. One Logs opens a stream for each instance, so that a bound of
// calls is none of streams.
const maxPendingStreams, maxStreamsEach = 4096, 1536

// attachStream is the agent's end of a stream that it dialled.
type attachStream = grpc.BidiStreamingServer[redoubtv1.AttachRequest, redoubtv1.AttachResponse]

// rendezvous pairs a user's stream on this server with the connection that the
// instance's agent dials for it. A stream id is a secret of 128 bits, is used
// once, and is honoured only for the node it was made for.
type rendezvous struct {
	mu      sync.Mutex
	waiting map[string]*waiter
	of      map[identity.ID]int // how many each caller has
}

type waiter struct {
	node     string
	caller   identity.ID
	attached chan attachStream // capacity 1
	done     chan struct{}     // closed when the user's side has ended
	ended    sync.Once
}

// count is how many are waiting or paired.
func (r *rendezvous) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.waiting)
}

func newRendezvous() *rendezvous {
	return &rendezvous{waiting: map[string]*waiter{}, of: map[identity.ID]int{}}
}

// expect registers a stream of caller's to node. The caller must call release; more than
// once does no harm.
func (r *rendezvous) expect(caller identity.ID, node string) (id string, w *waiter, err error) {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", nil, fmt.Errorf("make a stream id: %w", err)
	}
	id = hex.EncodeToString(b[:])
	w = &waiter{node: node, caller: caller, attached: make(chan attachStream, 1), done: make(chan struct{})}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.waiting) >= maxPendingStreams {
		return "", nil, status.Errorf(codes.ResourceExhausted, "%d streams are open on this server, its limit: close some or use another server", maxPendingStreams)
	}
	if r.of[caller] >= maxStreamsEach {
		return "", nil, status.Errorf(codes.ResourceExhausted, "%s %s has %d streams open on this server, its limit (logs have one for each instance): close some, or use another server", caller.Kind(), caller.Name(), maxStreamsEach)
	}
	r.of[caller]++
	r.waiting[id] = w
	return id, w, nil
}

func (r *rendezvous) release(id string, w *waiter) {
	r.mu.Lock()
	if r.waiting[id] == w {
		delete(r.waiting, id)
		if r.of[w.caller]--; r.of[w.caller] == 0 {
			delete(r.of, w.caller)
		}
	}
	r.mu.Unlock()
	w.ended.Do(func() { close(w.done) })
}

// attach hands the agent's stream to whoever expects it and blocks until that
// side is done.
func (r *rendezvous) attach(node, id string, stream attachStream) error {
	r.mu.Lock()
	w, ok := r.waiting[id]
	r.mu.Unlock()
	if !ok {
		return status.Error(codes.NotFound, "no such stream: its caller has gone")
	}
	if w.node != node {
		return status.Errorf(codes.PermissionDenied, "that stream is for another node than %s", node)
	}
	select {
	case w.attached <- stream:
	default:
		return status.Error(codes.AlreadyExists, "that stream is attached already")
	}
	select {
	case <-w.done:
		return nil
	case <-stream.Context().Done():
		return stream.Context().Err()
	}
}

// Attach is the agent's side of a stream.
func (s *agentAPI) Attach(stream attachStream) error {
	node := callerFrom(stream.Context())
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if first.GetStreamId() == "" {
		return status.Error(codes.InvalidArgument, "the first message of Attach must be a stream_id")
	}
	return s.streams.attach(node.Name(), first.GetStreamId(), stream)
}

// open finds node's session on any server, has the agent dial this one, and
// returns its stream. release must be called when the caller is done.
func (s *Server) open(ctx context.Context, node string, open *redoubtv1.StreamOpen) (attachStream, func(), error) {
	id, w, err := s.streams.expect(callerFrom(ctx), node)
	if err != nil {
		return nil, nil, err
	}
	// A caller that goes away ends the agent's side at once, also while nothing
	// is said.
	stop := context.AfterFunc(ctx, func() { s.streams.release(id, w) })
	release := func() { stop(); s.streams.release(id, w) }
	open.StreamId, open.ServerAddress, open.ServerId, open.Confirms = id, s.cfg.AdvertiseAPI, s.cfg.ID, true
	if err := s.passOpen(ctx, node, open); err != nil {
		release()
		return nil, nil, err
	}
	timer := time.NewTimer(attachDeadline)
	defer timer.Stop()
	select {
	case st := <-w.attached:
		// The agent begins nothing for a caller that has gone meanwhile.
		err := ctx.Err()
		if err == nil {
			err = st.Send(&redoubtv1.AttachResponse{Message: &redoubtv1.AttachResponse_Paired{Paired: true}})
		}
		if err != nil {
			release()
			return nil, nil, streamBroke(node, err)
		}
		return st, release, nil
	case <-timer.C:
		release()
		return nil, nil, status.Errorf(codes.Unavailable, "node %s holds a session but did not dial %s within %s: can it reach that address?", node, s.cfg.AdvertiseAPI, attachDeadline)
	case <-ctx.Done():
		release()
		return nil, nil, ctx.Err()
	}
}

// passOpen gives the request to whichever server holds node's session. A node
// that renews its identity moves its session and has none for a moment, which
// must not fail a call; so it is looked for again for a while.
func (s *Server) passOpen(ctx context.Context, node string, open *redoubtv1.StreamOpen) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for !s.passOnce(ctx, node, open) {
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return status.Errorf(codes.Unavailable, "node %s has no session with any server now; `redoubt node list` tells since when", node)
		}
	}
	return nil
}

func (s *Server) passOnce(ctx context.Context, node string, open *redoubtv1.StreamOpen) bool {
	if s.sessions.send(node, &redoubtv1.SessionResponse{Message: &redoubtv1.SessionResponse_StreamOpen{StreamOpen: open}}) {
		return true
	}
	for _, peer := range s.otherServers() {
		conn, err := s.peers.conn(peer)
		if err != nil {
			continue
		}
		r, err := redoubtv1.NewPeerServiceClient(conn).OpenStream(ctx, &redoubtv1.OpenStreamRequest{Node: node, Open: open})
		if err == nil && r.GetPassed() {
			return true
		}
	}
	return false
}

// Exec joins a user's stream and an agent's.
func (s *fleetAPI) Exec(user grpc.BidiStreamingServer[redoubtv1.ExecRequest, redoubtv1.ExecResponse]) error {
	first, err := user.Recv()
	if err != nil {
		return err
	}
	start := first.GetStart()
	if start == nil {
		return status.Error(codes.InvalidArgument, "the first message of Exec must be its start")
	}
	if len(start.GetCommand()) == 0 {
		return status.Error(codes.InvalidArgument, "exec: no command was given")
	}
	target, err := s.runningInstance(user.Context(), start.GetNamespace(), start.GetName())
	if err != nil {
		return err
	}
	agent, release, err := s.open(user.Context(), target.Node, &redoubtv1.StreamOpen{
		Uid: target.UID, Request: &redoubtv1.StreamOpen_Exec{Exec: start},
	})
	if err != nil {
		return err
	}
	defer release()

	// The user's input goes on in a goroutine that ends with the user's
	// stream: gRPC ends its Recv when this handler returns.
	go func() {
		for {
			m, err := user.Recv()
			if err != nil {
				if err == io.EOF {
					m = &redoubtv1.ExecRequest{Message: &redoubtv1.ExecRequest_CloseStdin{CloseStdin: true}}
					_ = agent.Send(&redoubtv1.AttachResponse{Message: &redoubtv1.AttachResponse_Exec{Exec: m}})
				}
				return
			}
			if agent.Send(&redoubtv1.AttachResponse{Message: &redoubtv1.AttachResponse_Exec{Exec: m}}) != nil {
				return
			}
		}
	}()
	if err := user.Send(&redoubtv1.ExecResponse{Message: &redoubtv1.ExecResponse_Started{Started: target.Instance}}); err != nil {
		return err
	}
	for {
		m, err := agent.Recv()
		if err != nil {
			return streamBroke(target.Node, err)
		}
		switch m := m.GetMessage().(type) {
		case *redoubtv1.AttachRequest_Exec:
			if !saysOfExec(m.Exec) {
				continue
			}
			if err := user.Send(m.Exec); err != nil {
				return err
			}
			if _, ok := m.Exec.GetMessage().(*redoubtv1.ExecResponse_ExitCode); ok {
				return nil
			}
		case *redoubtv1.AttachRequest_Error:
			return agentError(m.Error)
		}
	}
}

// PortForward joins a user's connection to a port of an instance with the one
// that the instance's agent makes.
func (s *fleetAPI) PortForward(user grpc.BidiStreamingServer[redoubtv1.PortForwardRequest, redoubtv1.PortForwardResponse]) error {
	first, err := user.Recv()
	if err != nil {
		return err
	}
	start := first.GetStart()
	if start == nil {
		return status.Error(codes.InvalidArgument, "the first message of PortForward must be its start")
	}
	if start.GetPort() > 65535 {
		return status.Errorf(codes.InvalidArgument, "port %d: a port is 1 to 65535", start.GetPort())
	}
	target, err := s.runningInstance(user.Context(), start.GetNamespace(), start.GetName())
	if err != nil {
		return err
	}
	if start.GetPort() == 0 {
		return user.Send(&redoubtv1.PortForwardResponse{Message: &redoubtv1.PortForwardResponse_Connected{Connected: target.Instance}})
	}
	agent, release, err := s.open(user.Context(), target.Node, &redoubtv1.StreamOpen{
		Uid: target.UID, Request: &redoubtv1.StreamOpen_Forward{Forward: start},
	})
	if err != nil {
		return err
	}
	defer release()
	// It ends with the user's stream: gRPC ends its Recv when this handler
	// returns. It takes no more than the agent does.
	go func() {
		for {
			m, err := user.Recv()
			if err == io.EOF {
				m = &redoubtv1.PortForwardRequest{Message: &redoubtv1.PortForwardRequest_Close{Close: true}}
			} else if err != nil {
				return
			}
			if agent.Send(&redoubtv1.AttachResponse{Message: &redoubtv1.AttachResponse_Forward{Forward: m}}) != nil || err != nil {
				return
			}
		}
	}()
	for {
		m, err := agent.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			if user.Context().Err() != nil {
				return user.Context().Err()
			}
			return streamBroke(target.Node, err)
		}
		switch m := m.GetMessage().(type) {
		case *redoubtv1.AttachRequest_Forward:
			if c, ok := m.Forward.GetMessage().(*redoubtv1.PortForwardResponse_Connected); ok {
				c.Connected = target.Instance // whatever the agent calls it
			}
			if err := user.Send(m.Forward); err != nil {
				return err
			}
		case *redoubtv1.AttachRequest_Error:
			return agentError(m.Error)
		}
	}
}

// instanceRef is enough to reach an instance.
type instanceRef struct {
	UID, Instance, Node string
}

// cause of an agent's stream that ended before its time.
func cause(err error) string {
	switch {
	case err == io.EOF:
		return "it ended early"
	case status.Code(err) == codes.Canceled:
		return "its agent, or the connection to it, has ended"
	}
	return status.Convert(err).Message()
}

// streamBroke says that a stream ended before what it carried did.
func streamBroke(node string, err error) error {
	return status.Errorf(codes.Unavailable, "the stream to node %s broke: %v; `redoubt node status %s` shows how the node is", node, cause(err), node)
}
