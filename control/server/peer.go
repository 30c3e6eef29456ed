package server

import (
	"context"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"redoubt.dev/redoubt/control/consensus"
	"redoubt.dev/redoubt/control/state"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// peerAPI is what other servers call.
type peerAPI struct {
	redoubtv1.UnimplementedPeerServiceServer
	*Server
}

// Observe takes in what the sessions of another server said.
func (s *peerAPI) Observe(ctx context.Context, req *redoubtv1.ObserveRequest) (*redoubtv1.ObserveResponse, error) {
	if caller := callerFrom(ctx).Name(); req.GetServer() != caller {
		return nil, status.Errorf(codes.PermissionDenied, "server %s may not speak for server %q", caller, req.GetServer())
	}
	// A server of an older version does not cut what its agents say.
	for _, n := range req.GetNodes() {
		cleanObserved(n)
	}
	return s.hear(ctx, req)
}

// hear gives a batch to the leader's loops on this server.
func (s *Server) hear(ctx context.Context, req *redoubtv1.ObserveRequest) (*redoubtv1.ObserveResponse, error) {
	h, err := s.leader.Observe(ctx, req)
	if err != nil {
		return nil, toStatus(err)
	}
	resp := &redoubtv1.ObserveResponse{Term: h.Term, Accepted: h.Accepted, AppliedIndex: h.Applied}
	for _, n := range h.Fetch {
		resp.FetchReports = append(resp.FetchReports, string(n))
	}
	for _, n := range h.Superseded {
		resp.Superseded = append(resp.Superseded, string(n))
	}
	return resp, nil
}

// Propose takes a command of another server's own work: admitting by a token,
// or its own address and authority. Anything else is not a follower's to
// propose.
func (s *peerAPI) Propose(ctx context.Context, req *redoubtv1.ProposeRequest) (*redoubtv1.ProposeResponse, error) {
	if !s.consensus.IsLeader() {
		return nil, status.Error(codes.FailedPrecondition, "not the leader")
	}
	caller := callerFrom(ctx).Name()
	for _, op := range req.GetCommand().GetOperations() {
		var ok bool
		switch o := op.GetOperation().(type) {
		case *redoubtv1.Operation_BindToken:
			ok = true // proves itself by the token's secret
		case *redoubtv1.Operation_PutServer:
			ok = o.PutServer.GetServer().GetId() == caller
		case *redoubtv1.Operation_PutAuthority:
			ok = o.PutAuthority.GetAuthority().GetServer() == caller
		}
		if !ok {
			return nil, status.Errorf(codes.PermissionDenied, "server %s may not propose %T", caller, op.GetOperation())
		}
	}
	r, err := s.consensus.Propose(ctx, req.GetCommand())
	if err != nil {
		return nil, toStatus(err)
	}
	return &redoubtv1.ProposeResponse{Results: r.Results, Index: r.Index}, nil
}

// OpenStream passes a StreamOpen on to a node whose session is here.
func (s *peerAPI) OpenStream(ctx context.Context, req *redoubtv1.OpenStreamRequest) (*redoubtv1.OpenStreamResponse, error) {
	if caller := callerFrom(ctx).Name(); req.GetOpen().GetServerId() != caller {
		return nil, status.Errorf(codes.PermissionDenied, "server %s may not open a stream to server %q", caller, req.GetOpen().GetServerId())
	}
	passed := s.sessions.send(req.GetNode(), &redoubtv1.SessionResponse{Message: &redoubtv1.SessionResponse_StreamOpen{StreamOpen: req.GetOpen()}})
	return &redoubtv1.OpenStreamResponse{Passed: passed}, nil
}

// GetStatus tells where this server stands.
func (s *peerAPI) GetStatus(ctx context.Context, _ *redoubtv1.GetStatusRequest) (*redoubtv1.GetStatusResponse, error) {
	lead := s.consensus.IsLeader()
	if lead {
		// What followers wait for must be what the leader really has.
		if err := s.consensus.VerifyRead(ctx); err != nil {
			return nil, toStatus(err)
		}
	}
	removed := false
	if lead {
		caller := callerFrom(ctx).Name()
		_, known := s.store.Snapshot().Server(nil, caller)
		members, err := s.consensus.Members()
		removed = err == nil && !known && !slices.ContainsFunc(members, func(m consensus.Member) bool { return m.ID == caller })
	}
	id, _ := s.leaderRef()
	return &redoubtv1.GetStatusResponse{
		Id: s.cfg.ID, Leader: lead, LeaderId: id.ID, Term: s.leader.Term(), AppliedIndex: s.store.Index(),
		FeatureLevel: state.FeatureLevel, Version: s.cfg.Version,
		CallerRemoved: removed, StoreFailure: s.consensus.StoreFailure(),
	}, nil
}

// catchUp returns when this server's state shows all that the leader had
// applied when it was called, and index.
func (s *Server) catchUp(ctx context.Context, index uint64) error {
	if s.consensus.IsLeader() {
		if err := s.consensus.VerifyRead(ctx); err != nil {
			return err
		}
		if s.store.Index() >= index {
			return nil
		}
		// A follower may have applied an entry sooner than this leader. Behind
		// the barrier, who knows more knows what the fleet does not: it was put
		// back to an earlier state, and the agent has to learn everything anew.
		if err := s.consensus.Barrier(ctx); err != nil {
			return err
		}
		if now := s.store.Index(); now < index {
			s.log.Warn("an agent knows more than the fleet, which was put back to an earlier state: it is told everything", "index", now, "known", index)
		}
		return nil
	}
	l, ok := s.leaderRef()
	if !ok {
		return errNoLeader()
	}
	conn, err := s.peers.conn(l)
	if err != nil {
		return err
	}
	st, err := redoubtv1.NewPeerServiceClient(conn).GetStatus(ctx, &redoubtv1.GetStatusRequest{})
	if err != nil {
		return err
	}
	if !st.GetLeader() {
		return errNoLeader()
	}
	return s.store.Wait(ctx, max(index, st.GetAppliedIndex()))
}
