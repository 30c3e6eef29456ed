// Package server is a control server's gRPC side: it authenticates, authorises,
// converts and maps errors, and holds the agents' sessions.
//
// Promises:
//   - Every method has an explicit rule for who may call it; one without is
//     refused (authorize.go). Nothing is served without TLS; only enrolment is
//     served to callers without a certificate, on a listener of its own.
//   - A node speaks only for itself; a server's identity grants no user's
//     rights: a forwarded call is authorised again by the leader.
//   - An agent may hold its session with any server. What it is handed is never
//     older than what the leader had applied when the session began, nor than
//     what the agent knew.
//   - A slow reader delays nobody: queues are bounded and their owner is cut.
//   - An answer to a write means that it is on the disks of a majority.
//
// It leaves agreement to consensus, what is placed to leader and placement, and
// what is stored to state. Locks: sessions.mu before session.mu; rendezvous.mu
// and peerPool.mu are leaves.
package server

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"redoubt.dev/redoubt/control/consensus"
	"redoubt.dev/redoubt/control/leader"
	"redoubt.dev/redoubt/control/state"
	"redoubt.dev/redoubt/identity"
	"redoubt.dev/redoubt/identity/attest"
	"redoubt.dev/redoubt/identity/ca"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
	"redoubt.dev/redoubt/proto/tracing"
)

const (
	// stopGrace is how long calls may take to end on a clean stop.
	stopGrace = 3 * time.Second
	// watchEvery merges changes for those who watch.
	watchEvery = 200 * time.Millisecond
)

// Config is what a server is told.
type Config struct {
	ID      string
	Version string
	// AdvertiseAPI is the address that agents and servers dial, host:port.
	AdvertiseAPI string
	// NodeTTL and UserTTL are lifetimes of what this server signs.
	NodeTTL, UserTTL time.Duration
	// RenewWindow after its expiry an enrolled key may still renew.
	RenewWindow time.Duration
	Timing      leader.Timing
}

// Parts are what a server works with; all are required.
type Parts struct {
	Consensus *consensus.Node
	Store     *state.Store
	Leader    *leader.Leader
	Authority *ca.Authority
	Source    identity.Source
	// LogTail are the last lines of this server's log; nil: they are not kept.
	LogTail func() []byte
	// Metrics is filled by the server; nil: its own, which nobody reads.
	Metrics *Metrics
	// Tracer makes the spans of what is applied; the zero one: none are made.
	Tracer tracing.Tracer
	Log    *slog.Logger
}

// Server serves one control server's API and enrolment.
type Server struct {
	cfg       Config
	td        spiffeid.TrustDomain
	consensus *consensus.Node
	store     *state.Store
	leader    *leader.Leader
	authority *ca.Authority
	source    identity.Source
	log       *slog.Logger

	sessions       *sessions
	sessionsClosed atomic.Bool
	streams        *rendezvous
	peers          *peerPool
	challenger     *attest.Challenger
	enrollRate     *rate.Limiter
	fleetAPI       *fleetAPI
	admission      *admission
	metrics        *Metrics
	tracer         tracing.Tracer
	logTail        func() []byte
	began          time.Time
	refusals       *rate.Limiter // of connections, in the log
	snapshots      chan struct{} // places for those being sent
	stopping       chan struct{}
}

type fleetAPI struct {
	redoubtv1.UnimplementedFleetServiceServer
	*Server
}

type agentAPI struct {
	redoubtv1.UnimplementedAgentServiceServer
	*Server
}

// New makes a server that serves nothing yet.
func New(cfg Config, td spiffeid.TrustDomain, p Parts) *Server {
	s := &Server{
		cfg: cfg, td: td, consensus: p.Consensus, store: p.Store, leader: p.Leader, authority: p.Authority,
		source: p.Source, log: p.Log, sessions: newSessions(), streams: newRendezvous(),
		challenger: attest.NewChallenger(), enrollRate: rate.NewLimiter(enrolmentsPerSecond, enrolmentBurst),
		stopping: make(chan struct{}), snapshots: make(chan struct{}, maxSnapshots),
		admission: newAdmission(), refusals: rate.NewLimiter(1, 20),
	}
	s.peers = newPeerPool(func(id, address string) (PeerConn, error) {
		peer, err := identity.ServerID(td, id)
		if err != nil {
			return nil, err
		}
		return identity.NewConn("passthrough:///"+address, p.Source, identity.AuthorizeIDs(peer),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)))
	})
	s.fleetAPI = &fleetAPI{Server: s}
	s.metrics, s.logTail, s.began = p.Metrics, p.LogTail, time.Now()
	s.tracer = p.Tracer
	if s.metrics == nil {
		s.metrics = NewMetrics()
	}
	s.metrics.s = s
	s.admission.refused = func(limit string) { s.metrics.refused.WithLabelValues(limit).Inc() }
	return s
}

