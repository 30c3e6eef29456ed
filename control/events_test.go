package control

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"redoubt.dev/redoubt/identity"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// watchEvents reads a watch in the background.
func (c *cluster) watchEvents(server string, after uint64) (<-chan *redoubtv1.WatchEventsResponse, context.CancelFunc) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	c.t.Cleanup(cancel)
	stream, err := redoubtv1.NewFleetServiceClient(c.conn(server, c.source(""))).WatchEvents(ctx, &redoubtv1.WatchEventsRequest{After: after})
	if err != nil {
		c.t.Fatal(err)
	}
	out := make(chan *redoubtv1.WatchEventsResponse, 1000)
	go func() {
		defer close(out)
		for {
			m, err := stream.Recv()
			if err != nil {
				return
			}
			out <- m
		}
	}()
	return out, cancel
}

// TestEventsSurviveTheLeaderAndAWatchIsResumed: what one server told of, another
// goes on with, each event once, over the death of a leader.
func TestEventsSurviveTheLeaderAndAWatchIsResumed(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "s1")
	c.eventually("events are kept", func() error {
		r, err := c.fleet().ListEvents(c.ctx(), &redoubtv1.ListEventsRequest{})
		if err == nil && len(r.GetEvents()) == 0 {
			err = fmt.Errorf("none")
		}
		return err
	})
	c.join("s2")
	c.join("s3")
	apply := func(name string) {
		t.Helper()
		c.eventually("apply "+name, func() error {
			_, err := c.fleet().ApplyWorkload(c.ctx(), &redoubtv1.ApplyWorkloadRequest{Workload: service(name, 1)})
			return err
		})
	}
	var (
		seen  []string
		after uint64
	)
	read := func(events <-chan *redoubtv1.WatchEventsResponse, until string) {
		t.Helper()
		deadline := time.After(30 * time.Second)
		for !slices.Contains(seen, until) {
			select {
			case m, ok := <-events:
				if !ok {
					t.Fatalf("the watch ended before %q; seen %q", until, seen)
				}
				if m.GetGap() || m.GetSequence() <= after {
					t.Errorf("a message of sequence %d after %d, gap %v", m.GetSequence(), after, m.GetGap())
				}
				after = m.GetSequence()
				for _, e := range m.GetEvents() {
					seen = append(seen, e.GetName()+" "+e.GetReason())
				}
			case <-deadline:
				t.Fatalf("%q does not come; seen %q", until, seen)
			}
		}
	}
	apply("one")
	first, cancel := c.watchEvents("s2", 0)
	read(first, "one Applied")
	for _, want := range []string{"s1 LeaderElected", "s2 Joined", "s3 Joined"} {
		if !slices.Contains(seen, want) {
			t.Errorf("%s is not told of; seen %q", want, seen)
		}
	}
	cancel()
	servers, err := c.fleet().ListServers(c.ctx(), &redoubtv1.ListServersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	c.halt(servers.GetAnsweredBy()) // the leader
	apply("two")
	other := "s3"
	if servers.GetAnsweredBy() == other {
		other = "s2"
	}
	second, cancel := c.watchEvents(other, after)
	defer cancel()
	read(second, "two Applied")
	if n := len(slices.DeleteFunc(slices.Clone(seen), func(s string) bool { return s != "one Applied" })); n != 1 {
		t.Errorf("one event came %d times", n)
	}
	c.eventually("the next leader tells of itself", func() error {
		r, err := c.fleet().ListEvents(c.ctx(), &redoubtv1.ListEventsRequest{})
		if err != nil {
			return err
		}
		leaders := map[string]bool{}
		for _, e := range r.GetEvents() {
			if e.GetReason() == "LeaderElected" {
				leaders[e.GetName()] = true
			}
		}
		if !leaders["s1"] || len(leaders) < 2 {
			return fmt.Errorf("leaders are %v", leaders)
		}
		return nil
	})
	r, err := c.fleet().ListEvents(c.ctx(), &redoubtv1.ListEventsRequest{Filter: &redoubtv1.EventFilter{Workload: "two"}, Last: 1})
	if err != nil || len(r.GetEvents()) != 1 || r.GetEvents()[0].GetWorkload() != "two" {
		t.Errorf("the last of two: %v %v", r.GetEvents(), err)
	}
}

// Who may see one namespace is shown its events, and none of nodes and servers.
func TestEventsAreShownByRole(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "s1")
	if _, err := c.fleet().ApplyWorkload(c.ctx(), &redoubtv1.ApplyWorkloadRequest{Workload: service("web", 1)}); err != nil {
		t.Fatal(err)
	}
	nobody, _ := identity.UserID(td, "nobody")
	f := redoubtv1.NewFleetServiceClient(c.conn("s1", c.signed("s1", nobody, time.Hour)))
	if _, err := f.ListEvents(c.ctx(), &redoubtv1.ListEventsRequest{}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("list: %v", err)
	}
	w, err := f.WatchEvents(c.ctx(), &redoubtv1.WatchEventsRequest{})
	if err == nil {
		_, err = w.Recv()
	}
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("watch: %v", err)
	}
}
