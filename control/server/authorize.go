package server

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/identity"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// Permission is what a role may grant to a user.
type Permission uint8

const (
	// ReadFleet sees nodes, sites and servers.
	ReadFleet Permission = 1 << iota
	// ReadWorkloads sees workloads, their plans and reasons, and their logs.
	ReadWorkloads
	// WriteWorkloads applies and stops workloads, runs commands in them and
	// connects to their ports.
	WriteWorkloads
	// Operate enrols nodes and servers and cordons.
	Operate
	// Administer changes who may do what and which servers there are.
	Administer
)

// rolePermissions is the whole meaning of a role.
var rolePermissions = map[string]Permission{
	"admin":     ReadFleet | ReadWorkloads | WriteWorkloads | Operate | Administer,
	"operator":  ReadFleet | ReadWorkloads | WriteWorkloads | Operate,
	"viewer":    ReadFleet | ReadWorkloads,
	"submitter": ReadWorkloads | WriteWorkloads,
}

var permissionNames = map[Permission]string{
	ReadFleet: "see nodes, sites and servers", ReadWorkloads: "see workloads",
	WriteWorkloads: "change workloads", Operate: "operate nodes and servers",
	Administer: "administer the fleet",
}

// rule says who may call a method. A method without a rule is refused.
type rule struct {
	// kind of identity that may call at all.
	kind identity.Kind
	// need is the permission of a user; 0 for any enrolled user.
	need Permission
	// namespace of the object, from the request (the first message of a
	// stream). nil: the permission must be held for all namespaces, or, where
	// filtered is set, for any: the handler then shows only those.
	namespace func(proto.Message) string
	filtered  bool
	// leader: needs the leader, and is forwarded to it by other servers.
	leader bool
	// anonymous: first contact, no client certificate; the handler judges the
	// token or key itself.
	anonymous bool
}

// namespaced is a request that carries the namespace of its object.
type namespaced interface{ GetNamespace() string }

func fromRequest(m proto.Message) string {
	if n, ok := m.(namespaced); ok {
		return fleet.NamespaceOrDefault(n.GetNamespace())
	}
	return fleet.DefaultNamespace
}

func fromWorkload(m proto.Message) string {
	if w, ok := m.(interface{ GetWorkload() *redoubtv1.Workload }); ok {
		return fleet.NamespaceOrDefault(w.GetWorkload().GetNamespace())
	}
	return fleet.DefaultNamespace
}

func fromExecStart(m proto.Message) string {
	if e, ok := m.(*redoubtv1.ExecRequest); ok {
		return fleet.NamespaceOrDefault(e.GetStart().GetNamespace())
	}
	return fleet.DefaultNamespace
}

func fromForwardStart(m proto.Message) string {
	if e, ok := m.(*redoubtv1.PortForwardRequest); ok {
		return fleet.NamespaceOrDefault(e.GetStart().GetNamespace())
	}
	return fleet.DefaultNamespace
}

const (
	fleetService  = "/redoubt.v1.FleetService/"
	agentService  = "/redoubt.v1.AgentService/"
	peerService   = "/redoubt.v1.PeerService/"
	enrollService = "/redoubt.v1.EnrollmentService/"
)

