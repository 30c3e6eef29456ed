package session

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"time"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// hintsEvery is the least time between two messages of hints, 64 in each.
const hintsEvery = 200 * time.Millisecond

// live is one session that has a stream. Its run goroutine is the only sender.
type live struct {
	s      *Session
	stream redoubtv1.AgentService_SessionClient
	server string
	watch  *time.Timer // ends the stream when the server is silent
	bulk   context.Context

	silence atomic.Int64 // nanoseconds
	acked   bool

	// heartbeats under way: when each was sent, by the boot clock.
	sequence uint64
	spoke    time.Duration // when the last heartbeat was sent
	sent     map[uint64]time.Duration
	term     uint64
	// assigned: the first assignments of this session are stored; heartbeats
	// from renewing on renew the lease.
	assigned bool
	renewing uint64

	status statusQueue
}

func (l *live) send(m *redoubtv1.SessionRequest) error { return l.stream.Send(m) }

func (l *live) hello() error {
	cfg := l.s.cfg
	cluster, version := l.s.deps.Node.Held()
	if l.s.resync {
		version = 0
	}
	return l.send(&redoubtv1.SessionRequest{Message: &redoubtv1.SessionRequest_Hello{Hello: &redoubtv1.Hello{
		Node: cfg.Node, Site: cfg.Site, BootId: cfg.BootID, AgentVersion: cfg.Version,
		FeatureLevel: cfg.FeatureLevel, AssignmentVersion: version, ClusterId: cluster, GossipAddress: cfg.GossipAddress,
	}}})
}

// run serves the session. stop releases the stream from the end of ctx, once
// there is something to say at the end.
func (l *live) run(ctx context.Context, stop func() bool, in <-chan *redoubtv1.SessionResponse, recvErr <-chan error) error {
	// Nothing is said before the server has welcomed us.
	select {
	case m := <-in:
		w := m.GetWelcome()
		if w == nil {
			if g := m.GetGoodbye(); g != nil {
				return &goodbyeError{g.GetReason()}
			}
			return fmt.Errorf("the server began with %T instead of a welcome", m.GetMessage())
		}
		if err := l.welcome(w); err != nil {
			return err
		}
	case err := <-recvErr:
		return err
	}
	if !stop() {
		return ctx.Err()
	}
	l.s.deps.Log.Info("session open", "server", l.server)

	interval := time.Duration(l.silence.Load()) / 3
	beat := time.NewTimer(0)
	defer beat.Stop()
	retry := time.NewTimer(l.s.cfg.Retry)
	defer retry.Stop()
	var move <-chan time.Time
	if l.s.deps.MoveAt != nil {
		if at := l.s.deps.MoveAt(l.stream.Context()); !at.IsZero() {
			t := time.NewTimer(time.Until(at))
			defer t.Stop()
			move = t.C
		}
	}
	if r := l.s.deps.Node.Report(); r != nil {
		if err := l.report(r); err != nil {
			return err
		}
	}
	l.status = newStatusQueue()
	// Hints of a pool where somebody lies all the time must not take the place
	// of heartbeats: they go a few messages a second, and the oldest are lost.
	hints := l.s.deps.Hints
	rest := time.NewTimer(0)
	defer rest.Stop()
	for {
		if b := l.status.next(l.s.deps.Node.Statuses()); b != nil {
			if err := l.send(&redoubtv1.SessionRequest{Message: &redoubtv1.SessionRequest_Status{Status: b}}); err != nil {
				return l.why(err, recvErr)
			}
			retry.Reset(l.s.cfg.Retry)
		}
		var err error
		select {
		case <-ctx.Done():
			return l.farewell(in, recvErr)
		case err = <-recvErr:
			return err
		case m := <-in:
			err = l.take(m)
		case <-beat.C:
			err = l.heartbeat()
			beat.Reset(interval - interval/10 + rand.N(interval/5+1))
		case <-retry.C:
			l.status.again()
			retry.Reset(l.s.cfg.Retry)
		case <-l.s.deps.StatusChanged:
		case <-l.s.deps.ReportChanged:
			err = l.report(l.s.deps.Node.Report())
		case h := <-hints:
			err = l.hints(h)
			hints = nil
			rest.Reset(hintsEvery)
		case <-rest.C:
			hints = l.s.deps.Hints
		case <-move:
			_ = l.stream.CloseSend()
			return errMove
		}
		if err != nil {
			return l.why(err, recvErr)
		}
	}
}

// why: a failed Send says only EOF; the reason is with Recv.
func (l *live) why(err error, recvErr <-chan error) error {
	if err != io.EOF {
		return err
	}
	select {
	case r := <-recvErr:
		return r
	case <-time.After(time.Second):
		return err
	}
}

