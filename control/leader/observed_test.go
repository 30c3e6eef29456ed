package leader

import (
	"strings"
	"testing"
	"time"

	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/isolation"
)

var t0 = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

// story drives an Observed second by second.
type story struct {
	*testing.T
	o   *Observed
	now time.Time
}

func newStory(t *testing.T) *story {
	return &story{t, NewObserved(DefaultTiming(), t0), t0}
}

func (s *story) hear(nodes ...isolation.NodeID) {
	for _, n := range nodes {
		s.o.Hear(Word{Node: n, Site: site(n), Server: "s1", Connected: true}, s.now)
	}
}

func site(n isolation.NodeID) isolation.SiteID { return isolation.SiteID(n[:1]) }

// pass lets seconds go by, in which only nodes speak.
func (s *story) pass(seconds int, nodes ...isolation.NodeID) {
	for range seconds {
		s.now = s.now.Add(time.Second)
		s.hear(nodes...)
		s.o.Tick(s.now)
	}
}

func (s *story) view(n isolation.NodeID) View { return s.o.View(n, site(n), true, false, s.now) }

func (s *story) want(n isolation.NodeID, state fleet.NodeState, accountable time.Duration) {
	s.Helper()
	v := s.view(n)
	if v.State != state || v.Accountable != accountable {
		s.Errorf("%s at +%s: %v, accountable %s; want %v, %s", n, s.now.Sub(t0), v.State, v.Accountable, state, accountable)
	}
}

func TestASilentNodeOfALivingSiteBecomesAccountable(t *testing.T) {
	s := newStory(t)
	s.hear("a1", "a2")
	s.want("a1", fleet.NodeReady, 0)
	s.pass(14, "a2")
	s.want("a1", fleet.NodeReady, 14*time.Second)
	s.pass(1, "a2")
	s.want("a1", fleet.NodeSilent, 15*time.Second)
	s.pass(300, "a2")
	s.want("a1", fleet.NodeSilent, 315*time.Second)
}

func TestADisconnectedSiteIsNeverAccountableAlsoRightAfterItReturns(t *testing.T) {
	s := newStory(t)
	s.hear("a1", "a2", "b1")
	s.pass(600, "b1")
	s.want("a1", fleet.NodeDisconnected, 0)
	s.want("a2", fleet.NodeDisconnected, 0)
	// One node of the site is back a little before the other.
	s.pass(2, "b1", "a1")
	s.want("a1", fleet.NodeReady, 0)
	s.want("a2", fleet.NodeSilent, 1*time.Second)
	s.pass(1, "b1", "a1", "a2")
	s.want("a2", fleet.NodeReady, 0)
}

func TestAOneNodeSiteIsDisconnectedNotLost(t *testing.T) {
	s := newStory(t)
	s.hear("a1", "b1")
	s.pass(3600, "b1")
	s.want("a1", fleet.NodeDisconnected, 0)
}

func TestANewTermReadsEveryLeaseAsJustRenewed(t *testing.T) {
	s := newStory(t)
	s.hear("a2")
	s.want("a1", fleet.NodeSuspect, 0) // never heard in this term
	s.pass(10, "a2")
	s.want("a1", fleet.NodeSuspect, 10*time.Second)
}

func TestGossipMakesSuspectAndTheNodesOwnWordClearsIt(t *testing.T) {
	s := newStory(t)
	s.hear("a1", "a2")
	s.pass(1, "a2")
	s.o.Suspect("a1", "a2", s.now)
	s.want("a1", fleet.NodeSuspect, 1*time.Second)
	if got := s.view("a1").Hint; got != "gossip: a2 cannot reach it" {
		t.Errorf("hint %q", got)
	}
	s.pass(1, "a1", "a2")
	s.want("a1", fleet.NodeReady, 0)
	// A node cannot accuse itself, and gossip alone never makes one lost.
	s.o.Suspect("a1", "a1", s.now)
	s.want("a1", fleet.NodeReady, 0)
}

func TestANodeWithAFullDiskGetsNothingNewUntilThereIsRoom(t *testing.T) {
	s := newStory(t)
	s.hear("a1", "a2")
	for _, full := range []bool{true, false} {
		s.o.Hear(Word{Node: "a1", Site: "a", Server: "s1", Connected: true, DiskFull: full}, s.now)
		want := fleet.NodeReady
		if full {
			want = fleet.NodeSuspect
		}
		if v := s.view("a1"); v.State != want || full != strings.Contains(v.Hint, "disk is full") {
			t.Errorf("disk full %v: %v, %q", full, v.State, v.Hint)
		}
	}
}

func TestALeaderThatStoodStillBlamesNobody(t *testing.T) {
	s := newStory(t)
	s.hear("a1", "a2")
	s.pass(5, "a1", "a2")
	s.now = s.now.Add(10 * time.Minute) // SIGSTOP
	s.o.Tick(s.now)
	s.want("a1", fleet.NodeReady, 0)
	s.pass(3, "a2")
	s.want("a1", fleet.NodeReady, 3*time.Second)
}

func TestFreshnessIsTheServersReceiptTimePlusTheBootClocksAge(t *testing.T) {
	s := newStory(t)
	f := isolation.Finding{Runtime: "gvisor", Variant: "systrap", State: isolation.StateVerified, Age: 50 * time.Minute}
	s.o.Hear(Word{Node: "a1", Site: "a", Server: "s1", Connected: true, ReportAge: 5 * time.Minute,
		Report: &isolation.Report{Node: "a1", Generation: 3, Findings: []isolation.Finding{f}}}, s.now)
	if v := s.view("a1"); !s.o.Fresh(v, f) {
		t.Error("55 minutes old: not fresh")
	}
	s.pass(300, "a1")
	if v := s.view("a1"); s.o.Fresh(v, f) {
		t.Error("an hour old: still fresh")
	}
	other := f
	other.Variant = "kvm"
	if v := s.view("a1"); s.o.Fresh(v, other) {
		t.Error("what was never proven is fresh")
	}
}

func TestARumourAsksForTheReportOnceAtTheServerThatHasTheSession(t *testing.T) {
	s := newStory(t)
	s.o.Hear(Word{Node: "a1", Site: "a", Server: "s1", Connected: true, Report: &isolation.Report{Generation: 3}}, s.now)
	ask := func(server string, want int) {
		t.Helper()
		if got := s.o.Fetch(server); len(got) != want {
			t.Errorf("server %s is to ask %v; want %d nodes", server, got, want)
		}
	}
	s.o.Rumour("a1", 3)
	ask("s1", 0)
	s.o.Rumour("a1", 4)
	ask("s2", 0)
	ask("s1", 1)
	s.o.Rumour("a1", 4)
	ask("s1", 0)
	s.o.Hear(Word{Node: "a1", Site: "a", Server: "s1", Connected: true, Report: &isolation.Report{Generation: 4}}, s.now)
	s.o.Rumour("a1", 5)
	ask("s1", 1)
}

func TestASessionThatMovedIsNotEndedByItsOldServer(t *testing.T) {
	s := newStory(t)
	s.hear("a1")
	s.o.Hear(Word{Node: "a1", Site: "a", Server: "s2", Connected: true}, s.now)
	s.o.Hear(Word{Node: "a1", Site: "a", Server: "s1", Connected: false}, s.now)
	s.want("a1", fleet.NodeReady, 0)
	s.o.Hear(Word{Node: "a1", Site: "a", Server: "s2", Connected: false}, s.now)
	s.want("a1", fleet.NodeSuspect, 0)
}
