package control

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"redoubt.dev/redoubt/identity"
	"redoubt.dev/redoubt/identity/ca"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

type (
	svid = x509svid.SVID
	cert = x509.Certificate
)

// service is a workload that lands on gVisor.
func service(name string, replicas uint32) *redoubtv1.Workload {
	return &redoubtv1.Workload{
		Kind: "Service", Name: name, Isolation: &redoubtv1.Isolation{Floor: "sandbox", Prefer: "vm"},
		Placement:  &redoubtv1.Placement{Replicas: &replicas},
		Containers: []*redoubtv1.Container{{Name: name, Image: "toolbox"}},
	}
}

func assigned(m *redoubtv1.SessionResponse) bool { return len(m.GetAssignments().GetUpdated()) > 0 }

func TestAWorkloadReachesAnAgentAtAFollowerAndItsStatusComesBack(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "s1", "s2", "s3")
	n := c.node("s2", "oslo-1", "oslo")
	s, err := n.session("s3", nil)
	if err != nil {
		t.Fatal(err)
	}
	w := s.until("welcome", func(m *redoubtv1.SessionResponse) bool { return m.GetWelcome() != nil }).GetWelcome()
	if len(w.GetFleet().GetServers()) != 3 || len(w.GetFleet().GetBundle()) != 3 {
		t.Errorf("welcome names %d servers and %d authorities, want 3 of each", len(w.GetFleet().GetServers()), len(w.GetFleet().GetBundle()))
	}
	s.beat()
	if err := s.report(n.reportOf(1)); err != nil {
		t.Fatal(err)
	}
	fleet := redoubtv1.NewFleetServiceClient(c.conn("s2", c.source("")))
	c.eventually("the node is ready", func() error {
		r, err := fleet.GetNode(c.ctx(), &redoubtv1.GetNodeRequest{Id: "oslo-1"})
		if err == nil && r.GetNode().GetState() != redoubtv1.NodeState_NODE_STATE_READY {
			err = fmt.Errorf("it is %v: %s", r.GetNode().GetState(), r.GetNode().GetHint())
		}
		return err
	})
	svid, err := n.src.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	if r, err := fleet.GetNode(c.ctx(), &redoubtv1.GetNodeRequest{Id: "oslo-1"}); err != nil || !r.GetNode().GetSvidExpires().AsTime().Equal(svid.Certificates[0].NotAfter) {
		t.Errorf("its certificate ends %v, %v; want %v", r.GetNode().GetSvidExpires().AsTime(), err, svid.Certificates[0].NotAfter)
	}
	applied, err := fleet.ApplyWorkload(c.ctx(), &redoubtv1.ApplyWorkloadRequest{Workload: service("web", 1), CommandId: "one"})
	if err != nil {
		t.Fatal(err)
	}
	again, err := fleet.ApplyWorkload(c.ctx(), &redoubtv1.ApplyWorkloadRequest{Workload: service("web", 1), CommandId: "one"})
	if err != nil || again.GetWorkload().GetRevision() != applied.GetWorkload().GetRevision() || again.GetResult() != "created" {
		t.Errorf("the same command again: %v %v, want its first result", again.GetResult(), err)
	}
	a := s.until("assignment", assigned).GetAssignments().GetUpdated()[0]
	if a.GetRuntime() != "gvisor" || a.GetInstance() != "web-1" || a.GetFence().GetIndex() == 0 || a.GetSpec().GetName() != "web" {
		t.Fatalf("assigned %v", a)
	}
	st := &redoubtv1.InstanceStatus{Uid: a.GetUid(), Fence: a.GetFence(), Sequence: 1, Phase: redoubtv1.InstancePhase_INSTANCE_PHASE_STARTING, Message: "no such image"}
	if err := s.status(6, st); err != nil {
		t.Fatal(err)
	}
	s.until("status ack", func(m *redoubtv1.SessionResponse) bool { return m.GetStatusAck().GetSequence() == 6 })
	if l, err := fleet.ListWorkloads(c.ctx(), &redoubtv1.ListWorkloadsRequest{}); err != nil || l.GetWorkloads()[0].GetStatus().GetWhy() != "web-1: no such image" {
		t.Errorf("while its image is missing the list says %v, %v", l, err)
	}
	st.Sequence, st.Phase, st.Message, st.Pid, st.Runtime = 2, redoubtv1.InstancePhase_INSTANCE_PHASE_RUNNING, "", 42, "gvisor"
	if err := s.status(7, st); err != nil {
		t.Fatal(err)
	}
	s.until("status ack", func(m *redoubtv1.SessionResponse) bool { return m.GetStatusAck().GetSequence() == 7 })
	got, err := fleet.GetWorkload(c.ctx(), &redoubtv1.GetWorkloadRequest{Name: "web"})
	if err != nil || got.GetWorkload().GetStatus().GetPhase() != redoubtv1.WorkloadPhase_WORKLOAD_PHASE_RUNNING || got.GetWorkload().GetStatus().GetInstances()[0].GetStatus().GetPid() != 42 {
		t.Fatalf("workload %v, %v", got.GetWorkload().GetStatus(), err)
	}
	s.until("heartbeat ack", func(m *redoubtv1.SessionResponse) bool { return m.GetHeartbeatAck().GetTerm() > 0 })

	// Stopping it is told, and it is forgotten once the agent says that it ended.
	if _, err := fleet.StopWorkload(c.ctx(), &redoubtv1.StopWorkloadRequest{Name: "web"}); err != nil {
		t.Fatal(err)
	}
	s.until("stop", func(m *redoubtv1.SessionResponse) bool {
		return assigned(m) && m.GetAssignments().GetUpdated()[0].GetStop()
	})
	st.Sequence, st.Phase = 3, redoubtv1.InstancePhase_INSTANCE_PHASE_STOPPED
	if err := s.status(8, st); err != nil {
		t.Fatal(err)
	}
	s.until("removal", func(m *redoubtv1.SessionResponse) bool { return len(m.GetAssignments().GetRemoved()) == 1 })
	c.eventually("the workload is forgotten", func() error {
		_, err := fleet.GetWorkload(c.ctx(), &redoubtv1.GetWorkloadRequest{Name: "web"})
		if status.Code(err) != codes.NotFound {
			return fmt.Errorf("get says %v", err)
		}
		return nil
	})
}

