package server

import (
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"
	"google.golang.org/protobuf/proto"

	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/identity"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// TestEveryMethodHasARule registers what a server serves and demands that the
// rules name exactly that: a method that is added is refused until somebody
// says who may call it.
func TestEveryMethodHasARule(t *testing.T) {
	g := grpc.NewServer()
	redoubtv1.RegisterFleetServiceServer(g, &fleetAPI{})
	redoubtv1.RegisterAgentServiceServer(g, &agentAPI{})
	redoubtv1.RegisterPeerServiceServer(g, &peerAPI{})
	redoubtv1.RegisterEnrollmentServiceServer(g, &enrollAPI{})
	healthpb.RegisterHealthServer(g, health.NewServer())
	reflection.Register(g)
	served := map[string]bool{}
	for service, info := range g.GetServiceInfo() {
		for _, m := range info.Methods {
			name := "/" + service + "/" + m.Name
			served[name] = true
			r, ok := rules[name]
			if !ok {
				t.Errorf("%s has no rule", name)
			}
			if r.anonymous != strings.HasPrefix(name, enrollService) {
				t.Errorf("%s: anonymous is %t; enrolment alone is", name, r.anonymous)
			}
			if r.leader && (m.IsClientStream || m.IsServerStream) {
				t.Errorf("%s: a stream cannot be forwarded", name)
			}
		}
	}
	for name := range rules {
		if !served[name] {
			t.Errorf("the rule of %s is of no method", name)
		}
	}
}

type bindingsOf []fleet.Role

func (b bindingsOf) RolesOf(user string) (held []fleet.Role) {
	for _, r := range b {
		if r.User == user {
			held = append(held, r)
		}
	}
	return held
}

func TestAuthorize(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("test.redoubt")
	id := func(kind identity.Kind, name string) identity.ID {
		i, err := identity.New(td, kind, name)
		if err != nil {
			t.Fatal(err)
		}
		return i
	}
	bindings := bindingsOf{
		{User: "root", Namespace: fleet.AllNamespaces, Role: fleet.RoleAdmin},
		{User: "ops", Namespace: fleet.AllNamespaces, Role: fleet.RoleOperator},
		{User: "eye", Namespace: fleet.AllNamespaces, Role: fleet.RoleViewer},
		{User: "team", Namespace: "team", Role: fleet.RoleSubmitter},
		{User: "teamlead", Namespace: "team", Role: fleet.RoleAdmin},
	}
	in := func(ns string) proto.Message {
		return &redoubtv1.ApplyWorkloadRequest{Workload: &redoubtv1.Workload{Namespace: ns}}
	}
	get := func(ns string) proto.Message { return &redoubtv1.GetWorkloadRequest{Namespace: ns} }
	exec := func(ns string) proto.Message {
		return &redoubtv1.ExecRequest{Message: &redoubtv1.ExecRequest_Start{Start: &redoubtv1.ExecStart{Namespace: ns}}}
	}
	forward := func(ns string) proto.Message {
		return &redoubtv1.PortForwardRequest{Message: &redoubtv1.PortForwardRequest_Start{Start: &redoubtv1.PortForwardStart{Namespace: ns}}}
	}
	tests := []struct {
		kind    identity.Kind
		name    string
		method  string
		request proto.Message
		refusal string // part of it; "" is allowed
	}{
		{identity.KindUser, "root", fleetService + "ApplyWorkload", in("team"), ""},
		{identity.KindUser, "root", fleetService + "RemoveServer", nil, ""},
		{identity.KindUser, "ops", fleetService + "RemoveServer", nil, "administer the fleet"},
		{identity.KindUser, "ops", fleetService + "CreateJoinToken", nil, ""},
		{identity.KindUser, "eye", fleetService + "ListNodes", nil, ""},
		{identity.KindUser, "eye", fleetService + "ApplyWorkload", in(""), "holds viewer"},
		{identity.KindUser, "eye", fleetService + "Exec", exec("team"), "change workloads"},
		{identity.KindUser, "team", fleetService + "ApplyWorkload", in("team"), ""},
		{identity.KindUser, "team", fleetService + "ApplyWorkload", in(""), `in namespace "default"`},
		{identity.KindUser, "team", fleetService + "GetWorkload", get("other"), "holds submitter in team"},
		{identity.KindUser, "team", fleetService + "Exec", exec("team"), ""},
		{identity.KindUser, "team", fleetService + "Exec", exec("other"), "change workloads"},
		{identity.KindUser, "eye", fleetService + "PortForward", forward("team"), "change workloads"},
		{identity.KindUser, "team", fleetService + "PortForward", forward("team"), ""},
		{identity.KindUser, "team", fleetService + "PortForward", forward("other"), "change workloads"},
		{identity.KindUser, "team", fleetService + "PortForward", forward(""), `in namespace "default"`},
		{identity.KindUser, "team", fleetService + "ListWorkloads", nil, ""}, // shows its own only
		{identity.KindUser, "team", fleetService + "ListNodes", nil, "in the whole fleet"},
		{identity.KindUser, "teamlead", fleetService + "RemoveServer", nil, "in the whole fleet"},
		{identity.KindUser, "nobody", fleetService + "ListWorkloads", nil, "holds no role"},
		{identity.KindUser, "nobody", fleetService + "GetServerInfo", nil, ""},
		{identity.KindNode, "root", fleetService + "ListNodes", nil, "it is for a user identity"},
		{identity.KindServer, "root", fleetService + "ListNodes", nil, "it is for a user identity"},
		{identity.KindUser, "root", agentService + "Session", nil, "it is for a node identity"},
		{identity.KindUser, "root", peerService + "Forward", nil, "it is for a server identity"},
		{identity.KindNode, "root", peerService + "Observe", nil, "it is for a server identity"},
		{identity.KindUser, "root", fleetService + "NewMethod", nil, "no access rule"},
	}
	for _, tt := range tests {
		err := authorize(bindings, id(tt.kind, tt.name), tt.method, tt.request)
		if (err == nil) != (tt.refusal == "") || err != nil && !strings.Contains(err.Error(), tt.refusal) {
			t.Errorf("%s %s calls %s: %v, want %q", tt.kind, tt.name, short(tt.method), err, tt.refusal)
		}
	}
}
