package consensus

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"redoubt.dev/redoubt/control/state"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// member is one server of a test's fleet.
type member struct {
	*Node
	id    string
	store *state.Store
	kept  *Storage
	trans *raft.InmemTransport
	stop  func()
}

// servers is a fleet over an in-memory network; run it in a synctest bubble.
type servers struct {
	t *testing.T
	m map[string]*member
}

func (s *servers) start(id string, bootstrap bool, edit func(*Config)) *member {
	s.t.Helper()
	old := s.m[id]
	m := &member{id: id, store: state.NewStore(), kept: MemoryStorage()}
	if old != nil {
		m.kept = old.kept
	}
	_, m.trans = raft.NewInmemTransport(raft.ServerAddress("at-" + id))
	cfg := Config{
		ServerID: id, ClusterID: "c1", Address: "at-" + id, Storage: m.kept, Transport: m.trans,
		Store: m.store, Logger: quiet(),
	}
	if edit != nil {
		edit(&cfg)
	}
	node, err := Open(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	m.Node = node
	if bootstrap {
		if err := node.Bootstrap(); err != nil {
			s.t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- node.Run(ctx) }()
	m.stop = func() {
		cancel()
		if done == nil {
			return
		}
		if err := <-done; err != nil {
			s.t.Errorf("server %s: Run: %v", id, err)
		}
		done = nil
	}
	<-node.Started()
	for _, o := range s.m {
		if o.id != id {
			s.connect(m, o)
		}
	}
	s.m[id] = m
	return m
}

func (s *servers) connect(a, b *member) {
	a.trans.Connect(b.trans.LocalAddr(), b.trans)
	b.trans.Connect(a.trans.LocalAddr(), a.trans)
}

// cut separates m from all others.
func (s *servers) cut(m *member) {
	m.trans.DisconnectAll()
	for _, o := range s.m {
		if o != m {
			o.trans.Disconnect(m.trans.LocalAddr())
		}
	}
}

func (s *servers) heal(m *member) {
	for _, o := range s.m {
		if o != m {
			s.connect(m, o)
		}
	}
}

func (s *servers) leader(not ...*member) *member {
	s.t.Helper()
	for range 600 {
	next:
		for _, m := range s.m {
			for _, n := range not {
				if m == n {
					continue next
				}
			}
			if _, ok := m.LeaderTerm(); ok {
				return m
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	s.t.Fatal("no leader within 30 s")
	return nil
}

func (s *servers) stopAll() {
	for _, m := range s.m {
		m.stop()
	}
	// Raft does not join the goroutine that asks for a transfer; with an in-memory
	// transport it waits out its time.
	time.Sleep(10 * time.Second)
}

// three voters, the first of which has initialised the cluster.
func three(t *testing.T) *servers { t.Helper(); return threeWith(t, nil) }

func threeWith(t *testing.T, edit func(*Config)) *servers {
	t.Helper()
	s := &servers{t: t, m: map[string]*member{}}
	a := s.start("a", true, edit)
	s.leader()
	mustPropose(t, a, initCommand())
	for _, id := range []string{"b", "c"} {
		s.start(id, false, edit)
		if _, err := a.AddNonvoter(within(t, 5*time.Second), id, "at-"+id); err != nil {
			t.Fatal(err)
		}
		if _, err := a.AddVoter(within(t, 5*time.Second), id, "at-"+id); err != nil {
			t.Fatal(err)
		}
	}
	// A voter that has not heard that another became one refuses it its vote. If
	// the leader goes in that moment, nobody is elected until it is back.
	for _, m := range s.m {
		eventually(t, "all know the three voters", func() bool { v, err := m.Voters(); return err == nil && len(v) == 3 })
	}
	return s
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func initCommand() *redoubtv1.Command {
	return &redoubtv1.Command{Id: "init", Operations: []*redoubtv1.Operation{{Operation: &redoubtv1.Operation_InitCluster{InitCluster: &redoubtv1.InitCluster{
		ClusterId: "c1", TrustDomain: "fleet.test", Server: &redoubtv1.Server{Id: "a", FeatureLevel: 1},
		Authority: &redoubtv1.Authority{Server: "a", Certificate: []byte{1}},
		Admin:     &redoubtv1.RoleBinding{User: "root", Role: "admin"},
	}}}}}
}

// role is a command that leaves a mark which is easy to look for.
func role(id, user string) *redoubtv1.Command {
	return &redoubtv1.Command{Id: id, Operations: []*redoubtv1.Operation{{Operation: &redoubtv1.Operation_PutRole{PutRole: &redoubtv1.PutRole{
		Role: &redoubtv1.RoleBinding{User: user, Role: "viewer"},
	}}}}}
}

func mustPropose(t *testing.T, m *member, cmd *redoubtv1.Command) Result {
	t.Helper()
	r, err := m.Propose(within(t, 10*time.Second), cmd)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range r.Results {
		if o.GetCode() != 0 {
			t.Fatalf("refused: %s", o.GetMessage())
		}
	}
	return r
}

func has(m *member, user string) bool { return len(m.store.Snapshot().RolesOf(user)) > 0 }

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 600 {
		if ok() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("never: " + what)
}

func user(i int) string { return fmt.Sprintf("user-%d", i) }