// rules holds every method of every service that a server offers;
// TestEveryMethodHasARule keeps it complete.
var rules = map[string]rule{
	fleetService + "ApplyWorkload":   {kind: identity.KindUser, need: WriteWorkloads, namespace: fromWorkload, leader: true},
	fleetService + "PlanWorkload":    {kind: identity.KindUser, need: ReadWorkloads, namespace: fromWorkload, leader: true},
	fleetService + "GetWorkload":     {kind: identity.KindUser, need: ReadWorkloads, namespace: fromRequest, leader: true},
	fleetService + "ListWorkloads":   {kind: identity.KindUser, need: ReadWorkloads, filtered: true, leader: true},
	fleetService + "StopWorkload":    {kind: identity.KindUser, need: WriteWorkloads, namespace: fromRequest, leader: true},
	fleetService + "ExplainWorkload": {kind: identity.KindUser, need: ReadWorkloads, namespace: fromRequest, leader: true},
	fleetService + "ListNodes":       {kind: identity.KindUser, need: ReadFleet, leader: true},
	fleetService + "GetNode":         {kind: identity.KindUser, need: ReadFleet, leader: true},
	fleetService + "ListSites":       {kind: identity.KindUser, need: ReadFleet, leader: true},
	fleetService + "CreateJoinToken": {kind: identity.KindUser, need: Operate, leader: true},
	fleetService + "ListServers":     {kind: identity.KindUser, need: ReadFleet, leader: true},
	fleetService + "RemoveServer":    {kind: identity.KindUser, need: Administer, leader: true},
	fleetService + "GetServerInfo":   {kind: identity.KindUser},
	fleetService + "CollectDebug":    {kind: identity.KindUser, need: Administer},
	fleetService + "SaveSnapshot":    {kind: identity.KindUser, need: Administer},
	fleetService + "RenewIdentity":   {kind: identity.KindUser},
	fleetService + "ListEvents":      {kind: identity.KindUser, need: ReadWorkloads, filtered: true, leader: true},
	fleetService + "WatchEvents":     {kind: identity.KindUser, need: ReadWorkloads, filtered: true},
	fleetService + "Watch":           {kind: identity.KindUser, need: ReadWorkloads, filtered: true},
	fleetService + "GetEgress":       {kind: identity.KindUser, need: ReadWorkloads, namespace: fromRequest},
	fleetService + "Logs":            {kind: identity.KindUser, need: ReadWorkloads, namespace: fromRequest},
	fleetService + "Exec":            {kind: identity.KindUser, need: WriteWorkloads, namespace: fromExecStart},
	fleetService + "PortForward":     {kind: identity.KindUser, need: WriteWorkloads, namespace: fromForwardStart},

	agentService + "Session":           {kind: identity.KindNode},
	agentService + "Attach":            {kind: identity.KindNode},
	agentService + "RenewNodeIdentity": {kind: identity.KindNode},

	peerService + "Forward":    {kind: identity.KindServer},
	peerService + "Observe":    {kind: identity.KindServer},
	peerService + "Propose":    {kind: identity.KindServer},
	peerService + "OpenStream": {kind: identity.KindServer},
	peerService + "GetStatus":  {kind: identity.KindServer},

	enrollService + "EnrollNode":      {anonymous: true},
	enrollService + "EnrollServer":    {anonymous: true},
	enrollService + "GetRenewalNonce": {anonymous: true},
	enrollService + "RenewExpired":    {anonymous: true},

	"/grpc.health.v1.Health/Check":                                   {kind: identity.KindUser},
	"/grpc.health.v1.Health/List":                                    {kind: identity.KindUser},
	"/grpc.health.v1.Health/Watch":                                   {kind: identity.KindUser},
	"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo":      {kind: identity.KindUser},
	"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": {kind: identity.KindUser},
}

// roles reads the bindings of users from applied state.
type roles interface {
	RolesOf(user string) []fleet.Role
}

// authorize decides whether caller may call method with request. The error is
// a gRPC status that says who was refused what and how to get it.
func authorize(bindings roles, caller identity.ID, method string, request proto.Message) error {
	r, ok := rules[method]
	if !ok {
		return status.Errorf(codes.PermissionDenied, "%s has no access rule: it is refused to everybody", method)
	}
	if r.anonymous {
		return nil
	}
	if caller.Kind() != r.kind {
		return status.Errorf(codes.PermissionDenied, "%s may not call %s: it is for a %s identity", caller, short(method), r.kind)
	}
	if r.kind != identity.KindUser || r.need == 0 {
		return nil
	}
	held := bindings.RolesOf(caller.Name())
	namespace := ""
	if r.namespace != nil {
		namespace = r.namespace(request)
	}
	for _, b := range held {
		if rolePermissions[b.Role]&r.need == 0 {
			continue
		}
		if b.AllNamespaces() || r.filtered || namespace != "" && b.Namespace == namespace {
			return nil
		}
	}
	where := "in the whole fleet"
	if namespace != "" {
		where = fmt.Sprintf("in namespace %q", namespace)
	}
	return status.Errorf(codes.PermissionDenied, "user %q has no role that may %s %s (%s); an administrator can bind one",
		caller.Name(), permissionNames[r.need], where, describe(held))
}

