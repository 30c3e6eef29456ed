package leader

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/timestamppb"

	"redoubt.dev/redoubt/control/consensus"
	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/control/placement"
	"redoubt.dev/redoubt/control/state"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
	"redoubt.dev/redoubt/proto/tracing"
)

// settle is how long changes gather before the loops look again.
const settle = 20 * time.Millisecond

// beginAgain is the pause after a term that could not begin. Where leadership is
// lost, its context ends long before.
const beginAgain = time.Second

// Consensus is what the loops need of Raft.
type Consensus interface {
	Propose(ctx context.Context, cmd *redoubtv1.Command) (consensus.Result, error)
	// VerifyRead returns once this server is certainly the leader and its
	// state shows everything that was acknowledged before the call.
	VerifyRead(ctx context.Context) error
}

// Leader runs the loops of the terms that this server leads.
type Leader struct {
	consensus Consensus
	store     *state.Store
	timing    Timing
	policy    placement.Policy
	log       *slog.Logger
	id        string
	members   Membership
	applied   Applied

	meter  Meter
	tracer tracing.Tracer

	term atomic.Pointer[term]
}

// term is one term's soft state and loops.
type term struct {
	*Leader
	number   uint64
	observed *Observed
	// giving is held by the lease loop from its look at who is silent until
	// what it gives up is applied, and read-held while words are taken in. So a
	// node is given up before a word of it is heard, or not for that silence.
	giving sync.RWMutex
	began  time.Time
	notes  notebook
}

// New makes a leader that leads nothing yet.
func New(c Consensus, store *state.Store, timing Timing, log *slog.Logger) *Leader {
	return &Leader{consensus: c, store: store, timing: timing, policy: placement.Policy{MaxAssign: 256}, log: log}
}

// Join makes the loops turn admitted servers into voters. To be called before
// Run; without it membership stays as it is.
func (l *Leader) Join(m Membership, applied Applied) { l.members, l.applied = m, applied }

// Record makes each term keep events, in the name of the server id. To be called
// before Run.
func (l *Leader) Record(id string) { l.id = id }

// Meter takes the leader's figures. Its methods may be called at once.
type Meter interface {
	// Planned: a plan took so long, and left so many instances pending by their
	// first deciding reason.
	Planned(d time.Duration, pending map[string]int)
	// Placed: an instance has a node so long after what asked for it.
	Placed(d time.Duration)
	// Ran: an instance is known to run so long after it had a node.
	Ran(d time.Duration)
}

// Meter has m told the figures. To be called before Run.
func (l *Leader) Meter(m Meter) { l.meter = m }

// Trace has t make the spans of placements. To be called before Run.
func (l *Leader) Trace(t tracing.Tracer) { l.tracer = t }

// Run leads term number until ctx ends. The caller ends ctx when leadership is
// lost, and calls again for the next term. A term that cannot begin, because it
// is lost as it begins, is no failure of the server: nothing is led until it ends.
func (l *Leader) Run(ctx context.Context, number uint64) error {
	for {
		err := l.consensus.VerifyRead(ctx)
		if err == nil {
			break
		}
		if ctx.Err() == nil {
			l.log.Warn("the term does not begin yet", "term", number, "err", err)
		}
		if !sleep(ctx, beginAgain) {
			return nil
		}
	}
	now := time.Now()
	t := &term{Leader: l, number: number, observed: NewObserved(l.timing, now), began: now}
	l.term.Store(t)
	defer l.term.CompareAndSwap(t, nil)
	l.log.Info("leading", "term", number)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return t.place(ctx) })
	g.Go(func() error { return t.lease(ctx) })
	g.Go(func() error { return t.reap(ctx) })
	g.Go(func() error { return t.keys(ctx) })
	if l.id != "" {
		g.Go(func() error { return t.record(ctx) })
	}
	if l.members != nil {
		g.Go(func() error { return t.join(ctx) })
	}
	err := g.Wait()
	l.log.Info("no longer leading", "term", number)
	return err
}

// Term is the number of the term that is being led, 0 if none.
func (l *Leader) Term() uint64 {
	if t := l.term.Load(); t != nil {
		return t.number
	}
	return 0
}

// View is what the leader makes of a node now; ok is false outside a term.
func (l *Leader) View(n *fleet.Node) (v View, ok bool) {
	t := l.term.Load()
	if t == nil {
		return View{}, false
	}
	return t.observed.View(n.ID, n.Site, n.Report != nil, n.Lost, time.Now()), true
}

// Fresh tells for each finding of n's report whether placement counts on it.
func (l *Leader) Fresh(n *fleet.Node, v View) []bool {
	t := l.term.Load()
	if t == nil || n.Report == nil {
		return nil
	}
	return t.fresh(n, v)
}

func (t *term) fresh(n *fleet.Node, v View) []bool {
	fresh := make([]bool, len(n.Report.Findings))
	for i, f := range n.Report.Findings {
		fresh[i] = t.observed.Fresh(v, f)
	}
	return fresh
}

// Input is the fleet as placement would see it now; ok is false outside a term.
func (l *Leader) Input(view *state.View, ws state.WatchSet) (in placement.Input, ok bool) {
	t := l.term.Load()
	if t == nil {
		return placement.Input{}, false
	}
	return t.input(view, ws), true
}

// Policy is how plans are made.
func (l *Leader) Policy() placement.Policy { return l.policy }

func (t *term) input(view *state.View, ws state.WatchSet) placement.Input {
	var in placement.Input
	now := time.Now()
	for _, n := range view.Nodes(ws) {
		v := t.observed.View(n.ID, n.Site, n.Report != nil, n.Lost, now)
		node := placement.Node{Node: n, State: v.State, Hint: v.Hint}
		if n.Report != nil {
			node.Fresh = t.fresh(n, v)
		}
		in.Nodes = append(in.Nodes, node)
	}
	for _, w := range view.Workloads(ws, "") {
		in.Workloads = append(in.Workloads, placement.Workload{
			StoredWorkload: w, Instances: view.InstancesOfWorkload(ws, w.Spec.Namespace, w.Spec.Name),
		})
	}
	return in
}

// NewCommand makes one log entry of ops, with an id of its own.
func NewCommand(ops ...*redoubtv1.Operation) *redoubtv1.Command {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails since Go 1.24
	return &redoubtv1.Command{Id: hex.EncodeToString(b[:]), Time: timestamppb.Now(), Operations: ops}
}

// sleep waits for d; false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
