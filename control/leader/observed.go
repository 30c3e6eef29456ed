package leader

import (
	"slices"
	"sync"
	"time"

	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/isolation"
)

// Timing is how the leader reads silence. All of it is configuration, and the
// same on every server.
type Timing struct {
	// Heartbeat is how often agents speak.
	Heartbeat time.Duration
	// SilentAfter a node without a word is silent: three heartbeats.
	SilentAfter time.Duration
	// FreshFor is how long a canary's proof counts.
	FreshFor time.Duration
	// LostMargin is added before a Safe instance is replaced: what a clock may
	// drift and a message may travel between the agent's stop and our start.
	LostMargin time.Duration
}

// DefaultTiming is for a fleet over the Internet.
func DefaultTiming() Timing {
	return Timing{Heartbeat: 5 * time.Second, SilentAfter: 15 * time.Second, FreshFor: time.Hour, LostMargin: 15 * time.Second}
}

// Observed is what the leader of one term has heard of the nodes: soft state
// that is never in the log. A new term starts with an empty one, which reads
// every node as heard at the start of the term, so that nobody's lease ends
// because a leader died. Its methods may be called concurrently; none blocks.
type Observed struct {
	timing Timing

	mu       sync.Mutex
	started  time.Time
	lastTick time.Time
	nodes    map[isolation.NodeID]*heard
	sites    map[isolation.SiteID]*siteHeard
	changed  chan struct{} // capacity 1: something that placement or the lease loop may care about
}

type heard struct {
	site      isolation.SiteID
	last      time.Time // of the last word
	everHeard bool      // in this term
	connected bool
	server    string
	opened    time.Time // its session; zero: not known
	expires   time.Time // the certificate that it was opened with; zero: not known
	load      uint32
	diskFull  bool
	warnings  []string
	// proven: when each runtime's canary ran, on this server's clock, by
	// runtime and variant, as of report generation.
	proven     map[provenKey]time.Time
	generation uint64
	// suspected: by gossip, when and by whom; cleared by the node's own word.
	suspected time.Time
	suspecter isolation.NodeID
	// fetch: the node's report should be asked for; asked: it was.
	fetch, asked bool
}

type provenKey struct {
	runtime isolation.Name
	variant string
}

type siteHeard struct {
	// connectedSince the site has had a session without a break.
	connectedSince time.Time
	connected      bool
}

// NewObserved begins a term's observations at now.
func NewObserved(t Timing, now time.Time) *Observed {
	return &Observed{
		timing: t, started: now, lastTick: now,
		nodes: map[isolation.NodeID]*heard{}, sites: map[isolation.SiteID]*siteHeard{},
		changed: make(chan struct{}, 1),
	}
}

// Changed delivers a value soon after an observation that may matter.
func (o *Observed) Changed() <-chan struct{} { return o.changed }

func (o *Observed) notify() {
	select {
	case o.changed <- struct{}{}:
	default:
	}
}

// Word is what a session said, or that it broke.
type Word struct {
	Node      isolation.NodeID
	Site      isolation.SiteID
	Server    string
	Connected bool
	// Silent since the node's last message; subtracted from now.
	Silent time.Duration
	// SessionAge since the session was opened; 0: not known.
	SessionAge time.Duration
	// SVIDExpires is the end of the session's certificate; zero: not known.
	SVIDExpires time.Time
	Load        uint32
	// DiskFull: nothing new can be kept there.
	DiskFull bool
	// Warnings are the node's own, for people.
	Warnings []string
	// Report, if the word carries one, ReportAge after the server received it.
	Report    *isolation.Report
	ReportAge time.Duration
}

// Hear takes one word in. If the node has a younger session on another server,
// the word is not taken and that server is returned: two sessions at once are
// two agents with one identity, or one whose older session lingers.
func (o *Observed) Hear(w Word, now time.Time) (younger string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := o.node(w.Node)
	opened := time.Time{}
	if w.SessionAge > 0 {
		opened = now.Add(-w.SessionAge)
	}
	if w.Connected && n.connected && n.server != w.Server && !opened.IsZero() && n.opened.After(opened) {
		return n.server
	}
	moved := n.site != w.Site && w.Site != ""
	if w.Site != "" {
		n.site = w.Site
	}
	at := now.Add(-w.Silent)
	if !w.Connected {
		// A session that broke matters only if it was the node's last one.
		if n.server == w.Server && n.connected {
			n.connected = false
			o.notify()
		}
		return ""
	}
	if at.After(n.last) {
		n.last = at
	}
	fresh := !n.everHeard || !n.connected || moved
	n.everHeard, n.connected, n.server, n.opened, n.load = true, true, w.Server, opened, w.Load
	n.expires, n.warnings = w.SVIDExpires, w.Warnings
	if n.diskFull != w.DiskFull {
		n.diskFull, fresh = w.DiskFull, true
	}
	if !n.suspected.IsZero() && at.After(n.suspected) {
		n.suspected, n.suspecter = time.Time{}, ""
		fresh = true
	}
	if w.Report != nil {
		n.generation = w.Report.Generation
		n.fetch, n.asked = false, false
		n.proven = map[provenKey]time.Time{}
		for _, f := range w.Report.Findings {
			if f.State == isolation.StateVerified {
				n.proven[provenKey{f.Runtime, f.Variant}] = now.Add(-w.ReportAge - max(f.Age, 0))
			}
		}
		fresh = true
	}
	s := o.site(n.site)
	if !s.connected {
		s.connected, s.connectedSince = true, now
		fresh = true
	}
	if fresh {
		o.notify()
	}
	return ""
}

