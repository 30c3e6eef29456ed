package server

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/control/state"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// eventsAtOnce is how many events one message of a watch carries.
const eventsAtOnce = 256

// selection is an EventFilter with who asks.
type selection struct {
	namespace, workload, node string
	since                     time.Time
	held                      []fleet.Role
}

func (s *Server) selection(ctx context.Context, view *state.View, f *redoubtv1.EventFilter) (selection, error) {
	sel := selection{namespace: f.GetNamespace(), workload: f.GetWorkload(), node: f.GetNode(), held: view.RolesOf(callerFrom(ctx).Name())}
	if f.GetSince() != nil {
		if err := f.GetSince().CheckValid(); err != nil {
			return sel, status.Errorf(codes.InvalidArgument, "filter.since: %v", err)
		}
		sel.since = f.GetSince().AsTime()
	}
	return sel, nil
}

func (s selection) takes(e *fleet.Event) bool {
	return (s.namespace == "" || e.Namespace == s.namespace) && (s.workload == "" || e.Workload == s.workload) &&
		(s.node == "" || e.Node == s.node) && (s.since.IsZero() || !e.Last.Before(s.since)) && visibleEvent(s.held, e)
}

// ListEvents returns what was decided and found, the oldest first.
func (s *fleetAPI) ListEvents(ctx context.Context, req *redoubtv1.ListEventsRequest) (*redoubtv1.ListEventsResponse, error) {
	if err := s.consensus.VerifyRead(ctx); err != nil {
		return nil, toStatus(err)
	}
	view := s.store.Snapshot()
	sel, err := s.selection(ctx, view, req.GetFilter())
	if err != nil {
		return nil, err
	}
	events, _ := view.EventsAfter(0, state.EventsInAll)
	resp := &redoubtv1.ListEventsResponse{Sequence: view.EventSequence()}
	for _, e := range events {
		if sel.takes(e) {
			resp.Events = append(resp.Events, state.EventToProto(e))
		}
	}
	if n := int(req.GetLast()); n > 0 && len(resp.Events) > n {
		resp.Events = resp.Events[len(resp.Events)-n:]
	}
	return resp, nil
}

// WatchEvents reads on from the caller's place in the state whenever the last
// message has gone out: nothing is queued for anybody, so a slow reader costs no
// more than a quick one, and misses only what was forgotten meanwhile.
func (s *fleetAPI) WatchEvents(req *redoubtv1.WatchEventsRequest, stream redoubtv1.FleetService_WatchEventsServer) error {
	ctx, after := stream.Context(), req.GetAfter()
	for {
		changed := s.store.Changed()
		view := s.store.Snapshot()
		// Read anew each time: a role that was taken away shows nothing more.
		sel, err := s.selection(ctx, view, req.GetFilter())
		if err != nil {
			return err
		}
		events, gap := view.EventsAfter(after, eventsAtOnce)
		resp := &redoubtv1.WatchEventsResponse{Gap: gap}
		for _, e := range events {
			after = e.Sequence
			if sel.takes(e) {
				resp.Events = append(resp.Events, state.EventToProto(e))
			}
		}
		resp.Sequence = after
		if len(resp.Events) > 0 || gap && len(events) > 0 {
			if err := stream.Send(resp); err != nil {
				return err
			}
		}
		if len(events) == eventsAtOnce {
			continue
		}
		if again, err := s.awaitChange(ctx, changed); !again {
			return err
		}
	}
}
