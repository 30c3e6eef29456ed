package server

import (
	"context"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

const (
	// observeSoon is how long after a batch the next one goes to the leader, with
	// what sessions have said meanwhile. What is said after a silence goes at
	// once, so that a person sees an instance run as soon as it does. It is
	// observeEvery where the last batch spoke of observeMany nodes.
	observeSoon  = 10 * time.Millisecond
	observeEvery = 100 * time.Millisecond
	observeMany  = 50
	// observeAtMost is how many nodes one batch carries.
	observeAtMost = 500
	// observeBytes ends a batch early. With what one session may have waiting
	// it stays below what a server takes in one message.
	observeBytes = 1 << 20
	// leaderlessFor is how long sessions are kept without a leader that
	// answers; then their agents are asked to try another server.
	leaderlessFor = 10 * time.Second
)

// pending is one session's part of a batch, as it was taken.
type pending struct {
	s         *session
	heartbeat uint64
	statusSeq uint64
	reportAt  time.Time
	statuses  map[string]*redoubtv1.InstanceStatus
}

// observe brings the leader what this server's sessions say, in batches, until
// ctx ends. What the leader did not accept is sent again.
func (s *Server) observe(ctx context.Context) error {
	var (
		leader    string
		term      uint64
		answered  = time.Now()
		gathered  time.Time
		gatherFor = observeSoon
	)
	ticker := time.NewTicker(s.cfg.Timing.Heartbeat / 2)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.sessions.dirty:
		case <-ticker.C:
			if s.sessions.none() { // whom the leader could ask for anything
				answered = time.Now()
				continue
			}
		}
		select { // let others join the batch
		case <-ctx.Done():
			return nil
		case <-time.After(gatherFor - time.Since(gathered)):
		}
		gatherFor, gathered = observeSoon, time.Now()
		id, _ := s.leaderRef()
		if id.ID != leader {
			leader = id.ID
			s.resendReports()
		}
		for {
			req, taken := s.gather()
			resp, err := s.tellLeader(ctx, req)
			if err == nil {
				err = s.reach(ctx, resp.GetAppliedIndex())
			}
			if err != nil {
				if ctx.Err() != nil {
					return nil
				}
				s.log.Debug("the leader did not take a batch", "leader", leader, "err", err)
				s.putBack(taken)
				gatherFor, gathered = observeEvery, time.Now()
				if time.Since(answered) > leaderlessFor {
					s.dismiss(errNoLeaderIn)
					answered = time.Now()
				}
				s.sessions.poke()
				break
			}
			answered = time.Now()
			if len(req.GetNodes()) >= observeMany {
				gatherFor = observeEvery
			}
			if resp.GetTerm() != term {
				// What was sent before belongs to an earlier leader's memory.
				if term != 0 {
					s.resendReports()
					s.sessions.poke()
				}
				term = resp.GetTerm()
			}
			s.acknowledge(taken, resp)
			if len(req.GetNodes()) < observeAtMost {
				break // what did not fit has poked
			}
		}
	}
}

// tellLeader gives a batch to the leader, wherever it is.
func (s *Server) tellLeader(ctx context.Context, req *redoubtv1.ObserveRequest) (*redoubtv1.ObserveResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if s.consensus.IsLeader() {
		return s.hear(ctx, req)
	}
	leader, ok := s.leaderRef()
	if !ok {
		return nil, errNoLeader()
	}
	conn, err := s.peers.conn(leader)
	if err != nil {
		return nil, err
	}
	return redoubtv1.NewPeerServiceClient(conn).Observe(ctx, req)
}

// reach waits until this server's state holds what the leader's did when it
// took the batch in: only then may heartbeats of that batch be acknowledged.
func (s *Server) reach(ctx context.Context, index uint64) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return s.store.Wait(ctx, index)
}

// gather takes what is new of the sessions that said something.
func (s *Server) gather() (*redoubtv1.ObserveRequest, []pending) {
	now := time.Now()
	present, ended := s.sessions.all()
	req := &redoubtv1.ObserveRequest{Server: s.cfg.ID}
	var taken []pending
	size := 0
	for _, sn := range present {
		if len(req.Nodes) == observeAtMost || size > observeBytes {
			s.sessions.poke()
			break
		}
		if !sn.isDirty() {
			continue
		}
		o, p := sn.take(now)
		size += proto.Size(o)
		req.Nodes = append(req.Nodes, o)
		taken = append(taken, p)
	}
	for _, sn := range ended {
		o, p := sn.take(now)
		o.Connected = false
		req.Nodes = append(req.Nodes, o)
		taken = append(taken, p)
	}
	return req, taken
}