func (l *live) welcome(w *redoubtv1.Welcome) error {
	node := l.s.deps.Node
	if err := node.Welcome(w.GetClusterId()); err != nil {
		return err
	}
	if w.GetFleet() != nil {
		if err := node.Fleet(w.GetFleet()); err != nil {
			return err
		}
	}
	interval := l.s.cfg.Interval
	if d := w.GetHeartbeatInterval().AsDuration(); d > 0 {
		// Bounds against a server that means well but is set wrong.
		interval = min(max(d, 100*time.Millisecond), time.Minute)
	}
	l.silence.Store(int64(3 * interval))
	l.watch.Reset(3 * interval)
	l.s.horizon.Store(int64(3 * interval))
	l.sent = map[uint64]time.Duration{}
	return nil
}

func (l *live) take(m *redoubtv1.SessionResponse) error {
	node := l.s.deps.Node
	switch m := m.GetMessage().(type) {
	case *redoubtv1.SessionResponse_Assignments:
		if err := node.Assign(m.Assignments); err != nil {
			return err
		}
		if m.Assignments.GetKind() == redoubtv1.Assignments_KIND_COMPLETE {
			l.s.resync = false
		}
		if !l.assigned {
			l.assigned, l.renewing = true, l.sequence+1
			return l.heartbeat()
		}
	case *redoubtv1.SessionResponse_HeartbeatAck:
		l.heartbeatAck(m.HeartbeatAck)
	case *redoubtv1.SessionResponse_StatusAck:
		told, sent := l.status.ack(m.StatusAck.GetSequence())
		if len(told) > 0 && l.s.deps.Acknowledged != nil {
			l.s.deps.Acknowledged(told, sent)
		}
	case *redoubtv1.SessionResponse_FetchReport:
		return l.report(node.Report())
	case *redoubtv1.SessionResponse_Fleet:
		return node.Fleet(m.Fleet)
	case *redoubtv1.SessionResponse_StreamOpen:
		l.s.open(l.bulk, m.StreamOpen)
	case *redoubtv1.SessionResponse_Goodbye:
		return &goodbyeError{m.Goodbye.GetReason()}
	default:
		// A newer server may say what this version does not know.
		l.s.deps.Log.Debug("message not known", "server", l.server, "message", fmt.Sprintf("%T", m))
	}
	return nil
}

func (l *live) heartbeat() error {
	now := l.s.deps.Node.Clock()
	if l.sequence > 0 && now-l.spoke > time.Duration(l.silence.Load()) {
		return errStoodStill
	}
	l.sequence++
	l.sent[l.sequence], l.spoke = now, now
	delete(l.sent, l.sequence-64) // never acknowledged; not kept for ever
	return l.send(&redoubtv1.SessionRequest{Message: &redoubtv1.SessionRequest_Heartbeat{Heartbeat: &redoubtv1.Heartbeat{
		Sequence: l.sequence, Load: l.s.deps.Node.Load(), DiskFull: l.s.deps.Node.DiskFull(),
		Warnings: l.s.deps.Node.Warnings(),
	}}})
}

func (l *live) heartbeatAck(a *redoubtv1.HeartbeatAck) {
	sent, ok := l.sent[a.GetSequence()]
	if !ok || a.GetTerm() < l.term {
		return // an older term's leader renews nothing
	}
	l.term = a.GetTerm()
	for seq := range l.sent {
		if seq <= a.GetSequence() {
			delete(l.sent, seq)
		}
	}
	l.acked = true
	l.s.acked.Store(max(int64(sent), 1))
	if l.assigned && a.GetSequence() >= l.renewing {
		l.s.deps.Node.Renewed(sent, a.GetTerm())
	}
}

func (l *live) report(r *redoubtv1.Report) error {
	if r == nil {
		return nil // nothing is proven yet; it is sent when it is
	}
	return l.send(&redoubtv1.SessionRequest{Message: &redoubtv1.SessionRequest_Report{Report: &redoubtv1.ReportUpdate{Report: r}}})
}

// hints passes on h and what else waits, so that a storm is one message.
func (l *live) hints(h *redoubtv1.Hint) error {
	hints := []*redoubtv1.Hint{h}
	for len(hints) < 64 {
		select {
		case h := <-l.s.deps.Hints:
			hints = append(hints, h)
			continue
		default:
		}
		break
	}
	return l.send(&redoubtv1.SessionRequest{Message: &redoubtv1.SessionRequest_Hints{Hints: &redoubtv1.Hints{Hints: hints}}})
}

// farewell tells the last statuses before the agent ends, if that is quick.
func (l *live) farewell(in <-chan *redoubtv1.SessionResponse, recvErr <-chan error) error {
	deadline := time.After(time.Second)
	l.status.again()
	if b := l.status.next(l.s.deps.Node.Statuses()); b != nil {
		if err := l.send(&redoubtv1.SessionRequest{Message: &redoubtv1.SessionRequest_Status{Status: b}}); err != nil {
			return err
		}
		for l.status.underway() {
			select {
			case m := <-in:
				if a := m.GetStatusAck(); a != nil {
					l.status.ack(a.GetSequence())
				}
			case err := <-recvErr:
				return err
			case <-deadline:
				return context.DeadlineExceeded
			}
		}
	}
	return l.stream.CloseSend()
}