func TestAcknowledgedWorkSurvivesTheLeaderAndSessionsDoNotMove(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "s1", "s2", "s3")
	n := c.node("s1", "oslo-1", "oslo")
	s, err := n.session("s2", nil)
	if err != nil {
		t.Fatal(err)
	}
	s.beat()
	if err := s.report(n.reportOf(1)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.fleet().ApplyWorkload(c.ctx(), &redoubtv1.ApplyWorkloadRequest{Workload: service("web", 1)}); err != nil {
		t.Fatal(err)
	}
	s.until("assignment", assigned)
	c.halt("s1") // the first leader
	fleet := redoubtv1.NewFleetServiceClient(c.conn("s3", c.source("")))
	c.eventually("a new leader knows the node by its report's age and places on it", func() error {
		r, err := fleet.GetNode(c.ctx(), &redoubtv1.GetNodeRequest{Id: "oslo-1"})
		if err == nil && (r.GetNode().GetState() != redoubtv1.NodeState_NODE_STATE_READY || len(r.GetNode().GetFresh()) == 0 || !r.GetNode().GetFresh()[0]) {
			err = fmt.Errorf("%v %v %s", r.GetNode().GetState(), r.GetNode().GetFresh(), r.GetNode().GetHint())
		}
		return err
	})
	if _, err := fleet.ApplyWorkload(c.ctx(), &redoubtv1.ApplyWorkloadRequest{Workload: service("more", 1)}); err != nil {
		t.Fatal(err)
	}
	// On the same stream as before.
	m := s.until("assignment by the new leader", assigned)
	if got := m.GetAssignments().GetUpdated()[0]; got.GetWorkload() != "more" || m.GetAssignments().GetKind() != redoubtv1.Assignments_KIND_INCREMENTAL {
		t.Errorf("assigned %v", m)
	}
	c.start(c.servers["s1"])
}

