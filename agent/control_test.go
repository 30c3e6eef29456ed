package agent

import (
	"context"
	"crypto/x509"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"redoubt.dev/redoubt/identity"
	"redoubt.dev/redoubt/identity/attest"
	"redoubt.dev/redoubt/identity/ca"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// control is a control server of one, over real connections with real
// certificates, that does what a test tells it.
type control struct {
	redoubtv1.UnimplementedAgentServiceServer
	redoubtv1.UnimplementedEnrollmentServiceServer
	t          *testing.T
	td         spiffeid.TrustDomain
	authority  *ca.Authority
	source     *identity.MemorySource
	bundle     *x509bundle.Bundle
	challenger *attest.Challenger
	token      attest.Token
	api, join  string
	nodeTTL    time.Duration
	beats      atomic.Int64 // heartbeats of all sessions

	drop    atomic.Int32 // so many enrolments are signed and their answer lost
	refuse  atomic.Bool  // no sessions
	renewed atomic.Int32 // certificates given out, expired ones apart
	rescued atomic.Int32

	mu       sync.Mutex
	keyHash  string
	version  uint64
	assigned []*redoubtv1.Assignment
	statuses map[string]*redoubtv1.InstanceStatus
	report   *redoubtv1.Report
	hello    *redoubtv1.Hello
	sessions map[chan *redoubtv1.SessionResponse]bool
	attach   func(redoubtv1.AgentService_AttachServer) error
}

func newControl(t *testing.T) *control {
	t.Helper()
	c := &control{t: t, td: spiffeid.RequireTrustDomainFromString("test.fleet"), challenger: attest.NewChallenger(), nodeTTL: time.Hour,
		statuses: map[string]*redoubtv1.InstanceStatus{}, sessions: map[chan *redoubtv1.SessionResponse]bool{}}
	var err error
	if c.authority, err = ca.Create(t.TempDir()+"/ca", c.td); err != nil {
		t.Fatal(err)
	}
	c.bundle = x509bundle.FromX509Authorities(c.td, []*x509.Certificate{c.authority.Certificate()})
	if err := c.authority.Activate(c.bundle); err != nil {
		t.Fatal(err)
	}
	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.ServerID(c.td, "s1")
	if err != nil {
		t.Fatal(err)
	}
	chain, err := c.authority.SignServer(key.Public(), id, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	svid, err := identity.NewSVID(key, chain)
	if err != nil {
		t.Fatal(err)
	}
	c.source = identity.NewMemorySource(svid, c.bundle)
	c.api = c.serve(grpc.NewServer(grpc.Creds(identity.ServerCredentials(c.source, identity.AuthorizeKinds(c.td, identity.KindNode)))),
		func(s *grpc.Server) { redoubtv1.RegisterAgentServiceServer(s, c) })
	c.join = c.serve(grpc.NewServer(grpc.Creds(attest.ServerCredentials(c.source))),
		func(s *grpc.Server) { redoubtv1.RegisterEnrollmentServiceServer(s, c) })
	c.token = attest.Token{ID: attest.NewTokenID(), Secret: attest.NewSecret(), TrustDomain: c.td, Pins: []string{c.authority.Pin()},
		Role: identity.KindNode, Site: "oslo", Expires: time.Now().Add(time.Hour).Truncate(time.Second), Addresses: []string{c.join}}
	return c
}

func (c *control) serve(s *grpc.Server, register func(*grpc.Server)) string {
	register(s)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	go func() { _ = s.Serve(l) }()
	c.t.Cleanup(s.Stop)
	return l.Addr().String()
}

func (c *control) tokenText() string {
	c.t.Helper()
	text, err := c.token.Encode()
	if err != nil {
		c.t.Fatal(err)
	}
	return text
}

func (c *control) sign(csr []byte, node string) ([][]byte, error) {
	id, err := identity.NodeID(c.td, node)
	if err != nil {
		return nil, err
	}
	chain, err := c.authority.SignSVID(csr, id, c.nodeTTL)
	if err != nil {
		return nil, err
	}
	var out [][]byte
	for _, cert := range chain {
		out = append(out, cert.Raw)
	}
	return out, nil
}

func (c *control) EnrollNode(_ context.Context, r *redoubtv1.EnrollNodeRequest) (*redoubtv1.EnrollNodeResponse, error) {
	if r.GetToken() != c.tokenText() {
		return nil, status.Error(codes.PermissionDenied, "wrong token")
	}
	hash, err := attest.CSRKey(r.GetCsr())
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	if c.keyHash == "" {
		c.keyHash = hash
	}
	bound := c.keyHash
	c.mu.Unlock()
	if bound != hash {
		return nil, status.Error(codes.PermissionDenied, "the token is bound to another key")
	}
	certs, err := c.sign(r.GetCsr(), r.GetNode())
	if err != nil {
		return nil, err
	}
	if c.drop.Add(-1) >= 0 {
		return nil, status.Error(codes.Unavailable, "the link was cut")
	}
	return &redoubtv1.EnrollNodeResponse{Certificates: certs, Bundle: [][]byte{c.authority.Certificate().Raw}, Servers: []string{c.api},
		EnrollServers: []string{c.join}, Node: r.GetNode(), Site: r.GetSite(), ClusterId: "c1"}, nil
}

func (c *control) GetRenewalNonce(_ context.Context, r *redoubtv1.GetRenewalNonceRequest) (*redoubtv1.GetRenewalNonceResponse, error) {
	id, err := identity.NodeID(c.td, r.GetNode())
	if err != nil {
		return nil, err
	}
	return &redoubtv1.GetRenewalNonceResponse{Nonce: c.challenger.Issue(id, time.Now())}, nil
}

func (c *control) RenewExpired(_ context.Context, r *redoubtv1.RenewExpiredRequest) (*redoubtv1.RenewExpiredResponse, error) {
	id, err := identity.NodeID(c.td, r.GetNode())
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	who := attest.Enrolled{ID: id, KeyHash: c.keyHash}
	c.mu.Unlock()
	if err := attest.VerifyRenewal(attest.Renewal{Chain: r.GetChain(), CSR: r.GetCsr(), Challenge: r.GetNonce(), Signature: r.GetSignature()},
		who, c.source, c.challenger, attest.Within(time.Hour), time.Now()); err != nil {
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	certs, err := c.sign(r.GetCsr(), r.GetNode())
	if err != nil {
		return nil, err
	}
	c.rescued.Add(1)
	return &redoubtv1.RenewExpiredResponse{Certificates: certs, Bundle: [][]byte{c.authority.Certificate().Raw}}, nil
}

func (c *control) RenewNodeIdentity(ctx context.Context, r *redoubtv1.RenewNodeIdentityRequest) (*redoubtv1.RenewNodeIdentityResponse, error) {
	who, err := identity.PeerID(ctx)
	if err != nil {
		return nil, err
	}
	certs, err := c.sign(r.GetCsr(), who.Name())
	if err != nil {
		return nil, err
	}
	c.renewed.Add(1)
	return &redoubtv1.RenewNodeIdentityResponse{Certificates: certs, Bundle: [][]byte{c.authority.Certificate().Raw}}, nil
}

func (c *control) Session(s redoubtv1.AgentService_SessionServer) error {
	if c.refuse.Load() {
		return status.Error(codes.Unavailable, "cut off")
	}
	m, err := s.Recv()
	if err != nil {
		return err
	}
	out := make(chan *redoubtv1.SessionResponse, 100)
	c.mu.Lock()
	c.hello = m.GetHello()
	c.sessions[out] = true
	out <- &redoubtv1.SessionResponse{Message: &redoubtv1.SessionResponse_Welcome{Welcome: &redoubtv1.Welcome{ClusterId: "c1", Server: "s1",
		HeartbeatInterval: durationpb.New(200 * time.Millisecond), Fleet: &redoubtv1.FleetUpdate{Servers: []string{c.api}, EnrollServers: []string{c.join}, Bundle: [][]byte{c.authority.Certificate().Raw}}}}}
	out <- c.complete()
	c.mu.Unlock()
	defer func() { c.mu.Lock(); delete(c.sessions, out); c.mu.Unlock() }()
	ctx, cancel := context.WithCancel(s.Context())
	defer cancel()
	go func() {
		for {
			select {
			case m := <-out:
				if s.Send(m) != nil {
					cancel()
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		m, err := s.Recv()
		if err != nil {
			return err
		}
		if c.refuse.Load() {
			return status.Error(codes.Unavailable, "cut off")
		}
		c.mu.Lock()
		switch m := m.GetMessage().(type) {
		case *redoubtv1.SessionRequest_Heartbeat:
			c.beats.Add(1)
			out <- &redoubtv1.SessionResponse{Message: &redoubtv1.SessionResponse_HeartbeatAck{HeartbeatAck: &redoubtv1.HeartbeatAck{Sequence: m.Heartbeat.GetSequence(), Term: 1}}}
		case *redoubtv1.SessionRequest_Status:
			for _, st := range m.Status.GetStatuses() {
				if old := c.statuses[st.GetUid()]; old == nil || old.GetSequence() < st.GetSequence() {
					c.statuses[st.GetUid()] = st
				}
			}
			out <- &redoubtv1.SessionResponse{Message: &redoubtv1.SessionResponse_StatusAck{StatusAck: &redoubtv1.StatusAck{Sequence: m.Status.GetSequence()}}}
		case *redoubtv1.SessionRequest_Report:
			c.report = m.Report.GetReport()
		}
		c.mu.Unlock()
	}
}

func (c *control) Attach(s redoubtv1.AgentService_AttachServer) error { return c.attach(s) }

func (c *control) complete() *redoubtv1.SessionResponse {
	return &redoubtv1.SessionResponse{Message: &redoubtv1.SessionResponse_Assignments{Assignments: &redoubtv1.Assignments{
		Kind: redoubtv1.Assignments_KIND_COMPLETE, Version: c.version, Updated: c.assigned}}}
}

// assign changes the assignments and tells every session.
func (c *control) assign(change func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change()
	c.version++
	for out := range c.sessions {
		out <- proto.CloneOf(c.complete())
	}
}

func (c *control) tell(m *redoubtv1.SessionResponse) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for out := range c.sessions {
		out <- m
	}
}

func (c *control) status(uid string) *redoubtv1.InstanceStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.statuses[uid]
}

// eventually waits for ok, or fails with what.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}
