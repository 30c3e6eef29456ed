package server

import (
	"context"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/control/state"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

const (
	// A followed log whose stream broke is asked for again after resumeFirst,
	// then ever more seldom.
	resumeFirst, resumeLast = 500 * time.Millisecond, 5 * time.Second
	// maxResume bounds the positions of one request.
	maxResume = 4096
)

// Logs merges the logs of one or of all instances of a workload. One slow or
// broken instance does not end the others. What is followed goes on at the byte
// where its stream broke, and takes in instances that come later; it ends when
// nothing more can come.
func (s *fleetAPI) Logs(req *redoubtv1.LogsRequest, user grpc.ServerStreamingServer[redoubtv1.LogsResponse]) error {
	switch {
	case req.GetPrevious() && req.GetFollow():
		return status.Error(codes.InvalidArgument, "logs: what an earlier run wrote is over and cannot be followed: leave out follow or previous")
	case req.GetSince() != nil && req.GetSinceAgo() != nil:
		return status.Error(codes.InvalidArgument, "logs: since and since_ago exclude each other")
	case req.GetSince() != nil && !req.GetSince().IsValid(), req.GetSinceAgo() != nil && (!req.GetSinceAgo().IsValid() || req.GetSinceAgo().AsDuration() < 0):
		return status.Error(codes.InvalidArgument, "logs: since is no moment of the past")
	case len(req.GetResume()) > maxResume:
		return status.Errorf(codes.InvalidArgument, "logs: %d positions to resume from, at most %d", len(req.GetResume()), maxResume)
	}
	targets, err := s.instancesOf(user.Context(), req.GetNamespace(), req.GetName())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(user.Context())
	defer cancel()
	m := &merging{fleetAPI: s, req: req, out: make(chan *redoubtv1.LogsResponse), seen: map[string]bool{}}
	go func() { m.run(ctx, targets); close(m.out) }()
	var failed error
	for r := range m.out {
		if failed == nil {
			if failed = user.Send(r); failed != nil {
				cancel()
			}
		}
	}
	return failed
}

// merging is one Logs under way.
type merging struct {
	*fleetAPI
	req  *redoubtv1.LogsRequest
	out  chan *redoubtv1.LogsResponse
	seen map[string]bool // uids; run's own
}

func (m *merging) run(ctx context.Context, targets []instanceRef) {
	var wg sync.WaitGroup
	defer wg.Wait()
	ended := make(chan bool) // whether well
	active, broken, first := 0, false, true
	ns := fleet.NamespaceOrDefault(m.req.GetNamespace())
	for {
		changed := m.store.Changed() // before looking
		view := m.store.Snapshot()
		if !first {
			targets, _ = namedInstances(view, ns, m.req.GetName()) // none, for now
		}
		for _, t := range targets {
			if m.seen[t.UID] {
				continue
			}
			m.seen[t.UID] = true
			active++
			l := &following{merging: m, t: t, from: m.position(t.UID), late: !first}
			wg.Go(func() {
				ok := l.run(ctx)
				select {
				case ended <- ok:
				case <-ctx.Done():
				}
			})
		}
		first = false
		if active == 0 && (broken || !m.req.GetFollow() || !moreToCome(view, ns, m.req.GetName())) {
			return
		}
		if !m.req.GetFollow() {
			changed = nil
		}
		select {
		case ok := <-ended:
			active, broken = active-1, broken || !ok
		case <-changed:
			// Changes come in bursts.
			if !pause(ctx, watchEvery) {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// moreToCome tells whether name is a workload that may have further instances.
func moreToCome(view *state.View, ns, name string) bool {
	w, ok := view.Workload(nil, ns, name)
	if !ok || w.Stopping {
		return false
	}
	job := w.Spec.Job
	return job == nil || int(w.Completions) < job.Completions && int(w.Failures) <= w.Spec.FailuresBorne()
}

func (m *merging) position(uid string) *redoubtv1.LogPosition {
	for _, p := range m.req.GetResume() {
		if p.GetUid() == uid {
			return p
		}
	}
	return nil
}

// following copies one instance's log.
type following struct {
	*merging
	t    instanceRef
	from *redoubtv1.LogPosition // after what was passed on; nil: as the request says
	late bool                   // it came while others were followed: all of it is wanted
	told bool                   // the reader knows that the stream is broken
}

func (l *following) send(ctx context.Context, m *redoubtv1.LogsResponse) bool {
	m.Instance = l.t.Instance
	select {
	case l.out <- m:
		return true
	case <-ctx.Done():
		return false
	}
}

// run copies until the log ends or ctx does; it tells whether it ended well.
func (l *following) run(ctx context.Context) bool {
	for wait := resumeFirst; ; wait = min(2*wait, resumeLast) {
		passed, err := l.once(ctx)
		if err == nil || ctx.Err() != nil {
			return err == nil
		}
		if passed {
			wait = resumeFirst
		}
		if !l.resumable(err) {
			l.send(ctx, &redoubtv1.LogsResponse{Error: status.Convert(err).Message()})
			return false
		}
		if !l.told {
			l.told = true
			l.send(ctx, &redoubtv1.LogsResponse{Notice: status.Convert(err).Message() + "; it goes on when the node is back"})
		}
		if !pause(ctx, wait) {
			return false
		}
	}
}

// resumable tells whether a broken stream can go on without loss or doubling.
func (l *following) resumable(err error) bool {
	if !l.req.GetFollow() || l.from == nil || status.Code(err) != codes.Unavailable {
		return false
	}
	i, ok := l.store.Snapshot().Instance(nil, l.t.UID)
	return ok && i.Status.Phase != fleet.InstanceLost
}

// over judges an end that an agent called orderly. What is followed is over with
// its instance, of which the session tells at about the same time; an agent of an
// older version may say so of itself when it is stopped.
func (l *following) over(ctx context.Context) error {
	if !l.req.GetFollow() || l.from == nil {
		return nil
	}
	soon := time.NewTimer(resumeFirst)
	defer soon.Stop()
	for {
		changed := l.store.Changed() // before looking
		if i, ok := l.store.Snapshot().Instance(nil, l.t.UID); !ok || !i.Live() {
			return nil
		}
		select {
		case <-changed:
		case <-soon.C:
			return status.Errorf(codes.Unavailable, "the stream to node %s ended before the instance did: its agent was stopped", l.t.Node)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (l *following) once(ctx context.Context) (passed bool, err error) {
	ctx, cancel := context.WithCancel(ctx) // ends the agent's side
	defer cancel()
	req := proto.CloneOf(l.req)
	req.Positions, req.Resume = true, nil
	if l.from != nil {
		req.Resume = []*redoubtv1.LogPosition{l.from}
	} else if l.late {
		req.Tail, req.Since, req.SinceAgo = -1, nil, nil
	}
	agent, release, err := l.open(ctx, l.t.Node, &redoubtv1.StreamOpen{Uid: l.t.UID, Request: &redoubtv1.StreamOpen_Logs{Logs: req}})
	if err != nil {
		return false, err
	}
	defer release()
	for {
		m, err := agent.Recv()
		if err == io.EOF {
			return passed, l.over(ctx)
		}
		if err != nil {
			// Half a log must not look like all of it.
			return passed, status.Errorf(codes.Unavailable, "the stream to node %s broke: %v", l.t.Node, cause(err))
		}
		var r *redoubtv1.LogsResponse
		switch m := m.GetMessage().(type) {
		case *redoubtv1.AttachRequest_Logs:
			r = &redoubtv1.LogsResponse{Data: m.Logs} // an agent that knows no positions
		case *redoubtv1.AttachRequest_Log:
			if m.Log.GetPosition().GetUid() != l.t.UID {
				return passed, status.Errorf(codes.Internal, "node %s answers for another instance than %s", l.t.Node, l.t.Instance)
			}
			// What an agent may say of its log, and nothing else.
			r = &redoubtv1.LogsResponse{Data: m.Log.GetData(), Position: m.Log.GetPosition(), Time: m.Log.GetTime(), Dropped: m.Log.GetDropped()}
			l.from = r.Position
		case *redoubtv1.AttachRequest_Error:
			return passed, agentError(m.Error)
		default:
			continue
		}
		if l.told {
			l.told, r.Notice = false, "it goes on"
		}
		if !l.send(ctx, r) {
			return passed, ctx.Err()
		}
		passed = true
	}
}