func (s *session) isDirty() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dirty
}

// take moves what is new into an observation.
func (s *session) take(now time.Time) (*redoubtv1.NodeObservation, pending) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := &redoubtv1.NodeObservation{
		Node: s.node, Connected: true, Silent: durationpb.New(now.Sub(s.last)), Load: s.load, Heartbeat: s.heartbeat,
		StatusesComplete: s.complete, Hello: s.hello, SessionAge: durationpb.New(max(now.Sub(s.opened), 1)),
		SvidExpires: timestamp(s.expires), DiskFull: s.diskFull, Warnings: s.warnings,
	}
	p := pending{s: s, heartbeat: s.heartbeat, statuses: s.statuses}
	if s.statusSeq != s.ackedSeq {
		p.statusSeq = s.statusSeq
	}
	if s.report != nil && !s.reportSent {
		o.Report, o.ReportAge = s.report, durationpb.New(now.Sub(s.reportAt))
		p.reportAt = s.reportAt
		s.reportSent = true
	}
	for _, st := range s.statuses {
		o.Statuses = append(o.Statuses, st)
	}
	for _, h := range s.hints {
		o.Hints = append(o.Hints, h)
	}
	s.dirty, s.heartbeat, s.complete = false, 0, false
	s.statuses, s.statusBytes = map[string]*redoubtv1.InstanceStatus{}, 0
	clear(s.hints)
	return o, p
}

// putBack returns what the leader did not take, unless something newer came.
func (s *Server) putBack(taken []pending) {
	for _, p := range taken {
		p.s.mu.Lock()
		p.s.dirty = true
		if p.s.heartbeat == 0 {
			p.s.heartbeat = p.heartbeat
		}
		for uid, st := range p.statuses {
			if _, newer := p.s.statuses[uid]; !newer {
				p.s.statuses[uid] = st
				p.s.statusBytes += proto.Size(st)
			}
		}
		if !p.reportAt.IsZero() && p.reportAt.Equal(p.s.reportAt) {
			p.s.reportSent = false
		}
		p.s.mu.Unlock()
	}
}

// acknowledge tells agents what the leader accepted.
func (s *Server) acknowledge(taken []pending, resp *redoubtv1.ObserveResponse) {
	var refused []pending
	for i, p := range taken {
		if i >= len(resp.GetAccepted()) || !resp.GetAccepted()[i] {
			refused = append(refused, p)
			continue
		}
		if p.statusSeq != 0 {
			p.s.mu.Lock()
			p.s.ackedSeq = p.statusSeq
			p.s.mu.Unlock()
			p.s.queue(&redoubtv1.SessionResponse{Message: &redoubtv1.SessionResponse_StatusAck{StatusAck: &redoubtv1.StatusAck{Sequence: p.statusSeq}}})
		}
		if p.heartbeat != 0 {
			p.s.queue(&redoubtv1.SessionResponse{Message: &redoubtv1.SessionResponse_HeartbeatAck{HeartbeatAck: &redoubtv1.HeartbeatAck{Sequence: p.heartbeat, Term: resp.GetTerm()}}})
		}
	}
	if len(refused) > 0 {
		s.putBack(refused)
		s.sessions.poke()
	}
	for _, p := range taken {
		if slices.Contains(resp.GetSuperseded(), p.s.node) {
			p.s.goodbye(errSuperseded)
			p.s.cancel(errSuperseded)
		}
	}
	for _, node := range resp.GetFetchReports() {
		s.sessions.send(node, &redoubtv1.SessionResponse{Message: &redoubtv1.SessionResponse_FetchReport{FetchReport: &redoubtv1.FetchReport{}}})
	}
}

// resendReports makes the next batch carry every session's last report, with
// its age: a new leader knows no node's freshness.
func (s *Server) resendReports() {
	for _, sn := range s.sessions.peek() {
		sn.mu.Lock()
		sn.dirty, sn.reportSent = true, false
		sn.mu.Unlock()
	}
}

// dismiss asks every agent to try another server.
func (s *Server) dismiss(cause error) {
	for _, sn := range s.sessions.peek() {
		sn.goodbye(cause)
	}
}
