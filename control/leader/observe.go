package leader

import (
	"context"
	"errors"
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
	// Applied is what the state held when the batch had been taken in. What was
	// given up for silence before an accepted heartbeat was heard is in it.
	Applied uint64
	// Superseded nodes have a younger session on another server.
	Superseded []isolation.NodeID
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
	h := Heard{Term: t.number, Accepted: make([]bool, len(req.GetNodes()))}
	heard := time.Now()
	ops, opsOf := t.hear(req, &h)
	ran := t.firstRuns(ops)
	h.Fetch = t.observed.Fetch(req.GetServer())
	if len(ops) == 0 {
		if err := l.consensus.VerifyRead(ctx); err != nil {
			return Heard{}, err
		}
		h.Applied = l.store.Index()
		return h, nil
	}
	results, err := l.propose(ctx, ops)
	if err != nil {
		return Heard{}, err
	}
	t.running(ran, results, heard)
	h.Applied = l.store.Index()
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

// hear takes a batch into the soft state. It returns what belongs in the log,
// and of which observation each operation is.
func (t *term) hear(req *redoubtv1.ObserveRequest, h *Heard) (ops []*redoubtv1.Operation, opsOf []int) {
	// Not while nodes are being given up: a heartbeat that is heard afterwards
	// is acknowledged only behind what that changed.
	t.giving.RLock()
	defer t.giving.RUnlock()
	now := time.Now()
	view := t.store.Snapshot()
	for i, o := range req.GetNodes() {
		n, ok := view.Node(nil, isolation.NodeID(o.GetNode()))
		if !ok {
			continue // not enrolled, or this server is behind
		}
		h.Accepted[i] = true
		w := Word{
			Node: n.ID, Site: n.Site, Server: req.GetServer(), Connected: o.GetConnected(),
			Silent: o.GetSilent().AsDuration(), Load: o.GetLoad(), ReportAge: o.GetReportAge().AsDuration(),
			SessionAge: o.GetSessionAge().AsDuration(),
		}
		w.DiskFull, w.Warnings = o.GetDiskFull(), o.GetWarnings()
		if o.GetSvidExpires() != nil {
			w.SVIDExpires = o.GetSvidExpires().AsTime()
		}
		if o.GetReport() != nil {
			report, err := state.ReportFromProto(o.GetReport())
			if err != nil {
				t.log.Warn("a node's report cannot be read", "node", n.ID, "err", err)
				h.Accepted[i] = false
				continue
			}
			w.Report = report
		}
		if younger := t.observed.Hear(w, now); younger != "" {
			t.log.Warn("second session of one node at another server: the older is closed; if this repeats, two agents share one identity",
				"node", n.ID, "older", req.GetServer(), "newer", younger)
			h.Accepted[i] = false
			h.Superseded = append(h.Superseded, n.ID)
			continue
		}
		if w.Report != nil {
			if op := reportOperation(n, o); op != nil {
				ops, opsOf = append(ops, op), append(opsOf, i)
			}
		}
		for _, op := range statusOperations(view, n.ID, o.GetStatuses()) {
			ops, opsOf = append(ops, op), append(opsOf, i)
		}
		for _, hint := range o.GetHints() {
			t.hint(view, n, hint, now)
		}
	}
	return ops, opsOf
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

// statusOperations keep what is news, in parts that fit a command each.
func statusOperations(view *state.View, node isolation.NodeID, statuses []*redoubtv1.InstanceStatus) []*redoubtv1.Operation {
	var ops []*redoubtv1.Operation
	var put *redoubtv1.PutStatus
	size := 0
	for _, s := range statuses {
		i, ok := view.Instance(nil, s.GetUid())
		if !ok || i.Node != node {
			continue // forgotten already; the agent learns so by its session
		}
		if proto.Equal(state.StatusToProto(&i.Status), s) {
			continue
		}
		if put == nil || size > commandBytes/4 {
			put, size = &redoubtv1.PutStatus{Node: string(node)}, 0
			ops = append(ops, &redoubtv1.Operation{Operation: &redoubtv1.Operation_PutStatus{PutStatus: put}})
		}
		put.Statuses = append(put.Statuses, s)
		size += proto.Size(s)
	}
	return ops
}
