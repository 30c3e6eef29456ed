package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

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
	t.Parallel()
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

// A followed log goes on at the byte where its stream broke, once the node is
// back, and takes in an instance that comes later.
func TestAFollowedLogResumesWhereItBroke(t *testing.T) {
	c, n, s := runningWeb(t)
	user, err := c.fleet().Logs(c.ctx(), &redoubtv1.LogsRequest{Name: "web", Follow: true, Tail: 3})
	if err != nil {
		t.Fatal(err)
	}
	serve := func(o *redoubtv1.StreamOpen, offset uint64, text string) (die func()) {
		ctx, cancel := context.WithCancel(c.ctx())
		agent := n.attach(ctx, o)
		if m, err := agent.Recv(); err != nil || !m.GetPaired() {
			t.Fatalf("the first word to the agent is %v, %v", m, err)
		}
		_ = agent.Send(&redoubtv1.AttachRequest{Message: &redoubtv1.AttachRequest_Log{Log: &redoubtv1.LogsResponse{
			Data: []byte(text), Position: &redoubtv1.LogPosition{Uid: o.GetUid(), Offset: offset}, Instance: "another", Error: "no agent says this"}}})
		return cancel
	}
	next := func() *redoubtv1.LogsResponse {
		t.Helper()
		m, err := user.Recv()
		if err != nil || m.GetInstance() != "web-1" || m.GetError() != "" {
			t.Fatalf("the reader sees %v, %v", m, err)
		}
		return m
	}
	o := s.streamOpen()
	if r := o.GetLogs(); r.GetTail() != 3 || !r.GetPositions() || len(r.GetResume()) != 0 {
		t.Errorf("the agent is asked for %v", r)
	}
	die := serve(o, 107, "half a ")
	if m := next(); string(m.GetData()) != "half a " || m.GetPosition().GetOffset() != 107 {
		t.Errorf("the reader sees %v", m)
	}
	die()
	if m := next(); !strings.HasPrefix(m.GetNotice(), "the stream to node oslo-1 broke: ") {
		t.Errorf("the reader is told %v", m)
	}
	o = s.streamOpen()
	if r := o.GetLogs().GetResume(); len(r) != 1 || r[0].GetOffset() != 107 || r[0].GetUid() != o.GetUid() {
		t.Errorf("the agent is to resume at %v", r)
	}
	die = serve(o, 112, "line\n")
	if m := next(); string(m.GetData()) != "line\n" || m.GetNotice() == "" {
		t.Errorf("the reader sees %v", m)
	}
	die()
	next()
	// An agent of an older version ends a log in order when it is stopped itself.
	agent := n.attach(c.ctx(), s.streamOpen())
	_ = agent.CloseSend()
	// A reader who comes back with his own positions is given what follows them.
	again, err := c.fleet().Logs(c.ctx(), &redoubtv1.LogsRequest{Name: "web", Follow: true, Tail: -1,
		Resume: []*redoubtv1.LogPosition{{Uid: "other", Offset: 1}, {Uid: o.GetUid(), Offset: 112}}})
	if err != nil {
		t.Fatal(err)
	}
	_ = again
	for range 2 { // of both readers, the first for the third time
		if r := s.streamOpen().GetLogs().GetResume(); len(r) != 1 || r[0].GetOffset() != 112 {
			t.Errorf("the agent is to resume at %v", r)
		}
	}
	// What cannot be is refused.
	for _, r := range []*redoubtv1.LogsRequest{{Name: "web", Follow: true, Previous: true}, {Name: "web", Since: &timestamppb.Timestamp{Nanos: -1}}, {Name: "web", SinceAgo: durationpb.New(-1)}} {
		bad, err := c.fleet().Logs(c.ctx(), r)
		if err == nil {
			_, err = bad.Recv()
		}
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v", r, err)
		}
	}
}

// A caller who went while the agent dialled begins nothing there.
func TestAStreamIsPairedOnlyWithACallerWhoIsThere(t *testing.T) {
	t.Parallel()
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
	// The server hears of it. While the stream waits, another node is told whose
	// it is, which takes nothing of it.
	other := c.node("s1", "oslo-2", "oslo")
	c.eventually("nobody waits any more", func() error {
		if _, err := other.attach(c.ctx(), o).Recv(); status.Code(err) != codes.NotFound {
			return fmt.Errorf("another node is told %w", err)
		}
		return nil
	})
	if m, err := n.attach(c.ctx(), o).Recv(); status.Code(err) != codes.NotFound {
		t.Errorf("the agent is told %v, %v", m, err)
	}
}

