package server

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/control/leader"
	"redoubt.dev/redoubt/control/state"
	"redoubt.dev/redoubt/identity"
	"redoubt.dev/redoubt/identity/attest"
	"redoubt.dev/redoubt/isolation"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// enrollAPI is first contact. Its callers are anonymous: every answer costs a
// token or a proof of the enrolled key, and the rate of all of them together
// is limited.
type enrollAPI struct {
	redoubtv1.UnimplementedEnrollmentServiceServer
	*Server
}

// admitAnonymous slows guessing and floods.
func (s *enrollAPI) admitAnonymous() error {
	if !s.enrollRate.Allow() {
		return status.Error(codes.ResourceExhausted, "too many enrolments at once; try again in a moment")
	}
	return nil
}

// EnrollNode admits a node by a join token. Repeating it with the same key
// gives another certificate until the token expires.
func (s *enrollAPI) EnrollNode(ctx context.Context, req *redoubtv1.EnrollNodeRequest) (*redoubtv1.EnrollNodeResponse, error) {
	if err := s.admitAnonymous(); err != nil {
		return nil, err
	}
	token, stored, err := s.token(ctx, req.GetToken())
	if err != nil {
		return nil, err
	}
	name, site := req.GetNode(), req.GetSite()
	if name == "" {
		name = token.Name
	}
	if site == "" {
		site = string(stored.Site)
	}
	if err := identity.CheckName(name); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "enrol: node name: %v", err)
	}
	if err := identity.CheckName(site); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "enrol %s: site: %v (name it with --site, or make a token that names it)", name, err)
	}
	keyHash, err := attest.CSRKey(req.GetCsr())
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "enrol %s: signing request: %v", name, err)
	}
	if err := attest.Verify(storedToken(stored), attest.Presented{
		TokenID: token.ID, Secret: token.Secret, KeyHash: keyHash, Role: identity.KindNode, Name: name,
	}, time.Now()); err != nil {
		return nil, refusedEnrolment(err)
	}
	id, err := identity.NodeID(s.td, name)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "enrol: %v", err)
	}
	if here := s.store.Snapshot(); !has(here, name) {
		if err := room("nodes", len(here.Nodes(nil)), MaxNodes); err != nil {
			return nil, err
		}
	}
	if !s.authority.Active() {
		return nil, status.Error(codes.Unavailable, "this server's authority is not in the trust bundle yet; try again or use another server")
	}
	if err := s.proposeHere(ctx, &redoubtv1.Operation{Operation: &redoubtv1.Operation_BindToken{BindToken: &redoubtv1.BindToken{
		Id: token.ID, SecretHash: secretHash(token.Secret), KeyHash: keyHash, Node: name, Site: site,
	}}}); err != nil {
		return nil, err
	}
	chain, err := s.authority.SignSVID(req.GetCsr(), id, s.cfg.NodeTTL)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "enrol %s: %v", name, err)
	}
	s.log.Info("enrolled node", "node", name, "site", site, "token", token.ID)
	view := s.store.Snapshot()
	servers, enroll := addresses(view)
	return &redoubtv1.EnrollNodeResponse{
		Certificates: raw(chain), Bundle: bundleOf(view), Servers: servers, EnrollServers: enroll,
		Node: name, Site: site, ClusterId: view.Cluster().ID,
	}, nil
}

func has(view *state.View, node string) bool {
	_, ok := view.Node(nil, isolation.NodeID(node))
	return ok
}

