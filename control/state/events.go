package state

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"math"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"

	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/isolation"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// Bounds of the events that are kept. Where one is passed, the oldest goes: of
// the object, of the namespace (nodes and servers are one), of all. So a noisy
// workload hides its own past before its neighbours', and a noisy tenant his own
// before the fleet's.
const (
	// EventsPerObject is of a workload, of all its instances, a node, a server.
	EventsPerObject    = 64
	EventsPerNamespace = 1024
	EventsInAll        = 4096

	maxEventMessage = 400 // bytes
	maxEvents       = 256 // in one operation
)

// eventScope counts the events of what has a bound. Derived, in no snapshot.
type eventScope struct {
	key   string // "" of all
	count int
}

// eventObject is what the bound of one object counts: a workload, all of its
// instances together, a node, or a server. Apart from its instances, so that what
// people did to a workload outlives their noise.
func eventObject(e *fleet.Event) []byte {
	switch e.Kind {
	case fleet.EventWorkload, fleet.EventInstance:
		return key(string(e.Kind), e.Namespace, e.Workload)
	}
	return key(string(e.Kind), e.Name)
}

// sameEvent is equal for events that are one, counted. What a person did is told
// apart by its message: each change is another.
func sameEvent(e *fleet.Event) []byte {
	message := ""
	if strings.HasPrefix(e.By, "user/") {
		message = e.Message
	}
	sum := sha256.Sum256(key(string(e.Kind), e.Namespace, e.Name, e.UID, e.Node, e.Reason, e.By, message))
	return sum[:]
}

func eventSequence(e *fleet.Event) []byte { return logKey(e.Sequence) }

func scopeKeys(e *fleet.Event) []eventBound {
	return []eventBound{
		{indexObject, eventObject(e), EventsPerObject},
		{indexSpace, key(e.Namespace), EventsPerNamespace},
		{indexID, nil, EventsInAll},
	}
}

// eventBound is an index of events, a prefix in it, and how many it may have.
type eventBound struct {
	index  string
	prefix []byte
	most   int
}

func (b eventBound) scope() string {
	if b.prefix == nil {
		return ""
	}
	return b.index + "/" + string(b.prefix)
}

// note keeps an event, if events are kept at all. It is called where something
// was really done, never by what is refused.
func (a *apply) note(e fleet.Event) {
	m := *a.meta()
	if !m.events {
		return
	}
	// As a snapshot would give it back.
	now := timeFromProto(timeToProto(a.now))
	e.Message, e.First, e.Last, e.Count = eventLine(e.Message), now, now, 1
	m.eventSequence++
	e.Sequence = m.eventSequence
	if old, ok := first[*fleet.Event](&a.View, nil, tableEvents, indexSame, sameEvent(&e)); ok {
		// It takes the place of the one before: nothing is counted anew.
		e.First, e.Count = old.First, min(old.Count, math.MaxUint32-1)+1
		a.delete(tableEvents, old)
		a.put(tableEvents, &e)
		a.put(tableMeta, &m)
		return
	}
	a.put(tableEvents, &e)
	a.countEvent(&e, 1)
	for _, b := range scopeKeys(&e) {
		for a.eventCount(b.scope()) > b.most {
			oldest, ok := first[*fleet.Event](&a.View, nil, tableEvents, prefixed(b.index), b.prefix)
			if !ok {
				break
			}
			a.dropEvent(oldest)
			m.eventsForgotten = max(m.eventsForgotten, oldest.Sequence)
		}
	}
	a.put(tableMeta, &m)
}

func (a *apply) dropEvent(e *fleet.Event) {
	a.delete(tableEvents, e)
	a.countEvent(e, -1)
}

func (v *View) eventCount(scope string) int {
	if s, ok := first[*eventScope](v, nil, tableEventScopes, indexID, scopeKey(scope)); ok {
		return s.count
	}
	return 0
}

// scopeKey ends in a byte that no key part does, so that none is another's prefix.
func scopeKey(scope string) []byte { return append([]byte(scope), 1) }

func (v *View) countEvent(e *fleet.Event, by int) {
	for _, b := range scopeKeys(e) {
		s := &eventScope{key: b.scope(), count: v.eventCount(b.scope()) + by}
		if s.count > 0 {
			insert(v.txn, tableEventScopes, s)
		} else {
			remove(v.txn, tableEventScopes, s)
		}
	}
}

// eventLine is one line of bounded length; part of it may be an agent's words.
func eventLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > maxEventMessage {
		s = strings.ToValidUTF8(s[:maxEventMessage], "") + "…"
	}
	return s
}

