package leader

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/control/state"
	"redoubt.dev/redoubt/isolation"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// ErrNotLeader: this server leads no term, or its term has not caught up yet.
var ErrNotLeader = errors.New("this server is not the leader")

// Heard is the answer to a batch of observations.
type Heard struct {
	Term     uint64
	Accepted []bool // in the batch's order
	// Fetch these nodes' reports; their sessions are with the asking server.
	Fetch []isolation.NodeID
}

// Observe takes in what sessions said, on whichever server they are, and
// records what belongs in the log. An accepted observation is durable, and its
// heartbeat renews the node's leases: that this server still leads is verified
// after the batch was taken, not before.
func (l *Leader) Observe(ctx context.Context, req *redoubtv1.ObserveRequest) (Heard, error) {
	t := l.term.Load()
	if t == nil {
		return Heard{}, ErrNotLeader
	}
	now := time.Now()
	view := l.store.Snapshot()
	h := Heard{Term: t.number, Accepted: make([]bool, len(req.GetNodes()))}
	var (
		ops   []*redoubtv1.Operation
		opsOf []int // index into the batch of each operation
	)
	for i, o := range req.GetNodes() {
		n, ok := view.Node(nil, isolation.NodeID(o.GetNode()))
		if !ok {
			continue // not enrolled, or this server is behind
		}
		h.Accepted[i] = true
		w := Word{
			Node: n.ID, Site: n.Site, Server: req.GetServer(), Connected: o.GetConnected(),
			Silent: o.GetSilent().AsDuration(), Load: o.GetLoad(), ReportAge: o.GetReportAge().AsDuration(),
		}
		if o.GetReport() != nil {
			report, err := state.ReportFromProto(o.GetReport())
			if err != nil {
				l.log.Warn("a node's report cannot be read", "node", n.ID, "err", err)
				h.Accepted[i] = false
				continue
			}
			w.Report = report
			if op := reportOperation(n, o); op != nil {
				ops, opsOf = append(ops, op), append(opsOf, i)
			}
		}
		t.observed.Hear(w, now)
		if op := statusOperation(view, n.ID, o.GetStatuses()); op != nil {
			ops, opsOf = append(ops, op), append(opsOf, i)
		}
		for _, hint := range o.GetHints() {
			t.hint(view, n, hint, now)
		}
	}
	h.Fetch = t.observed.Fetch(req.GetServer())
	if len(ops) == 0 {
		if err := l.consensus.VerifyRead(ctx); err != nil {
			return Heard{}, err
		}
		return h, nil
	}
	results, err := l.propose(ctx, ops)
	if err != nil {
		return Heard{}, err
	}
	for j, r := range results {
		if codes.Code(r.GetCode()) == codes.OK {
			continue
		}
		// A report or status that Apply refuses will be refused again: it is
		// taken as heard, and said once here.
		l.log.Warn("what a node said was refused", "node", req.GetNodes()[opsOf[j]].GetNode(), "reason", r.GetMessage())
	}
	return h, nil
}

// hint takes one hint of gossip in. Only the other nodes of the teller's own
// site are its business.
func (t *term) hint(view *state.View, by *fleet.Node, hint *redoubtv1.Hint, now time.Time) {
	about, ok := view.Node(nil, isolation.NodeID(hint.GetNode()))
	if !ok || about.Site != by.Site || about.ID == by.ID {
		return
	}
	switch hint.GetKind() {
	case redoubtv1.Hint_KIND_SUSPECT:
		t.observed.Suspect(about.ID, by.ID, now)
	case redoubtv1.Hint_KIND_CHANGED:
		t.observed.Rumour(about.ID, hint.GetDigest().GetGeneration())
	}
}

// reportOperation is nil where the state says the same already: a renewed
// canary alone never enters the log.
func reportOperation(n *fleet.Node, o *redoubtv1.NodeObservation) *redoubtv1.Operation {
	if !n.Lost && n.Report != nil && n.Report.Generation == o.GetReport().GetGeneration() &&
		n.AgentVersion == o.GetHello().GetAgentVersion() && n.GossipAddress == o.GetHello().GetGossipAddress() &&
		n.Report.Host.BootID == o.GetReport().GetHost().GetBootId() {
		return nil
	}
	return &redoubtv1.Operation{Operation: &redoubtv1.Operation_PutReport{PutReport: &redoubtv1.PutReport{
		Report: o.GetReport(), AgentVersion: o.GetHello().GetAgentVersion(), GossipAddress: o.GetHello().GetGossipAddress(),
	}}}
}

// statusOperation keeps what is news.
func statusOperation(view *state.View, node isolation.NodeID, statuses []*redoubtv1.InstanceStatus) *redoubtv1.Operation {
	put := &redoubtv1.PutStatus{Node: string(node)}
	for _, s := range statuses {
		i, ok := view.Instance(nil, s.GetUid())
		if !ok || i.Node != node {
			continue // forgotten already; the agent learns so by its session
		}
		if proto.Equal(state.StatusToProto(&i.Status), s) {
			continue
		}
		put.Statuses = append(put.Statuses, s)
	}
	if len(put.Statuses) == 0 {
		return nil
	}
	return &redoubtv1.Operation{Operation: &redoubtv1.Operation_PutStatus{PutStatus: put}}
}

// propose makes one entry of ops. The caller learns each operation's result.
func (l *Leader) propose(ctx context.Context, ops []*redoubtv1.Operation) ([]*redoubtv1.OperationResult, error) {
	res, err := l.consensus.Propose(ctx, NewCommand(ops...))
	if err != nil {
		return nil, fmt.Errorf("propose %d operations: %w", len(ops), err)
	}
	return res.Results, nil
}