func TestANodeSpeaksOnlyForItself(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "s1")
	n := c.node("s1", "oslo-1", "oslo")
	other := c.node("s1", "oslo-2", "oslo")
	refused := func(what string, s *agentSession, err error, want string) {
		t.Helper()
		for err == nil {
			_, err = s.Recv()
		}
		if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want a refusal that says %q", what, err, want)
		}
	}
	s, err := n.session("s1", &redoubtv1.Hello{Node: "oslo-2", Site: "oslo"})
	refused("a session in another's name", s, err, "speaks only for itself")
	s, err = n.session("s1", nil)
	if err == nil {
		err = s.report(other.reportOf(1))
	}
	refused("a report for another", s, err, "speaks only for itself")

	// A status of another node's instance changes nothing.
	s, err = other.session("s1", nil)
	if err != nil {
		t.Fatal(err)
	}
	s.beat()
	if err := s.report(other.reportOf(1)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.fleet().ApplyWorkload(c.ctx(), &redoubtv1.ApplyWorkloadRequest{Workload: service("web", 1)}); err != nil {
		t.Fatal(err)
	}
	a := s.until("assignment", assigned).GetAssignments().GetUpdated()[0]
	liar, err := n.session("s1", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := liar.status(1, &redoubtv1.InstanceStatus{Uid: a.GetUid(), Fence: a.GetFence(), Sequence: 9, Phase: redoubtv1.InstancePhase_INSTANCE_PHASE_FAILED}); err != nil {
		t.Fatal(err)
	}
	liar.until("ack", func(m *redoubtv1.SessionResponse) bool { return m.GetStatusAck() != nil })
	w, err := c.fleet().GetWorkload(c.ctx(), &redoubtv1.GetWorkloadRequest{Name: "web"})
	if err != nil || w.GetWorkload().GetStatus().GetInstances()[0].GetStatus().GetPhase() != redoubtv1.InstancePhase_INSTANCE_PHASE_ASSIGNED {
		t.Errorf("another node's word was taken: %v %v", w.GetWorkload().GetStatus(), err)
	}
}

func TestATokenIsForOneKey(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "s1", "s2")
	token := c.token(&redoubtv1.CreateJoinTokenRequest{Site: "oslo"})
	_, csr := newCSR(t)
	for _, server := range []string{"s1", "s2", "s1"} { // a dropped link: the same key repeats
		if _, err := c.enroll(server, &redoubtv1.EnrollNodeRequest{Token: token, Csr: csr, Node: "oslo-1"}); err != nil {
			t.Fatalf("the same key at %s: %v", server, err)
		}
	}
	for what, try := range map[string]struct {
		token, node, site, want string
	}{
		"a second key": {token, "oslo-1", "oslo", "used by another key"},
		"a cut token":  {token[:len(token)-9], "oslo-9", "oslo", "damaged"},
		"no token":     {"hello", "oslo-9", "oslo", "not a join token"},
		"another site": {c.token(&redoubtv1.CreateJoinTokenRequest{Site: "oslo"}), "oslo-9", "lab", "is for site oslo"},
		"a taken name": {c.token(&redoubtv1.CreateJoinTokenRequest{}), "oslo-1", "oslo", "enrolled with another key"},
		"a bad name":   {c.token(&redoubtv1.CreateJoinTokenRequest{}), "Oslo_1", "oslo", "node name"},
	} {
		_, other := newCSR(t)
		_, err := c.enroll("s2", &redoubtv1.EnrollNodeRequest{Token: try.token, Csr: other, Node: try.node, Site: try.site})
		if err == nil || !strings.Contains(err.Error(), try.want) {
			t.Errorf("%s: %v, want a refusal that says %q", what, err, try.want)
		}
	}
}

func TestStrangersAreRefusedWithTheReason(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "s1")
	call := func(src identity.Source) error {
		_, err := redoubtv1.NewFleetServiceClient(c.conn("s1", src)).ListNodes(c.ctx(), &redoubtv1.ListNodesRequest{})
		return err
	}
	admin, _ := identity.UserID(td, AdminUser)
	if err := call(c.signed("s1", admin, time.Hour)); err != nil {
		t.Fatalf("a good certificate: %v", err)
	}
	expired := c.signed("s1", admin, time.Nanosecond)
	if err := call(expired); err == nil || !strings.Contains(err.Error(), "ended at") {
		t.Errorf("an expired certificate: %v", err)
	}
	for name, domain := range map[string]string{"a foreign trust domain": "elsewhere.example", "a foreign authority of our name": trustDomain} {
		foreign := spiffeid.RequireTrustDomainFromString(domain)
		a, err := ca.Create(filepath.Join(t.TempDir(), "ca"), foreign)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Activate(x509bundle.FromX509Authorities(foreign, []*cert{a.Certificate()})); err != nil {
			t.Fatal(err)
		}
		user, _ := identity.UserID(foreign, AdminUser)
		src := identity.NewMemorySource(sign(t, a, user, time.Hour), c.bundle())
		if err := call(src); err == nil {
			t.Errorf("%s was let in", name)
		}
	}
}