// EnrollServer admits a control server by a join token: its authority joins the
// bundle. The leader makes it a voter once it can be reached and has caught up.
func (s *enrollAPI) EnrollServer(ctx context.Context, req *redoubtv1.EnrollServerRequest) (*redoubtv1.EnrollServerResponse, error) {
	if err := s.admitAnonymous(); err != nil {
		return nil, err
	}
	token, stored, err := s.token(ctx, req.GetToken())
	if err != nil {
		return nil, err
	}
	id := req.GetServer().GetId()
	if err := identity.CheckName(id); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "enrol: server id: %v", err)
	}
	keyHash, err := s.provenAuthority(req)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "enrol server %s: %v", id, err)
	}
	if err := attest.Verify(storedToken(stored), attest.Presented{
		TokenID: token.ID, Secret: token.Secret, KeyHash: keyHash, Role: identity.KindServer, Name: id,
	}, time.Now()); err != nil {
		return nil, refusedEnrolment(err)
	}
	if here := s.store.Snapshot(); !slices.ContainsFunc(here.Servers(nil), func(v *fleet.Server) bool { return v.ID == id }) {
		if n := len(here.Servers(nil)); n >= MaxServers {
			return nil, status.Errorf(codes.ResourceExhausted, "the fleet has %d servers, and more would only make each change slower: remove one first (`redoubt operator raft remove`)", n)
		}
	}
	if err := s.proposeHere(ctx, &redoubtv1.Operation{Operation: &redoubtv1.Operation_BindToken{BindToken: &redoubtv1.BindToken{
		Id: token.ID, SecretHash: secretHash(token.Secret), KeyHash: keyHash, Server: req.GetServer(),
		Authority: &redoubtv1.Authority{Server: id, Certificate: req.GetAuthority()},
	}}}); err != nil {
		return nil, err
	}
	s.log.Info("enrolled server", "server", id, "token", token.ID)
	view := s.store.Snapshot()
	resp := &redoubtv1.EnrollServerResponse{ClusterId: view.Cluster().ID, TrustDomain: view.Cluster().TrustDomain}
	for _, a := range view.Authorities(nil) {
		resp.Authorities = append(resp.Authorities, state.AuthorityToProto(a))
	}
	for _, srv := range view.Servers(nil) {
		resp.Servers = append(resp.Servers, state.ServerToProto(srv))
	}
	return resp, nil
}

// provenAuthority checks that the request's authority is a CA certificate of
// this trust domain and that the caller holds its key.
func (s *enrollAPI) provenAuthority(req *redoubtv1.EnrollServerRequest) (keyHash string, err error) {
	cert, err := x509.ParseCertificate(req.GetAuthority())
	if err != nil {
		return "", err
	}
	if !cert.IsCA || len(cert.URIs) != 1 || cert.URIs[0].String() != s.td.IDString() {
		return "", errors.New("its authority is not a CA certificate of trust domain " + s.td.Name())
	}
	keyHash, err = attest.CSRKey(req.GetProof())
	if err != nil {
		return "", err
	}
	if keyHash != identity.CertificatePin(cert) {
		return "", errors.New("the proof is not signed by the authority's key")
	}
	return keyHash, nil
}

// token reads the text of a join token and finds what the fleet stored of it.
func (s *enrollAPI) token(ctx context.Context, text string) (attest.Token, *fleet.Token, error) {
	t, err := attest.ParseToken(text)
	if err != nil {
		return t, nil, status.Errorf(codes.InvalidArgument, "%v", err)
	}
	if t.TrustDomain != s.td {
		return t, nil, status.Errorf(codes.PermissionDenied, "the join token is of trust domain %s, this fleet is %s", t.TrustDomain, s.td)
	}
	stored, ok := s.store.Snapshot().Token(t.ID)
	if !ok {
		// This server may be behind the one that made it.
		ctx, cancel := context.WithTimeout(ctx, leaderWait)
		defer cancel()
		if err := s.catchUp(ctx, 0); err != nil {
			return t, nil, status.Errorf(codes.Unavailable, "the join token cannot be looked up now: %v", err)
		}
		if stored, ok = s.store.Snapshot().Token(t.ID); !ok {
			return t, nil, refusedEnrolment(attest.ErrUnknownToken)
		}
	}
	return t, stored, nil
}

func storedToken(t *fleet.Token) attest.Stored {
	role := identity.KindNode
	if t.Role == fleet.TokenServer {
		role = identity.KindServer
	}
	return attest.Stored{
		ID: t.ID, SecretHash: hashPrefix + hex.EncodeToString(t.SecretHash), Role: role, Name: string(t.Node), Site: string(t.Site),
		Expires: t.Expires, BoundKey: t.KeyHash, BoundName: t.BoundTo,
	}
}

// hashPrefix begins the text of a secret's hash; the state keeps its bytes.
const hashPrefix = "sha256:"

func secretHash(s attest.Secret) []byte {
	h, err := hex.DecodeString(strings.TrimPrefix(attest.HashSecret(s), hashPrefix))
	if err != nil {
		return nil // refused by the state: a hash is never empty
	}
	return h
}

func refusedEnrolment(err error) error { return status.Error(codes.PermissionDenied, err.Error()) }

