package cli_test

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// What servers and nodes say is shown, and a terminal obeys none of it.
func TestNobodyElseWritesOnTheTerminal(t *testing.T) {
	t.Parallel()
	const evil = "\x1b]0;mine\a\x1b[2J\u009b1m\u202eafter"
	w := newWorld(t, t.TempDir())
	file := contextFor(t, w, time.Hour, start(t, w, "s1"))
	w.nodes.Nodes = []*redoubtv1.Node{{Id: "one" + evil, Site: "oslo" + evil, Hint: evil}}
	w.events.Events = []*redoubtv1.Event{{Sequence: 1, Kind: "Node", Name: "one" + evil, Reason: "Silent" + evil, Message: "why\n" + evil, By: evil, Node: evil}}
	spec := &redoubtv1.Workload{Name: "web"}
	w.workloads[key("", "web")] = &redoubtv1.StoredWorkload{Spec: spec, UpdatedBy: evil, Status: &redoubtv1.WorkloadStatus{Why: evil, Instances: []*redoubtv1.Instance{
		{Assignment: &redoubtv1.Assignment{Instance: "web-1" + evil, Node: "one" + evil, Why: evil}, Status: &redoubtv1.InstanceStatus{Message: evil}}}}}
	w.explained[key("", "web")] = &redoubtv1.Explanation{Workload: "web", Summary: evil, Groups: []*redoubtv1.ReasonGroup{{Reason: evil, Nodes: []string{evil}}}}
	w.fail = func(method string) error {
		if method == "StopWorkload" {
			return status.Error(codes.FailedPrecondition, "refused "+evil)
		}
		return nil
	}
	for _, args := range []string{"node list", "node list -o wide", "node list -o name", "events", "events -o wide", "get", "ps", "workload status web", "explain web", "stop web"} {
		stdout, stderr, _ := run(t, t.Context(), file, strings.Fields(args)...)
		if said := stdout + stderr; !strings.Contains(said, "after") && args != "get" {
			t.Errorf("redoubt %s does not show what was said: %q", args, said)
		} else if strings.ContainsAny(said, "\x1b\a\u009b\u202e") {
			t.Errorf("redoubt %s: %q", args, said)
		}
	}
}