func TestAUserWithoutRightsIsRefused(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "s1", "s2")
	nobody, _ := identity.UserID(td, "nobody")
	for _, server := range []string{"s1", "s2"} { // directly, and forwarded
		f := redoubtv1.NewFleetServiceClient(c.conn(server, c.signed("s1", nobody, time.Hour)))
		_, err := f.ApplyWorkload(c.ctx(), &redoubtv1.ApplyWorkloadRequest{Workload: service("web", 1)})
		if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), `user "nobody" has no role`) {
			t.Errorf("apply at %s: %v", server, err)
		}
		if _, err := f.RenewIdentity(c.ctx(), &redoubtv1.RenewIdentityRequest{}); status.Code(err) != codes.PermissionDenied {
			t.Errorf("renew at %s: %v", server, err)
		}
	}
	// A node's and a server's identity grant no user's rights, and a user is no
	// server.
	n := c.node("s1", "oslo-1", "oslo")
	if _, err := redoubtv1.NewFleetServiceClient(c.conn("s2", n.src)).ListNodes(c.ctx(), &redoubtv1.ListNodesRequest{}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a node as a user: %v", err)
	}
	s2, _ := identity.ServerID(td, "s2")
	as := c.conn("s1", c.signed("s2", s2, time.Hour))
	if _, err := redoubtv1.NewFleetServiceClient(as).ListNodes(c.ctx(), &redoubtv1.ListNodesRequest{}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a server as a user: %v", err)
	}
	r, err := redoubtv1.NewPeerServiceClient(as).Forward(c.ctx(), &redoubtv1.ForwardRequest{Caller: nobody.String(), Method: "/redoubt.v1.FleetService/ListNodes"})
	if err == nil && len(r.GetStatus()) == 0 {
		t.Error("a forwarded call of a user without rights was served")
	}
	if _, err := redoubtv1.NewPeerServiceClient(c.conn("s1", c.source(""))).GetStatus(c.ctx(), &redoubtv1.GetStatusRequest{}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a user as a server: %v", err)
	}
}

func TestALoneSilentSiteWaitsAndAnotherSitesNodeIsLost(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "s1")
	spec := service("web", 3)
	spec.Disconnect = &redoubtv1.Disconnect{LostAfter: "3s"}
	var sessions []*agentSession
	for _, id := range []string{"oslo-1", "oslo-2", "lab-1"} {
		n := c.node("s1", id, strings.Split(id, "-")[0])
		s, err := n.session("s1", nil)
		if err != nil {
			t.Fatal(err)
		}
		s.beat()
		if err := s.report(n.reportOf(1)); err != nil {
			t.Fatal(err)
		}
		sessions = append(sessions, s)
	}
	c.eventually("all three are ready", func() error {
		r, err := c.fleet().ListNodes(c.ctx(), &redoubtv1.ListNodesRequest{})
		for _, n := range r.GetNodes() {
			if n.GetState() != redoubtv1.NodeState_NODE_STATE_READY {
				err = fmt.Errorf("%s is %v", n.GetId(), n.GetState())
			}
		}
		return err
	})
	if _, err := c.fleet().ApplyWorkload(c.ctx(), &redoubtv1.ApplyWorkloadRequest{Workload: spec}); err != nil {
		t.Fatal(err)
	}
	states := func() map[string]redoubtv1.InstancePhase {
		w, err := c.fleet().GetWorkload(c.ctx(), &redoubtv1.GetWorkloadRequest{Name: "web"})
		if err != nil {
			t.Fatal(err)
		}
		m := map[string]redoubtv1.InstancePhase{}
		for _, i := range w.GetWorkload().GetStatus().GetInstances() {
			m[i.GetAssignment().GetNode()+" "+i.GetAssignment().GetInstance()] = i.GetStatus().GetPhase()
		}
		return m
	}
	c.eventually("three are placed, one a node", func() error {
		if m := states(); len(m) != 3 {
			return fmt.Errorf("%v", m)
		}
		return nil
	})
	before := states()
	sessions[0].cancel() // oslo-1, while oslo-2 is heard
	sessions[2].cancel() // lab-1, all of its site
	lost := 0
	c.eventually("what ran on the silent node is replaced", func() error {
		lost = 0
		for _, p := range states() {
			if p == redoubtv1.InstancePhase_INSTANCE_PHASE_LOST {
				lost++
			}
		}
		if len(states()) != 4 || lost != 1 {
			return fmt.Errorf("%v", states())
		}
		return nil
	})
	for k, p := range states() {
		if strings.HasPrefix(k, "lab-1") && (p == redoubtv1.InstancePhase_INSTANCE_PHASE_LOST || before[k] == 0) {
			t.Errorf("work of a disconnected site was moved: %s %v", k, p)
		}
	}
	sites, err := c.fleet().ListSites(c.ctx(), &redoubtv1.ListSitesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sites.GetSites() {
		if s.GetDisconnected() != (s.GetId() == "lab") {
			t.Errorf("site %v", s)
		}
	}
}