// Run serves api and enroll, which it closes, until ctx ends; then it asks
// agents to go elsewhere and lets calls end.
func (s *Server) Run(ctx context.Context, api, enroll net.Listener) error {
	apiServer := s.limitedServer(identity.ServerCredentials(s.source, identity.AuthorizeKinds(s.td, identity.KindServer, identity.KindNode, identity.KindUser), identity.OnRefused(s.refused)), s.admission.api)
	redoubtv1.RegisterFleetServiceServer(apiServer, s.fleetAPI)
	redoubtv1.RegisterAgentServiceServer(apiServer, &agentAPI{Server: s})
	redoubtv1.RegisterPeerServiceServer(apiServer, &peerAPI{Server: s})
	hs := health.NewServer()
	healthpb.RegisterHealthServer(apiServer, hs)
	reflection.Register(apiServer)
	enrollServer := s.limitedServer(attest.ServerCredentials(s.source), s.admission.enrol, forStrangers()...)
	redoubtv1.RegisterEnrollmentServiceServer(enrollServer, &enrollAPI{Server: s})

	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return serve(apiServer, api) })
	g.Go(func() error { return serve(enrollServer, enroll) })
	g.Go(func() error { return s.observe(gctx) })
	g.Go(func() error { return s.watchHealth(gctx, hs) })
	g.Go(func() error {
		<-gctx.Done()
		s.sessionsClosed.Store(true)
		close(s.stopping)
		s.dismiss(errStopping)
		hs.Shutdown()
		stop(apiServer)
		stop(enrollServer)
		s.peers.close()
		return nil
	})
	return g.Wait()
}

func serve(g *grpc.Server, l net.Listener) error {
	if err := g.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}

// stop lets calls end for stopGrace.
func stop(g *grpc.Server) {
	done := make(chan struct{})
	go func() { g.GracefulStop(); close(done) }()
	select {
	case <-done:
	case <-time.After(stopGrace):
		g.Stop()
		<-done
	}
}

// watchHealth answers NOT_SERVING while no leader is known, the own SVID is
// about to end, or the store cannot be written. Beside that it keeps the gate
// told of the servers' addresses.
func (s *Server) watchHealth(ctx context.Context, hs *health.Server) error {
	told := ""
	for {
		changed := s.consensus.LeaderChanged()
		for _, srv := range s.store.Snapshot().Servers(nil) {
			s.admission.api.KnowAddress(srv.APIAddress)
		}
		st := healthpb.HealthCheckResponse_NOT_SERVING
		_, led := s.leaderRef()
		if reason := unhealthy(led, s.identityHealthy(time.Now()), s.consensus.StoreFailure()); reason == "" {
			st = healthpb.HealthCheckResponse_SERVING
		} else if reason != told {
			s.log.Warn("this server is not serving", "reason", reason)
			told = reason
		}
		if st == healthpb.HealthCheckResponse_SERVING && told != "" {
			s.log.Info("this server is serving again")
			told = ""
		}
		for _, service := range []string{"", strings.Trim(fleetService, "/"), strings.Trim(agentService, "/")} {
			hs.SetServingStatus(service, st)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-time.After(time.Second):
		}
	}
}

// unhealthy says why a server is not serving; empty: it is.
func unhealthy(led, identity bool, store string) string {
	switch {
	case store != "":
		return "store: " + store
	case !identity:
		return "its own certificate is about to end"
	case !led:
		return "no leader is known"
	}
	return ""
}