// recordEvents keeps what the leader found, and begins the log.
func (a *apply) recordEvents(op *redoubtv1.RecordEvents) (outcome, error) {
	if n := len(op.GetEvents()); n > maxEvents {
		return outcome{}, refuse(codes.InvalidArgument, "%d events at once, at most %d", n, maxEvents)
	}
	for _, p := range op.GetEvents() {
		if err := checkEvent(p); err != nil {
			return outcome{}, err
		}
	}
	if m := *a.meta(); !m.events {
		m.events = true
		a.put(tableMeta, &m)
	}
	for _, p := range op.GetEvents() {
		a.note(*EventFromProto(p))
	}
	return outcome{revision: a.index, result: Created}, nil
}

func checkEvent(p *redoubtv1.Event) error {
	names := []string{"event of", p.GetName(), "reason", p.GetReason()}
	switch fleet.EventKind(p.GetKind()) {
	case fleet.EventWorkload, fleet.EventInstance:
		names = append(names, "namespace", p.GetNamespace(), "workload", p.GetWorkload())
	case fleet.EventNode, fleet.EventServer:
		if p.GetNamespace() != "" {
			return refuse(codes.InvalidArgument, "event of %s %.80s: it has no namespace", p.GetKind(), p.GetName())
		}
	default:
		return refuse(codes.InvalidArgument, "event of a %.40q: that is no kind of object", p.GetKind())
	}
	for _, s := range []string{p.GetNode(), p.GetUid(), p.GetWorkload()} {
		if s != "" {
			names = append(names, "event's object", s)
		}
	}
	if err := segments(names...); err != nil {
		return err
	}
	return texts("message", p.GetMessage(), "by", p.GetBy())
}

// EventsKept tells whether events are kept: every voter knew of them at least once.
func (v *View) EventsKept() bool { return v.meta().events }

// EventSequence is of the newest event; what comes later is greater.
func (v *View) EventSequence() uint64 { return v.meta().eventSequence }

// EventsAfter are the events after a sequence, at most limit, in their order. gap
// tells that some that came since may be forgotten. (One that was repeated is
// there once, at its last place.)
func (v *View) EventsAfter(after uint64, limit int) (events []*fleet.Event, gap bool) {
	if after == math.MaxUint64 {
		return nil, false
	}
	it, err := v.txn.LowerBound(tableEvents, indexID, logKey(after+1))
	if err != nil {
		panic(fmt.Sprintf("state: read %s: %v", tableEvents, err))
	}
	for obj := it.Next(); obj != nil && len(events) < limit; obj = it.Next() {
		events = append(events, obj.(*fleet.Event))
	}
	return events, after < v.meta().eventsForgotten
}

// EventsOf are those of one workload with its instances, or of one node itself.
func (v *View) EventsOf(kind fleet.EventKind, namespace, name string) []*fleet.Event {
	of := func(kind fleet.EventKind) []*fleet.Event {
		probe := fleet.Event{Kind: kind, Namespace: namespace, Workload: name, Name: name}
		return list[*fleet.Event](v, nil, tableEvents, prefixed(indexObject), eventObject(&probe))
	}
	events := of(kind)
	if kind == fleet.EventWorkload {
		events = append(events, of(fleet.EventInstance)...)
		slices.SortFunc(events, func(a, b *fleet.Event) int { return cmp.Compare(a.Sequence, b.Sequence) })
	}
	return events
}

// NodeEvent is the newest event of a node itself with one of the reasons.
func (v *View) NodeEvent(node isolation.NodeID, reasons ...string) (*fleet.Event, bool) {
	all := v.EventsOf(fleet.EventNode, "", string(node))
	for _, e := range slices.Backward(all) {
		if slices.Contains(reasons, e.Reason) {
			return e, true
		}
	}
	return nil, false
}

// EventToProto writes an event for the API and a snapshot.
func EventToProto(e *fleet.Event) *redoubtv1.Event {
	return &redoubtv1.Event{
		Sequence: e.Sequence, Kind: string(e.Kind), Namespace: e.Namespace, Name: e.Name, Uid: e.UID, Workload: e.Workload, Node: e.Node,
		Warning: e.Warning, Reason: e.Reason, Message: e.Message, By: e.By, Count: e.Count, First: timeToProto(e.First), Last: timeToProto(e.Last),
	}
}

// EventFromProto is EventToProto's inverse.
func EventFromProto(p *redoubtv1.Event) *fleet.Event {
	return &fleet.Event{
		Sequence: p.GetSequence(), Kind: fleet.EventKind(p.GetKind()), Namespace: p.GetNamespace(), Name: p.GetName(), UID: p.GetUid(),
		Workload: p.GetWorkload(), Node: p.GetNode(), Warning: p.GetWarning(), Reason: p.GetReason(), Message: p.GetMessage(), By: p.GetBy(),
		Count: p.GetCount(), First: timeFromProto(p.GetFirst()), Last: timeFromProto(p.GetLast()),
	}
}
