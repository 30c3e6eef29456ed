package server

import (
	"context"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"redoubt.dev/redoubt/control/consensus"
	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/control/state"
	"redoubt.dev/redoubt/isolation"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// ListNodes returns every node with what the leader makes of it.
func (s *fleetAPI) ListNodes(ctx context.Context, req *redoubtv1.ListNodesRequest) (*redoubtv1.ListNodesResponse, error) {
	if err := s.consensus.VerifyRead(ctx); err != nil {
		return nil, toStatus(err)
	}
	view := s.store.Snapshot()
	resp := &redoubtv1.ListNodesResponse{}
	for _, n := range view.Nodes(nil) {
		if req.GetSite() == "" || req.GetSite() == string(n.Site) {
			resp.Nodes = append(resp.Nodes, s.describeNode(view, n))
		}
	}
	return resp, nil
}

// GetNode returns one node with its instances.
func (s *fleetAPI) GetNode(ctx context.Context, req *redoubtv1.GetNodeRequest) (*redoubtv1.GetNodeResponse, error) {
	if err := s.consensus.VerifyRead(ctx); err != nil {
		return nil, toStatus(err)
	}
	view := s.store.Snapshot()
	n, ok := view.Node(nil, isolation.NodeID(req.GetId()))
	if !ok {
		return nil, status.Errorf(codes.NotFound, "there is no node %q; `redoubt node list` shows what there is", req.GetId())
	}
	resp := &redoubtv1.GetNodeResponse{Node: s.describeNode(view, n)}
	for _, i := range view.InstancesOf(nil, n.ID) {
		resp.Instances = append(resp.Instances, s.describeInstance(view, i))
	}
	return resp, nil
}

// describeNode joins what is stored of a node and what the leader hears. The
// ages of its proofs are as of now.
func (s *fleetAPI) describeNode(view *state.View, n *fleet.Node) *redoubtv1.Node {
	cpu, memory := view.Allocated(n.ID)
	out := &redoubtv1.Node{
		Id: string(n.ID), Site: string(n.Site), Cordoned: n.Cordoned, Enrolled: timestamp(n.Enrolled),
		AgentVersion: n.AgentVersion, GossipAddress: n.GossipAddress,
		AllocatedCpuMillis: cpu, AllocatedMemoryBytes: memory, ScoreVersion: isolation.ScoreVersion,
	}
	for _, i := range view.InstancesOf(nil, n.ID) {
		if i.Live() {
			out.Instances++
		}
	}
	v, leading := s.leader.View(n)
	if leading {
		out.State, out.Silent, out.Hint, out.SessionServer = redoubtv1.NodeState(v.State), durationpb.New(v.Silent), v.Hint, v.Server
		out.Fresh, out.SvidExpires = s.leader.Fresh(n, v), timestamp(v.SVIDExpires)
		out.Warnings = v.Warnings
	}
	if n.Report == nil {
		return out
	}
	out.BootId = n.Report.Host.BootID
	out.Report = state.ReportToProto(n.Report)
	for i, f := range n.Report.Findings {
		out.Scores = append(out.Scores, isolation.Score(f.Class, f.Terms))
		if leading {
			if age, ok := v.Age(f); ok {
				out.Report.Findings[i].Age = durationpb.New(age)
			}
		}
	}
	return out
}

// ListSites sums nodes up by site.
func (s *fleetAPI) ListSites(ctx context.Context, _ *redoubtv1.ListSitesRequest) (*redoubtv1.ListSitesResponse, error) {
	nodes, err := s.ListNodes(ctx, &redoubtv1.ListNodesRequest{})
	if err != nil {
		return nil, err
	}
	resp := &redoubtv1.ListSitesResponse{}
	bySite := map[string]*redoubtv1.Site{}
	for _, n := range nodes.GetNodes() { // sorted by id, so that sites appear in a fixed order
		site, ok := bySite[n.GetSite()]
		if !ok {
			site = &redoubtv1.Site{Id: n.GetSite(), Disconnected: true, Silent: n.GetSilent()}
			bySite[n.GetSite()] = site
			resp.Sites = append(resp.Sites, site)
		}
		site.Nodes++
		site.Instances += n.GetInstances()
		if n.GetSilent().AsDuration() < site.GetSilent().AsDuration() {
			site.Silent = n.GetSilent()
		}
		if n.GetState() != redoubtv1.NodeState_NODE_STATE_DISCONNECTED {
			site.Disconnected = false
		}
		if n.GetState() == redoubtv1.NodeState_NODE_STATE_READY {
			site.Ready++
			for i, f := range n.GetReport().GetFindings() {
				if i < len(n.GetFresh()) && n.GetFresh()[i] {
					site.Strongest = max(site.Strongest, f.GetClass())
				}
			}
		}
	}
	return resp, nil
}

// ListServers asks every server how it is.
func (s *fleetAPI) ListServers(ctx context.Context, _ *redoubtv1.ListServersRequest) (*redoubtv1.ListServersResponse, error) {
	if err := s.consensus.VerifyRead(ctx); err != nil {
		return nil, toStatus(err)
	}
	voters, err := s.consensus.Voters()
	if err != nil {
		return nil, toStatus(err)
	}
	resp := &redoubtv1.ListServersResponse{AnsweredBy: s.cfg.ID}
	var wg sync.WaitGroup
	for _, srv := range s.store.Snapshot().Servers(nil) {
		p := state.ServerToProto(srv)
		p.Voter = voters[srv.ID]
		resp.Servers = append(resp.Servers, p)
		if srv.ID == s.cfg.ID {
			p.Leader, p.Reachable, p.AppliedIndex, p.StoreFailure = true, true, s.store.Index(), s.consensus.StoreFailure()
			continue
		}
		wg.Go(func() {
			if st, err := s.peerStatus(ctx, peerRef{srv.ID, srv.APIAddress}); err == nil {
				p.Reachable, p.AppliedIndex, p.StoreFailure = true, st.GetAppliedIndex(), st.GetStoreFailure()
			}
		})
	}
	wg.Wait()
	return resp, nil
}

// peerStatus asks another server where it stands.
func (s *Server) peerStatus(ctx context.Context, p peerRef) (*redoubtv1.GetStatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	conn, err := s.peers.conn(p)
	if err != nil {
		return nil, err
	}
	return redoubtv1.NewPeerServiceClient(conn).GetStatus(ctx, &redoubtv1.GetStatusRequest{})
}

// Removed asks others, API addresses by server id, whether this server was taken
// out of the fleet. Only the word of one that leads counts.
func (s *Server) Removed(ctx context.Context, others map[string]string) bool {
	for id, address := range others {
		st, err := s.peerStatus(ctx, peerRef{id, address})
		s.log.Debug("asked whether this server was removed", "of", id, "leads", st.GetLeader(), "removed", st.GetCallerRemoved(), "err", err)
		if err == nil && st.GetLeader() && st.GetCallerRemoved() {
			return true
		}
	}
	return false
}

// RemoveServer takes a server out of the fleet: it no longer votes and is no
// longer told to agents. Its authority stays trusted until what it signed has
// ended; a server that leads hands leadership over first.
func (s *fleetAPI) RemoveServer(ctx context.Context, req *redoubtv1.RemoveServerRequest) (*redoubtv1.RemoveServerResponse, error) {
	id := req.GetId()
	view := s.store.Snapshot()
	_, known := view.Server(nil, id)
	members, err := s.consensus.Members()
	if err != nil {
		return nil, toStatus(err)
	}
	if !known && !slices.ContainsFunc(members, func(m consensus.Member) bool { return m.ID == id }) {
		return nil, status.Errorf(codes.NotFound, "there is no server %q; `redoubt operator raft list` shows what there is", id)
	}
	if id == s.cfg.ID {
		if len(view.Servers(nil)) == 1 {
			return nil, status.Errorf(codes.FailedPrecondition, "server %s is the only one", id)
		}
		if err := s.consensus.Transfer(ctx); err != nil {
			return nil, toStatus(err)
		}
		out, err := s.forward(ctx, callerFrom(ctx), fleetService+"RemoveServer", req)
		if err != nil {
			return nil, err
		}
		return out.(*redoubtv1.RemoveServerResponse), nil
	}
	// The state first: what makes admitted servers members would add it again.
	// If this ends in between, a repeat does the rest.
	if known {
		if _, err := s.propose(ctx, req.GetCommandId(), &redoubtv1.Operation{Operation: &redoubtv1.Operation_RemoveServer{RemoveServer: &redoubtv1.RemoveServerOp{Id: id}}}); err != nil {
			return nil, err
		}
	}
	if err := s.consensus.RemoveServer(ctx, id); err != nil {
		return nil, toStatus(err)
	}
	s.log.Info("removed server", "server", id, "user", callerFrom(ctx).Name())
	return &redoubtv1.RemoveServerResponse{}, nil
}

// GetServerInfo tells who answers and who asks.
func (s *fleetAPI) GetServerInfo(ctx context.Context, _ *redoubtv1.GetServerInfoRequest) (*redoubtv1.GetServerInfoResponse, error) {
	view := s.store.Snapshot()
	l, _ := s.leaderRef()
	resp := &redoubtv1.GetServerInfoResponse{
		Id: s.cfg.ID, TrustDomain: s.td.Name(), ClusterId: view.Cluster().ID, Version: s.cfg.Version,
		Leader: l.ID, AppliedIndex: view.Index(), Caller: callerFrom(ctx).String(),
	}
	for _, r := range view.RolesOf(callerFrom(ctx).Name()) {
		role := r.Role
		if !r.AllNamespaces() {
			role += " in " + r.Namespace
		}
		resp.Roles = append(resp.Roles, role)
	}
	return resp, nil
}