// Suspect records that by said that node may be gone. It is a hint: the node
// gets no new work until it speaks for itself again, and nothing moves.
func (o *Observed) Suspect(node, by isolation.NodeID, now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := o.node(node)
	if node == by || !n.suspected.IsZero() {
		return
	}
	n.suspected, n.suspecter = now, by
	n.fetch, n.asked = true, false
	o.notify()
}

// Rumour records that somebody said that node has that generation. If another
// is known, the node will be asked for its report.
func (o *Observed) Rumour(node isolation.NodeID, generation uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := o.node(node)
	if n.everHeard && generation != n.generation {
		n.fetch = true
	}
}

// Fetch returns the nodes with a session on server that should be asked for
// their report, each once.
func (o *Observed) Fetch(server string) []isolation.NodeID {
	o.mu.Lock()
	defer o.mu.Unlock()
	var ids []isolation.NodeID
	for id, n := range o.nodes {
		if n.fetch && !n.asked && n.server == server {
			n.asked = true
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// node returns the entry; mu is held.
func (o *Observed) node(id isolation.NodeID) *heard {
	n, ok := o.nodes[id]
	if !ok {
		n = &heard{last: o.started}
		o.nodes[id] = n
	}
	return n
}

func (o *Observed) site(id isolation.SiteID) *siteHeard {
	s, ok := o.sites[id]
	if !ok {
		s = &siteHeard{connectedSince: o.started}
		o.sites[id] = s
	}
	return s
}

// Tick re-reads the sites at now; the lease loop calls it at least every
// SilentAfter/4. It returns whether any site changed between connected and
// disconnected. A gap between ticks means that this server itself stood still
// (stopped, or starved): the silence was its own, and nobody's lease pays.
func (o *Observed) Tick(now time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if gap := now.Sub(o.lastTick); gap > o.timing.SilentAfter/2 {
		for _, n := range o.nodes {
			n.last = minTime(n.last.Add(gap), now)
		}
		for _, s := range o.sites {
			s.connectedSince = minTime(s.connectedSince.Add(gap), now)
		}
		o.started = minTime(o.started.Add(gap), now)
	}
	o.lastTick = now
	alive := map[isolation.SiteID]bool{}
	for _, n := range o.nodes {
		if n.everHeard && now.Sub(n.last) < o.timing.SilentAfter {
			alive[n.site] = true
		}
	}
	changed := false
	for id, s := range o.sites {
		if s.connected && !alive[id] {
			s.connected = false
			changed = true
		}
	}
	if changed {
		o.notify()
	}
	return changed
}

// View is what the leader makes of one node now.
type View struct {
	State  fleet.NodeState
	Silent time.Duration
	// Accountable silence is what a lease may be ended for: it does not count
	// while the whole site was disconnected, nor before this term.
	Accountable time.Duration
	// Heard in this term.
	Heard  bool
	Server string
	Load   uint32
	Hint   string
	// SVIDExpires is the end of the certificate of its last session.
	SVIDExpires time.Time
	// Warnings as the node last said.
	Warnings []string
	// Age of each runtime's proof; absent: none is known in this term.
	Age func(isolation.Finding) (time.Duration, bool)
}

// Fresh tells whether placement may count on f.
func (o *Observed) Fresh(v View, f isolation.Finding) bool {
	if f.State != isolation.StateVerified {
		return false
	}
	age, ok := v.Age(f)
	return ok && age < o.timing.FreshFor
}

// View reads node, of site, at now. reported: it has a report in the state;
// lost: its mark there.
func (o *Observed) View(node isolation.NodeID, site isolation.SiteID, reported, lost bool, now time.Time) View {
	o.mu.Lock()
	defer o.mu.Unlock()
	n, ok := o.nodes[node]
	if !ok {
		n = &heard{last: o.started}
	}
	s, ok := o.sites[site]
	if !ok {
		s = &siteHeard{connectedSince: o.started}
	}
	v := View{Silent: max(now.Sub(n.last), 0), Heard: n.everHeard, Server: n.server, Load: n.load, SVIDExpires: n.expires, Warnings: n.warnings}
	since := n.last
	if s.connectedSince.After(since) {
		since = s.connectedSince
	}
	if s.connected {
		v.Accountable = max(now.Sub(since), 0)
	}
	proven := n.proven
	v.Age = func(f isolation.Finding) (time.Duration, bool) {
		at, ok := proven[provenKey{f.Runtime, f.Variant}]
		return now.Sub(at), ok
	}
	silent := v.Silent >= o.timing.SilentAfter
	switch {
	case !reported:
		v.State = fleet.NodeEnrolled
	case lost:
		v.State = fleet.NodeLost
	case silent && !s.connected:
		v.State = fleet.NodeDisconnected
		v.Hint = "no node of its site has a session; its work waits there"
	case silent:
		v.State = fleet.NodeSilent
		v.Hint = "silent, while others of its site are heard"
	case !n.suspected.IsZero():
		v.State = fleet.NodeSuspect
		v.Hint = "gossip: " + string(n.suspecter) + " cannot reach it"
	case !n.everHeard:
		v.State = fleet.NodeSuspect
		v.Hint = "not heard yet by this leader"
	case !n.connected:
		v.State = fleet.NodeSuspect
		v.Hint = "its session broke"
	case n.diskFull:
		v.State = fleet.NodeSuspect
		v.Hint = "its disk is full: what runs runs on, nothing new goes there until there is room"
	default:
		v.State = fleet.NodeReady
	}
	return v
}

func minTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