func (s *Server) identityHealthy(now time.Time) bool {
	svid, err := s.source.GetX509SVID()
	if err != nil {
		return false
	}
	leaf := svid.Certificates[0]
	return validFor(leaf, now)
}

// validFor tells whether more than a tenth of a certificate's life is left: a
// server renews at half, so that what has come so far will not renew any more.
func validFor(leaf *x509.Certificate, now time.Time) bool {
	return now.Before(leaf.NotAfter.Add(-identity.Lifetime(leaf) / 10))
}

// bindings are the roles of users as this server knows them.
func (s *Server) bindings() roles { return s.store.Snapshot() }

// leaderRef is where the leader is, as far as this server knows.
func (s *Server) leaderRef() (peerRef, bool) {
	id, _ := s.consensus.Leader()
	if id == "" {
		return peerRef{}, false
	}
	srv, ok := s.store.Snapshot().Server(nil, id)
	if !ok {
		return peerRef{}, false
	}
	return peerRef{ID: id, Address: srv.APIAddress}, true
}

// otherServers are all but this one.
func (s *Server) otherServers() []peerRef {
	var refs []peerRef
	for _, srv := range s.store.Snapshot().Servers(nil) {
		if srv.ID != s.cfg.ID {
			refs = append(refs, peerRef{ID: srv.ID, Address: srv.APIAddress})
		}
	}
	return refs
}

// PeerApplied asks another server how far its state is; the leader gives a
// server a vote only when it has caught up.
func (s *Server) PeerApplied(ctx context.Context, id, apiAddress string) (uint64, error) {
	st, err := s.peerStatus(ctx, peerRef{ID: id, Address: apiAddress})
	return st.GetAppliedIndex(), err
}

// Declare tells the fleet this server's addresses, version and feature level,
// through the leader, until it is stored or ctx ends.
func (s *Server) Declare(ctx context.Context, self *redoubtv1.Server) error {
	for {
		if srv, ok := s.store.Snapshot().Server(nil, s.cfg.ID); ok && sameServer(state.ServerToProto(srv), self) {
			return nil
		} else if ok {
			err := s.proposeHere(ctx, &redoubtv1.Operation{Operation: &redoubtv1.Operation_PutServer{PutServer: &redoubtv1.PutServer{Server: self}}})
			if err == nil {
				return nil
			}
			s.log.Debug("this server is not declared yet", "err", err)
		}
		if !pause(ctx, time.Second) {
			return nil
		}
	}
}

func sameServer(a, b *redoubtv1.Server) bool {
	return a.GetApiAddress() == b.GetApiAddress() && a.GetRaftAddress() == b.GetRaftAddress() &&
		a.GetEnrollAddress() == b.GetEnrollAddress() && a.GetFeatureLevel() == b.GetFeatureLevel() && a.GetVersion() == b.GetVersion()
}

// propose makes one entry of ops for a user's call. The client's command id,
// bound to the caller, makes a repeat harmless.
func (s *Server) propose(ctx context.Context, commandID string, ops ...*redoubtv1.Operation) ([]*redoubtv1.OperationResult, error) {
	if s.consensus.OnReserve() && !slices.ContainsFunc(ops, easing) {
		return nil, status.Errorf(codes.ResourceExhausted, "the disk of server %s is full and it lives on its reserve: nothing new is taken until there is room on it; what runs runs on, and workloads can be stopped", s.cfg.ID)
	}
	cmd := leader.NewCommand(ops...)
	if commandID != "" {
		if len(commandID) > 64 {
			return nil, toStatus(fmt.Errorf("command_id has %d bytes, at most 64: %w", len(commandID), consensus.ErrTooLarge))
		}
		cmd.Id = callerFrom(ctx).Name() + ":" + commandID
	}
	r, err := s.tracedPropose(ctx, cmd)
	if err != nil {
		return nil, toStatus(err)
	}
	return r.Results, resultError(r.Results)
}

// easing tells whether an operation is taken on the reserve too.
func easing(op *redoubtv1.Operation) bool {
	switch op.GetOperation().(type) {
	case *redoubtv1.Operation_StopWorkload, *redoubtv1.Operation_RemoveServer:
		return true
	}
	return false
}

func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// pause waits for d; false if ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