// A caller who goes ends the agent's side at once, also while nothing is said:
// what was begun for him must not run on.
func TestAnAgentsStreamEndsWithItsCaller(t *testing.T) {
	t.Parallel()
	c, n, s := runningWeb(t)
	ctx, leave := context.WithCancel(c.ctx())
	user, err := c.fleet().Exec(ctx)
	if err != nil {
		t.Fatal(err)
	}
	start := &redoubtv1.ExecStart{Name: "web", Command: []string{"sleep", "1000"}}
	if err := user.Send(&redoubtv1.ExecRequest{Message: &redoubtv1.ExecRequest_Start{Start: start}}); err != nil {
		t.Fatal(err)
	}
	agent := n.attach(c.ctx(), s.streamOpen())
	if m, err := agent.Recv(); err != nil || !m.GetPaired() {
		t.Fatal(m, err)
	}
	leave()
	ended := make(chan error, 1)
	go func() { _, err := agent.Recv(); ended <- err }()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("the agent is told something")
		}
	case <-time.After(10 * time.Second):
		t.Error("the agent's stream goes on without its caller")
	}
}

// A connection to a port goes through whole, each direction until its own end.
func TestPortForwardJoinsBothSides(t *testing.T) {
	t.Parallel()
	c, n, s := runningWeb(t)
	user, err := c.fleet().PortForward(c.ctx())
	if err != nil {
		t.Fatal(err)
	}
	begin := func(u redoubtv1.FleetService_PortForwardClient, start *redoubtv1.PortForwardStart) {
		if err := u.Send(&redoubtv1.PortForwardRequest{Message: &redoubtv1.PortForwardRequest_Start{Start: start}}); err != nil {
			t.Fatal(err)
		}
	}
	begin(user, &redoubtv1.PortForwardStart{Name: "web", Port: 80})
	o := s.streamOpen()
	if o.GetForward().GetPort() != 80 {
		t.Errorf("the agent is asked for %v", o)
	}
	agent := n.attach(c.ctx(), o)
	if m, err := agent.Recv(); err != nil || !m.GetPaired() {
		t.Fatal(m, err)
	}
	reply := func(r *redoubtv1.PortForwardResponse) {
		_ = agent.Send(&redoubtv1.AttachRequest{Message: &redoubtv1.AttachRequest_Forward{Forward: r}})
	}
	reply(&redoubtv1.PortForwardResponse{Message: &redoubtv1.PortForwardResponse_Connected{Connected: "web-1"}})
	if m, err := user.Recv(); err != nil || m.GetConnected() != "web-1" {
		t.Fatal(m, err)
	}
	_ = user.Send(&redoubtv1.PortForwardRequest{Message: &redoubtv1.PortForwardRequest_Data{Data: []byte("ask")}})
	if err := user.CloseSend(); err != nil { // is taken for close
		t.Fatal(err)
	}
	if m, err := agent.Recv(); err != nil || string(m.GetForward().GetData()) != "ask" {
		t.Fatal(m, err)
	}
	if m, err := agent.Recv(); err != nil || !m.GetForward().GetClose() {
		t.Fatal(m, err)
	}
	reply(&redoubtv1.PortForwardResponse{Message: &redoubtv1.PortForwardResponse_Data{Data: []byte("answer")}})
	if m, err := user.Recv(); err != nil || string(m.GetData()) != "answer" {
		t.Fatal(m, err)
	}
	_ = agent.CloseSend()
	if m, err := user.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v, %v", m, err)
	}

	// Port 0 asks nobody; a port that is none is refused.
	for _, tt := range []struct {
		start *redoubtv1.PortForwardStart
		code  codes.Code
	}{{&redoubtv1.PortForwardStart{Name: "web"}, codes.OK}, {&redoubtv1.PortForwardStart{Name: "web", Port: 65536}, codes.InvalidArgument}, {&redoubtv1.PortForwardStart{Name: "nobody"}, codes.NotFound}} {
		user, err := c.fleet().PortForward(c.ctx())
		if err != nil {
			t.Fatal(err)
		}
		begin(user, tt.start)
		if m, err := user.Recv(); status.Code(err) != tt.code || err == nil && m.GetConnected() != "web-1" {
			t.Errorf("%v: %v, %v", tt.start, m, err)
		}
	}
}
