package control

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

func (s *agentSession) heartbeat(seq uint64) error {
	return s.Send(&redoubtv1.SessionRequest{Message: &redoubtv1.SessionRequest_Heartbeat{Heartbeat: &redoubtv1.Heartbeat{Sequence: seq}}})
}

// TestASafeInstanceThatWasGivenUpIsNotRenewed: an agent that stood still keeps
// its session and speaks again after its work was given up. Its heartbeat is
// acknowledged, which renews leases, only behind the order to stop.
func TestASafeInstanceThatWasGivenUpIsNotRenewed(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "s1", "s2")
	spec := service("web", 2)
	spec.Disconnect = &redoubtv1.Disconnect{LostAfter: "2s", StopAfter: "1s", Replace: "Safe"}
	frozen := c.node("s1", "oslo-1", "oslo")
	s, err := frozen.session("s2", nil) // at a follower
	if err != nil {
		t.Fatal(err)
	}
	other := c.node("s1", "oslo-2", "oslo")
	o, err := other.session("s1", nil)
	if err != nil {
		t.Fatal(err)
	}
	o.beat()
	for _, err := range []error{s.report(frozen.reportOf(1)), o.report(other.reportOf(1))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	freeze, froze := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(froze)
		for seq := uint64(1); s.heartbeat(seq) == nil; seq++ {
			select {
			case <-freeze:
				return
			case <-time.After(100 * time.Millisecond): // the agent's rhythm
			}
		}
	}()
	c.eventually("both nodes are ready", func() error {
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
	a := s.until("assignment", assigned).GetAssignments().GetUpdated()[0]
	close(freeze)
	<-froze
	c.eventually("the silent node's instance is given up", func() error {
		w, err := c.fleet().GetWorkload(c.ctx(), &redoubtv1.GetWorkloadRequest{Name: "web"})
		if err != nil {
			return err
		}
		for _, i := range w.GetWorkload().GetStatus().GetInstances() {
			if i.GetAssignment().GetUid() == a.GetUid() && i.GetStatus().GetPhase() == redoubtv1.InstancePhase_INSTANCE_PHASE_LOST {
				return nil
			}
		}
		return fmt.Errorf("%v", w.GetWorkload().GetStatus().GetPhase())
	})
	if err := s.heartbeat(1000); err != nil {
		t.Fatal(err)
	}
	told := false
	s.until("the acknowledgement", func(m *redoubtv1.SessionResponse) bool {
		for _, u := range m.GetAssignments().GetUpdated() {
			told = told || u.GetUid() == a.GetUid() && u.GetStop()
		}
		return m.GetHeartbeatAck().GetSequence() == 1000
	})
	if !told {
		t.Error("the heartbeat was acknowledged before the agent was told to stop")
	}
}

// TestACopiedIdentityDoesNotStayUnseen: two agents with one identity on two
// servers look like one node to each of them. The leader sees both.
func TestACopiedIdentityDoesNotStayUnseen(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "s1", "s2")
	n := c.node("s1", "oslo-1", "oslo")
	first, err := n.session("s1", nil)
	if err != nil {
		t.Fatal(err)
	}
	first.beat()
	first.until("it is heard", func(m *redoubtv1.SessionResponse) bool { return m.GetHeartbeatAck() != nil })
	second, err := n.session("s2", nil)
	if err != nil {
		t.Fatal(err)
	}
	second.beat()
	for {
		if _, err = first.Recv(); err != nil {
			break
		}
	}
	if status.Code(err) != codes.Aborted || !strings.Contains(err.Error(), "newer session") {
		t.Errorf("the older session ended with %v", err)
	}
	// The younger one goes on.
	deadline := time.Now().Add(2 * c.timing.SilentAfter)
	for time.Now().Before(deadline) {
		second.until("it is still heard", func(m *redoubtv1.SessionResponse) bool { return m.GetHeartbeatAck() != nil })
	}
}
