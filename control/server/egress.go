package server

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// Bounds of one GetEgress: so many instances are asked, so many at once, and an
// agent that does not answer holds it up no longer than this.
const (
	maxEgressAsked = 128
	egressAtOnce   = 16
	egressAnswer   = 5 * time.Second
)

// GetEgress asks the agents. It is on demand and not part of a status: counters
// change with every connection, and the Raft log is no place for them.
func (s *fleetAPI) GetEgress(ctx context.Context, req *redoubtv1.GetEgressRequest) (*redoubtv1.GetEgressResponse, error) {
	targets, err := s.instancesOf(ctx, req.GetNamespace(), req.GetName())
	if err != nil {
		return nil, err
	}
	view, running := s.store.Snapshot(), targets[:0]
	for _, t := range targets {
		if i, ok := view.Instance(nil, t.UID); ok && i.Live() {
			running = append(running, t)
		}
	}
	resp := &redoubtv1.GetEgressResponse{}
	if more := len(running) - maxEgressAsked; more > 0 {
		running, resp.Omitted = running[:maxEgressAsked], uint32(more)
	}
	resp.Instances = make([]*redoubtv1.InstanceEgress, len(running))
	var g errgroup.Group
	g.SetLimit(egressAtOnce)
	for n, t := range running {
		g.Go(func() error {
			e := &redoubtv1.InstanceEgress{Instance: t.Instance, Node: t.Node}
			counts, err := s.egressOf(ctx, t)
			if err != nil {
				e.Error = plain(status.Convert(err).Message(), maxWords)
			}
			e.Rules = cleanCounts(counts.GetRules())
			resp.Instances[n] = e
			return nil
		})
	}
	_ = g.Wait() // each error is told beside its instance
	return resp, ctx.Err()
}

func (s *fleetAPI) egressOf(ctx context.Context, t instanceRef) (*redoubtv1.EgressCounts, error) {
	ctx, cancel := context.WithTimeout(ctx, egressAnswer)
	defer cancel()
	agent, release, err := s.open(ctx, t.Node, &redoubtv1.StreamOpen{
		Uid: t.UID, Request: &redoubtv1.StreamOpen_Egress{Egress: &redoubtv1.EgressStart{}},
	})
	if err != nil {
		return nil, err
	}
	defer release()
	m, err := agent.Recv() // ends with ctx: open sees to it
	switch {
	case ctx.Err() != nil:
		return nil, status.Errorf(codes.DeadlineExceeded, "node %s did not answer within %s", t.Node, egressAnswer)
	case err != nil:
		return nil, streamBroke(t.Node, err)
	case m.GetError() != nil:
		return nil, agentError(m.GetError())
	case m.GetEgress() == nil:
		return nil, status.Errorf(codes.Internal, "node %s answered something else than was asked", t.Node)
	}
	return m.GetEgress(), nil
}
