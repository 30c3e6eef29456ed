package control

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// runningWeb is a fleet of one server with web-1 running on oslo-1.
func runningWeb(t *testing.T) (*cluster, *testNode, *agentSession) {
	c := newCluster(t, "s1")
	n := c.node("s1", "oslo-1", "oslo")
	s, err := n.session("s1", nil)
	if err != nil {
		t.Fatal(err)
	}
	s.beat()
	if err := s.report(n.reportOf(1)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.fleet().ApplyWorkload(c.ctx(), &redoubtv1.ApplyWorkloadRequest{Workload: service("web", 1), CommandId: "one"}); err != nil {
		t.Fatal(err)
	}
	a := s.until("assignment", assigned).GetAssignments().GetUpdated()[0]
	if err := s.status(1, &redoubtv1.InstanceStatus{Uid: a.GetUid(), Fence: a.GetFence(), Sequence: 1, Phase: redoubtv1.InstancePhase_INSTANCE_PHASE_RUNNING, Runtime: "gvisor"}); err != nil {
		t.Fatal(err)
	}
	s.until("status ack", func(m *redoubtv1.SessionResponse) bool { return m.GetStatusAck().GetSequence() == 1 })
	return c, n, s
}

func (s *agentSession) streamOpen() *redoubtv1.StreamOpen {
	s.n.c.t.Helper()
	return s.until("stream", func(m *redoubtv1.SessionResponse) bool { return m.GetStreamOpen() != nil }).GetStreamOpen()
}

// attach dials back as an agent does.
func (n *testNode) attach(ctx context.Context, o *redoubtv1.StreamOpen) redoubtv1.AgentService_AttachClient {
	n.c.t.Helper()
	st, err := redoubtv1.NewAgentServiceClient(n.c.conn(o.GetServerId(), n.src)).Attach(ctx)
	if err == nil {
		err = st.Send(&redoubtv1.AttachRequest{Message: &redoubtv1.AttachRequest_StreamId{StreamId: o.GetStreamId()}})
	}
	if err != nil {
		n.c.t.Fatal(err)
	}
	return st
}

// A log that is followed while its node dies ends with the reason, and not as
// if it were whole.
func TestALogThatBreaksMidwaySaysSo(t *testing.T) {
	c, n, s := runningWeb(t)
	user, err := c.fleet().Logs(c.ctx(), &redoubtv1.LogsRequest{Name: "web", Follow: true, Tail: -1})
	if err != nil {
		t.Fatal(err)
	}
	ctx, die := context.WithCancel(c.ctx())
	agent := n.attach(ctx, s.streamOpen())
	if m, err := agent.Recv(); err != nil || !m.GetPaired() {
		t.Fatalf("the first word to the agent is %v, %v", m, err)
	}
	_ = agent.Send(&redoubtv1.AttachRequest{Message: &redoubtv1.AttachRequest_Logs{Logs: []byte("half a ")}})
	if m, err := user.Recv(); err != nil || m.GetInstance() != "web-1" || string(m.GetData()) != "half a " {
		t.Fatalf("the reader sees %v, %v", m, err)
	}
	die()
	m, err := user.Recv()
	if err != nil || m.GetInstance() != "web-1" || !strings.HasPrefix(m.GetError(), "the stream to node oslo-1 broke: ") || strings.Contains(m.GetError(), "context") {
		t.Errorf("the reader sees %v, %v", m, err)
	}
	t.Log(m.GetError())
	if m, err := user.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v, %v", m, err)
	}
}

// A caller who went while the agent dialled begins nothing there.
func TestAStreamIsPairedOnlyWithACallerWhoIsThere(t *testing.T) {
	c, n, s := runningWeb(t)
	ctx, leave := context.WithCancel(c.ctx())
	user, err := c.fleet().Exec(ctx)
	if err != nil {
		t.Fatal(err)
	}
	start := &redoubtv1.ExecStart{Name: "web", Command: []string{"rm", "/data"}}
	if err := user.Send(&redoubtv1.ExecRequest{Message: &redoubtv1.ExecRequest_Start{Start: start}}); err != nil {
		t.Fatal(err)
	}
	o := s.streamOpen()
	if !o.GetConfirms() {
		t.Error("the agent is not told to wait")
	}
	leave()
	time.Sleep(200 * time.Millisecond) // the server hears of it
	if m, err := n.attach(c.ctx(), o).Recv(); status.Code(err) != codes.NotFound {
		t.Errorf("the agent is told %v, %v", m, err)
	}
}