// GetRenewalNonce begins a renewal after expiry.
func (s *enrollAPI) GetRenewalNonce(_ context.Context, req *redoubtv1.GetRenewalNonceRequest) (*redoubtv1.GetRenewalNonceResponse, error) {
	if err := s.admitAnonymous(); err != nil {
		return nil, err
	}
	id, err := identity.NodeID(s.td, req.GetNode())
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "%v", err)
	}
	return &redoubtv1.GetRenewalNonceResponse{Nonce: s.challenger.Issue(id, time.Now())}, nil
}

// RenewExpired gives the enrolled key of a node a new certificate, within the
// window that the operator set.
func (s *enrollAPI) RenewExpired(ctx context.Context, req *redoubtv1.RenewExpiredRequest) (*redoubtv1.RenewExpiredResponse, error) {
	if err := s.admitAnonymous(); err != nil {
		return nil, err
	}
	id, err := identity.NodeID(s.td, req.GetNode())
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "%v", err)
	}
	n, ok := s.store.Snapshot().Node(nil, isolation.NodeID(req.GetNode()))
	if !ok {
		return nil, refusedEnrolment(attest.ErrNotEnrolled)
	}
	if err := attest.VerifyRenewal(attest.Renewal{
		Chain: req.GetChain(), CSR: req.GetCsr(), Challenge: req.GetNonce(), Signature: req.GetSignature(),
	}, attest.Enrolled{ID: id, KeyHash: n.KeyHash}, s.source, s.challenger, attest.Within(s.cfg.RenewWindow), time.Now()); err != nil {
		return nil, refusedEnrolment(err)
	}
	chain, err := s.authority.SignSVID(req.GetCsr(), id, s.cfg.NodeTTL)
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	s.log.Info("renewed an expired node", "node", n.ID)
	view := s.store.Snapshot()
	servers, enroll := addresses(view)
	return &redoubtv1.RenewExpiredResponse{Certificates: raw(chain), Bundle: bundleOf(view), Servers: servers, EnrollServers: enroll}, nil
}

// RenewNodeIdentity signs a new certificate for the calling node. The key must
// be the one that enrolled: a stolen certificate cannot move to another.
func (s *agentAPI) RenewNodeIdentity(ctx context.Context, req *redoubtv1.RenewNodeIdentityRequest) (*redoubtv1.RenewNodeIdentityResponse, error) {
	caller := callerFrom(ctx)
	n, ok := s.store.Snapshot().Node(nil, isolation.NodeID(caller.Name()))
	if !ok {
		return nil, refusedEnrolment(attest.ErrNotEnrolled)
	}
	keyHash, err := attest.CSRKey(req.GetCsr())
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "renew %s: %v", caller.Name(), err)
	}
	if keyHash != n.KeyHash {
		return nil, refusedEnrolment(attest.ErrNotEnrolled)
	}
	chain, err := s.authority.SignSVID(req.GetCsr(), caller, s.cfg.NodeTTL)
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return &redoubtv1.RenewNodeIdentityResponse{Certificates: raw(chain), Bundle: bundleOf(s.store.Snapshot())}, nil
}

// RenewIdentity signs a new certificate for the calling user, while it holds
// any role.
func (s *fleetAPI) RenewIdentity(ctx context.Context, req *redoubtv1.RenewIdentityRequest) (*redoubtv1.RenewIdentityResponse, error) {
	caller := callerFrom(ctx)
	view := s.store.Snapshot()
	if len(view.RolesOf(caller.Name())) == 0 {
		return nil, status.Errorf(codes.PermissionDenied, "user %q holds no role any more", caller.Name())
	}
	chain, err := s.authority.SignSVID(req.GetCsr(), caller, s.cfg.UserTTL)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	servers, _ := addresses(view)
	return &redoubtv1.RenewIdentityResponse{Certificates: raw(chain), Bundle: bundleOf(view), Servers: servers}, nil
}