func describe(held []fleet.Role) string {
	if len(held) == 0 {
		return "holds no role"
	}
	s := "holds"
	for i, b := range held {
		if i > 0 {
			s += ","
		}
		if b.AllNamespaces() {
			s += " " + b.Role
		} else {
			s += fmt.Sprintf(" %s in %s", b.Role, b.Namespace)
		}
	}
	return s
}

// visible tells whether user may read workloads of namespace.
func visible(bindings roles, caller identity.ID, namespace string) bool {
	for _, b := range bindings.RolesOf(caller.Name()) {
		if rolePermissions[b.Role]&ReadWorkloads != 0 && (b.AllNamespaces() || b.Namespace == namespace) {
			return true
		}
	}
	return false
}

// visibleEvent tells whether user may read an event: of a workload with the
// right to see workloads there, of a node or server with the right to see those.
func visibleEvent(held []fleet.Role, e *fleet.Event) bool {
	for _, b := range held {
		switch p := rolePermissions[b.Role]; {
		case e.Namespace == "" && p&ReadFleet != 0 && b.AllNamespaces():
			return true
		case e.Namespace != "" && p&ReadWorkloads != 0 && (b.AllNamespaces() || b.Namespace == e.Namespace):
			return true
		}
	}
	return false
}

func short(method string) string {
	for i := len(method) - 1; i >= 0; i-- {
		if method[i] == '/' {
			return method[i+1:]
		}
	}
	return method
}

type callerKey struct{}

// withCaller marks ctx with the identity that a call acts for: the TLS peer's,
// or the original caller's where a server forwarded.
func withCaller(ctx context.Context, id identity.ID) context.Context {
	return context.WithValue(ctx, callerKey{}, id)
}

// callerFrom returns the identity that the call acts for.
func callerFrom(ctx context.Context) identity.ID {
	id, _ := ctx.Value(callerKey{}).(identity.ID)
	return id
}

// checkedStream authorises a stream by its first message.
type checkedStream struct {
	grpc.ServerStream
	ctx     context.Context
	check   func(proto.Message) error
	checked bool
}

func (s *checkedStream) Context() context.Context { return s.ctx }

func (s *checkedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	if s.checked {
		return nil
	}
	s.checked = true
	msg, _ := m.(proto.Message)
	return s.check(msg)
}

// unaryAuthorizer authenticates and authorises unary calls, and passes those
// that need the leader on to forward.
func (s *Server) unaryAuthorizer(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	r, ok := rules[info.FullMethod]
	if ok && r.anonymous {
		return handler(ctx, req)
	}
	caller, err := identity.PeerID(ctx)
	if err != nil {
		return nil, status.Errorf(codes.Unauthenticated, "no SPIFFE identity on this connection: %v", err)
	}
	msg, _ := req.(proto.Message)
	if ok && r.leader && !s.consensus.IsLeader() {
		// The leader decides: its state is the newest.
		if caller.Kind() != r.kind {
			return nil, authorize(s.bindings(), caller, info.FullMethod, msg)
		}
		return s.forward(ctx, caller, info.FullMethod, msg)
	}
	if caller.Kind() == identity.KindUser && s.store.Snapshot().Cluster().ID == "" {
		// A first server that has just started knows of no roles yet.
		return nil, errNoLeader()
	}
	if err := authorize(s.bindings(), caller, info.FullMethod, msg); err != nil {
		return nil, err
	}
	if r.kind == identity.KindUser {
		if err := s.refuseUnknown(info.FullMethod, msg); err != nil {
			return nil, err
		}
	}
	return handler(withCaller(ctx, caller), req)
}

// streamAuthorizer does the same for streams, which are never forwarded whole.
func (s *Server) streamAuthorizer(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	caller, err := identity.PeerID(stream.Context())
	if err != nil {
		return status.Errorf(codes.Unauthenticated, "no SPIFFE identity on this connection: %v", err)
	}
	r, ok := rules[info.FullMethod]
	if !ok || caller.Kind() != r.kind {
		return authorize(s.bindings(), caller, info.FullMethod, nil)
	}
	return handler(srv, &checkedStream{
		ServerStream: stream,
		ctx:          withCaller(stream.Context(), caller),
		check: func(m proto.Message) error {
			if caller.Kind() == identity.KindUser && s.store.Snapshot().Cluster().ID == "" {
				// A server that has just started knows of no roles yet.
				return errNoLeader()
			}
			return authorize(s.bindings(), caller, info.FullMethod, m)
		},
	})
}
