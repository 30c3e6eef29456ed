package consensus

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// counted counts what a server sends to others as their leader.
type counted struct {
	raft.Transport
	sent *atomic.Int64
}

func (c counted) AppendEntries(id raft.ServerID, at raft.ServerAddress, q *raft.AppendEntriesRequest, a *raft.AppendEntriesResponse) error {
	c.sent.Add(1)
	return c.Transport.AppendEntries(id, at, q, a)
}

func (c counted) AppendEntriesPipeline(id raft.ServerID, at raft.ServerAddress) (raft.AppendPipeline, error) {
	p, err := c.Transport.AppendEntriesPipeline(id, at)
	return countedPipeline{p, c.sent}, err
}

type countedPipeline struct {
	raft.AppendPipeline
	sent *atomic.Int64
}

func (c countedPipeline) AppendEntries(q *raft.AppendEntriesRequest, a *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	c.sent.Add(1)
	return c.AppendPipeline.AppendEntries(q, a)
}

// A fleet at rest writes nothing, elects nobody, and its leader says no more
// than six words a second to each of the others. In this bubble no time passes
// but what the servers wait for.
func TestAFleetAtRestIsQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sent atomic.Int64
		s := threeWith(t, func(c *Config) { c.Transport = counted{c.Transport, &sent} })
		defer s.stopAll()
		lead := s.leader()
		time.Sleep(10 * time.Second)
		term, index, before := lead.Term(), lead.Stats()["last_log_index"], sent.Load()
		const rest = 5 * time.Minute
		time.Sleep(rest)
		if now, ok := lead.LeaderTerm(); !ok || now != term || lead.Stats()["last_log_index"] != index {
			t.Fatalf("at rest: term %d to %d, log index %s to %s", term, now, index, lead.Stats()["last_log_index"])
		}
		if n := float64(sent.Load()-before) / rest.Seconds() / 2; n > 6 {
			t.Errorf("%.1f words a second to each follower, want at most 6", n)
		}
	})
}

// What has committed is applied by followers at once, not when Raft repeats it:
// agents have their sessions there, too.
func TestFollowersLearnAtOnceWhatHasCommitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := three(t)
		defer s.stopAll()
		lead := s.leader()
		learn := func(what string, known func(*member) bool) {
			t.Helper()
			time.Sleep(50 * time.Millisecond)
			for _, m := range s.m {
				if !known(m) {
					t.Errorf("server %s has not applied %s after 50 ms", m.id, what)
				}
			}
		}
		for i := range 20 {
			mustPropose(t, lead, role(user(i), user(i)))
			learn(user(i), func(m *member) bool { return has(m, user(i)) })
			time.Sleep(time.Duration(i*37) * time.Millisecond)
		}

		// One that lags is told in the end, and others do not wait for it.
		var lagging *member
		for _, m := range s.m {
			if m != lead {
				lagging = m
			}
		}
		s.cut(lagging)
		mustPropose(t, lead, role("late", "late"))
		time.Sleep(50 * time.Millisecond)
		for _, m := range s.m {
			if has(m, "late") == (m == lagging) {
				t.Errorf("server %s, of which %s was cut off: late is there: %v", m.id, lagging.id, has(m, "late"))
			}
		}
		s.heal(lagging)
		eventually(t, "the lagging server catches up", func() bool { return has(lagging, "late") })
	})
}
