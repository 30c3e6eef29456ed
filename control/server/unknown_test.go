package server

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// TestWhatIsNotKnownIsRefused: a request of a newer command that says more than
// this build knows is not done in part, at whatever depth it says it; one that
// only reads is answered.
func TestWhatIsNotKnownIsRefused(t *testing.T) {
	newer := protowire.AppendVarint(protowire.AppendTag(nil, 900, protowire.VarintType), 1)
	say := func(m proto.Message) { m.ProtoReflect().SetUnknown(newer) }
	w := func(change func(*redoubtv1.Workload)) *redoubtv1.ApplyWorkloadRequest {
		w := &redoubtv1.Workload{
			Name: "web", Labels: map[string]string{"a": "b"}, Isolation: &redoubtv1.Isolation{Floor: "sandbox"},
			Containers: []*redoubtv1.Container{{Name: "one"}, {Name: "two"}},
		}
		change(w)
		return &redoubtv1.ApplyWorkloadRequest{Workload: w}
	}
	s := &Server{cfg: Config{ID: "s1", Version: "v1"}}
	for name, c := range map[string]struct {
		method string
		in     proto.Message
		where  string // "": taken
	}{
		"nothing new":         {"ApplyWorkload", w(func(*redoubtv1.Workload) {}), ""},
		"a workload's field":  {"ApplyWorkload", w(func(w *redoubtv1.Workload) { say(w) }), "redoubt.v1.Workload"},
		"a plan's":            {"PlanWorkload", w(func(w *redoubtv1.Workload) { say(w) }), "redoubt.v1.Workload"},
		"one deeper":          {"ApplyWorkload", w(func(w *redoubtv1.Workload) { say(w.Isolation) }), "redoubt.v1.Isolation"},
		"in a list":           {"ApplyWorkload", w(func(w *redoubtv1.Workload) { say(w.Containers[1]) }), "redoubt.v1.Container"},
		"beside the workload": {"StopWorkload", func() proto.Message { m := &redoubtv1.StopWorkloadRequest{Name: "web"}; say(m); return m }(), "redoubt.v1.StopWorkloadRequest"},
		"of a read":           {"GetWorkload", func() proto.Message { m := &redoubtv1.GetWorkloadRequest{Name: "web"}; say(m); return m }(), ""},
	} {
		err := s.refuseUnknown(fleetService+c.method, c.in)
		switch {
		case c.where == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.where != "" && (status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "no field 900 of "+c.where+" ")):
			t.Errorf("%s: got %v; want that no field 900 of %s is known", name, err, c.where)
		}
	}
}

// TestAnOlderServersNewsAreCut: an older server hands on what its agents say as
// it is, and an entry of that would be applied by some servers and refused by others.
func TestAnOlderServersNewsAreCut(t *testing.T) {
	long := strings.Repeat("x", 5000)
	n := &redoubtv1.NodeObservation{
		Hello: &redoubtv1.Hello{AgentVersion: long}, Report: &redoubtv1.Report{Findings: []*redoubtv1.Finding{{Reason: long}}},
		Statuses: []*redoubtv1.InstanceStatus{{Message: long, Kernel: long}, nil},
	}
	cleanObserved(n)
	for what, text := range map[string]string{
		"version": n.Hello.AgentVersion, "reason": n.Report.Findings[0].Reason,
		"message": n.Statuses[0].Message, "kernel": n.Statuses[0].Kernel,
	} {
		if len(text) > maxWords {
			t.Errorf("%s has %d bytes still", what, len(text))
		}
	}
	cleanObserved(&redoubtv1.NodeObservation{})
}
