package control

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// Counters are asked of the agent when somebody wants them, and what a hostile
// agent says of them is made plain and bounded.
func TestEgressCountersAreAskedOfTheAgent(t *testing.T) {
	t.Parallel()
	c, n, s := runningWeb(t)
	type answer struct {
		r   *redoubtv1.GetEgressResponse
		err error
	}
	ask := func(reply func(agent redoubtv1.AgentService_AttachClient)) answer {
		t.Helper()
		out := make(chan answer, 1)
		go func() {
			r, err := c.fleet().GetEgress(c.ctx(), &redoubtv1.GetEgressRequest{Name: "web"})
			out <- answer{r, err}
		}()
		o := s.streamOpen()
		if o.GetEgress() == nil {
			t.Fatalf("the agent is asked for %v", o)
		}
		agent := n.attach(c.ctx(), o)
		if m, err := agent.Recv(); err != nil || !m.GetPaired() {
			t.Fatal(m, err)
		}
		reply(agent)
		return <-out
	}
	got := ask(func(agent redoubtv1.AgentService_AttachClient) {
		counts := &redoubtv1.EgressCounts{Rules: []*redoubtv1.EgressCount{
			{Rule: "to 10.0.0.0/8\x1b[31m", Packets: 3, Bytes: 180}, {Rule: "anything else", Packets: 7, Bytes: 420, Refused: true},
		}}
		for range 8_000 {
			counts.Rules = append(counts.Rules, &redoubtv1.EgressCount{Rule: "more"})
		}
		_ = agent.Send(&redoubtv1.AttachRequest{Message: &redoubtv1.AttachRequest_Egress{Egress: counts}})
	})
	if got.err != nil || len(got.r.GetInstances()) != 1 {
		t.Fatal(got.r, got.err)
	}
	i := got.r.GetInstances()[0]
	if i.GetInstance() != "web-1" || i.GetNode() != "oslo-1" || i.GetError() != "" || len(i.GetRules()) < 2 {
		t.Fatalf("of %s on %s: %s", i.GetInstance(), i.GetNode(), i.GetError())
	}
	if r := i.GetRules(); len(r) > 5000 || r[0].GetPackets() != 3 || r[1].GetBytes() != 420 || !r[1].GetRefused() || strings.ContainsRune(r[0].GetRule(), '\x1b') {
		t.Errorf("%d rules, the first are %v", len(r), r[:2])
	}
	// An agent that knows no counters says so, beside its instance.
	got = ask(func(agent redoubtv1.AgentService_AttachClient) {
		_ = agent.Send(&redoubtv1.AttachRequest{Message: &redoubtv1.AttachRequest_Error{Error: &redoubtv1.AttachError{
			Code: uint32(codes.Unimplemented), Message: "this agent does not know that kind of stream",
		}}})
	})
	if got.err != nil || !strings.Contains(got.r.GetInstances()[0].GetError(), "does not know that kind") {
		t.Error(got.r, got.err)
	}
	if _, err := c.fleet().GetEgress(c.ctx(), &redoubtv1.GetEgressRequest{Name: "nobody"}); status.Code(err) != codes.NotFound {
		t.Error("of nobody:", err)
	}
}

// What a node warns of is shown with it, for as long as it says so.
func TestANodesWarningsAreShown(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "s1")
	n := c.node("s1", "oslo-1", "oslo")
	s, err := n.session("s1", nil)
	if err != nil {
		t.Fatal(err)
	}
	for seq, said := range [][]string{{"a firewall\nis in the way"}, nil} {
		if err := s.Send(&redoubtv1.SessionRequest{Message: &redoubtv1.SessionRequest_Heartbeat{Heartbeat: &redoubtv1.Heartbeat{
			Sequence: uint64(seq + 1), Warnings: said,
		}}}); err != nil {
			t.Fatal(err)
		}
		c.eventually("the warning", func() error {
			r, err := c.fleet().GetNode(c.ctx(), &redoubtv1.GetNodeRequest{Id: "oslo-1"})
			if err != nil {
				return err
			}
			if got, want := strings.Join(r.GetNode().GetWarnings(), "|"), strings.ReplaceAll(strings.Join(said, "|"), "\n", " "); got != want {
				return fmt.Errorf("warnings are %q, want %q", got, want)
			}
			return nil
		})
	}
}