func TestADataDirectoryIsOneServersOfOneFleetAndOneProcess(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "s1")
	s := c.servers["s1"]
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	// The listener is taken too; another address shows the lock.
	set, err := readSettings(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	moved := set
	moved.APIAddress, moved.RaftAddress, moved.EnrollAddress = freeAddress(t), freeAddress(t), freeAddress(t)
	if err := moved.write(s.dir); err != nil {
		t.Fatal(err)
	}
	if err := Run(ctx, Config{Dir: s.dir, Log: c.log()}); err == nil || !strings.Contains(err.Error(), "is used by process") {
		t.Errorf("a second process: %v", err)
	}
	if err := set.write(s.dir); err != nil {
		t.Fatal(err)
	}
	if err := Init(InitConfig{Dir: s.dir, ID: "s9", TrustDomain: trustDomain, Addresses: s.addresses}); err == nil || !strings.Contains(err.Error(), "belongs to server s1") {
		t.Errorf("init over another server: %v", err)
	}
	if err := Run(ctx, Config{Dir: t.TempDir(), Log: c.log()}); err == nil || !strings.Contains(err.Error(), "redoubt server init") {
		t.Errorf("an empty directory: %v", err)
	}
}

// removed runs to the end of a server, which must say that it was removed.
func (c *cluster) removed(id string, ended <-chan error) {
	c.t.Helper()
	s := c.servers[id]
	s.stop = nil
	select {
	case err := <-ended:
		if !errors.Is(err, ErrRemoved) || !strings.Contains(err.Error(), "redoubt server join") {
			c.t.Errorf("server %s was removed and ended with: %v", id, err)
		}
	case <-time.After(40 * time.Second):
		c.t.Fatalf("server %s was removed and goes on", id)
	}
	if err := Run(c.ctx(), Config{Dir: s.dir, Log: c.log()}); !errors.Is(err, ErrRemoved) {
		c.t.Errorf("started again, server %s says: %v", id, err)
	}
}

func TestAServerThatWasRemovedWhileItWasDownSaysSo(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "s1", "s2", "s3")
	c.halt("s3")
	if _, err := c.fleet().RemoveServer(c.ctx(), &redoubtv1.RemoveServerRequest{Id: "s3"}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		ended <- Run(ctx, Config{Dir: c.servers["s3"].dir, Log: c.log(), Timing: c.timing, Raft: raftTiming})
	}()
	c.removed("s3", ended)
}

func TestALeaderIsRemovedByCommandAfterHandingOver(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "s1", "s2", "s3")
	if _, err := c.fleet().RemoveServer(c.ctx(), &redoubtv1.RemoveServerRequest{Id: "s1"}); err != nil {
		t.Fatal(err)
	}
	f := redoubtv1.NewFleetServiceClient(c.conn("s2", c.source("")))
	c.eventually("two are left", func() error {
		r, err := f.ListServers(c.ctx(), &redoubtv1.ListServersRequest{})
		if err == nil && len(r.GetServers()) != 2 {
			err = fmt.Errorf("%v", r.GetServers())
		}
		return err
	})
	c.removed("s1", c.servers["s1"].done)
	if _, err := f.RemoveServer(c.ctx(), &redoubtv1.RemoveServerRequest{Id: "s9"}); status.Code(err) != codes.NotFound {
		t.Errorf("removing a stranger: %v", err)
	}
}