// CreateJoinToken makes a token. Its text is returned once and never stored.
func (s *fleetAPI) CreateJoinToken(ctx context.Context, req *redoubtv1.CreateJoinTokenRequest) (*redoubtv1.CreateJoinTokenResponse, error) {
	role, kind := req.GetRole(), identity.KindNode
	switch role {
	case "", fleet.TokenNode:
		role = fleet.TokenNode
	case fleet.TokenServer:
		kind = identity.KindServer
		if err := s.may(ctx, Administer); err != nil {
			return nil, err
		}
	default:
		return nil, status.Errorf(codes.InvalidArgument, "role %q is neither node nor server", role)
	}
	ttl := time.Hour
	if req.GetTtl() != nil {
		ttl = req.GetTtl().AsDuration()
	}
	if ttl < time.Minute || ttl > 30*24*time.Hour {
		return nil, status.Errorf(codes.InvalidArgument, "ttl %s: a join token lives between 1m and 720h", ttl)
	}
	view := s.store.Snapshot()
	if err := room("join tokens", len(view.Tokens(nil)), MaxTokens); err != nil {
		return nil, err
	}
	t := attest.Token{
		ID: attest.NewTokenID(), Secret: attest.NewSecret(), TrustDomain: s.td, Role: kind,
		Name: req.GetNode(), Site: req.GetSite(), Expires: time.Now().Add(ttl).Truncate(time.Second),
	}
	for _, a := range view.Authorities(nil) {
		cert, err := x509.ParseCertificate(a.Certificate)
		if err != nil {
			return nil, status.Errorf(codes.Internal, "authority of server %s: %v", a.Server, err)
		}
		t.Pins = append(t.Pins, identity.CertificatePin(cert))
	}
	_, t.Addresses = addresses(view)
	text, err := t.Encode()
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "%v", err)
	}
	op := &redoubtv1.Operation{Operation: &redoubtv1.Operation_PutToken{PutToken: &redoubtv1.PutToken{
		Id: t.ID, SecretHash: secretHash(t.Secret), Role: role, Node: req.GetNode(), Site: req.GetSite(), Expires: timestamp(t.Expires),
	}}}
	if _, err := s.propose(ctx, req.GetCommandId(), op); err != nil {
		return nil, err
	}
	s.log.Info("made a join token", "token", t.ID, "role", role, "user", callerFrom(ctx).Name(), "expires", t.Expires)
	return &redoubtv1.CreateJoinTokenResponse{Token: text, Expires: timestamp(t.Expires)}, nil
}

// may checks a further permission of the caller, in the whole fleet.
func (s *fleetAPI) may(ctx context.Context, need Permission) error {
	caller := callerFrom(ctx)
	held := s.bindings().RolesOf(caller.Name())
	for _, b := range held {
		if b.AllNamespaces() && rolePermissions[b.Role]&need != 0 {
			return nil
		}
	}
	return status.Errorf(codes.PermissionDenied, "user %q has no role that may %s (%s)", caller.Name(), permissionNames[need], describe(held))
}

// proposeHere proposes an operation of this server's own work, through the
// leader if that is another.
func (s *Server) proposeHere(ctx context.Context, op *redoubtv1.Operation) error {
	cmd := leader.NewCommand(op)
	deadline := time.Now().Add(leaderWait)
	for {
		results, err := s.proposeOnce(ctx, cmd)
		if err == nil {
			return resultError(results)
		}
		// The command id makes a repeat harmless, whatever became of this one.
		if time.Now().After(deadline) || !retryable(err) {
			return toStatus(err)
		}
		select {
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (s *Server) proposeOnce(ctx context.Context, cmd *redoubtv1.Command) ([]*redoubtv1.OperationResult, error) {
	if s.consensus.IsLeader() {
		r, err := s.consensus.Propose(ctx, cmd)
		return r.Results, err
	}
	l, ok := s.leaderRef()
	if !ok {
		return nil, errNoLeader()
	}
	conn, err := s.peers.conn(l)
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	r, err := redoubtv1.NewPeerServiceClient(conn).Propose(ctx, &redoubtv1.ProposeRequest{Command: cmd})
	if err != nil {
		return nil, err
	}
	// What was agreed on shows here before the caller is told.
	if err := s.store.Wait(ctx, r.GetIndex()); err != nil {
		return nil, err
	}
	return r.GetResults(), nil
}

func raw(chain []*x509.Certificate) [][]byte {
	out := make([][]byte, len(chain))
	for i, c := range chain {
		out[i] = c.Raw
	}
	return out
}

func bundleOf(view *state.View) [][]byte {
	var out [][]byte
	for _, a := range view.Authorities(nil) {
		out = append(out, a.Certificate)
	}
	return out
}

func addresses(view *state.View) (api, enroll []string) {
	for _, srv := range view.Servers(nil) {
		api, enroll = append(api, srv.APIAddress), append(enroll, srv.EnrollAddress)
	}
	return api, enroll
}
