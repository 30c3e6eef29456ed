package cli

import (
	"bytes"
	"strings"
	"testing"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

func TestAWorkloadThatIsNotAsItShouldBeSaysWhy(t *testing.T) {
	const missing = "web-1: no such image"
	for _, c := range []struct {
		name string
		st   *redoubtv1.WorkloadStatus
		want string
	}{
		{"starting", &redoubtv1.WorkloadStatus{Phase: redoubtv1.WorkloadPhase_WORKLOAD_PHASE_STARTING, Why: missing}, missing},
		{"partly", &redoubtv1.WorkloadStatus{Phase: redoubtv1.WorkloadPhase_WORKLOAD_PHASE_PARTIAL, Why: missing}, missing},
		{"pending", &redoubtv1.WorkloadStatus{Phase: redoubtv1.WorkloadPhase_WORKLOAD_PHASE_PENDING, Pending: 1, Why: "web is pending: no room"}, "no room"},
		{"running on less than it prefers", &redoubtv1.WorkloadStatus{Phase: redoubtv1.WorkloadPhase_WORKLOAD_PHASE_RUNNING, Why: "It prefers vm."}, ""},
	} {
		if got := whyNot(c.st, "web"); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestAFittedTableKeepsWithinItsColumns(t *testing.T) {
	for _, c := range []struct {
		format string
		cut    bool
	}{{"table", true}, {"wide", false}} {
		var b bytes.Buffer
		out := &output{w: &b, format: c.format}
		err := out.table(func(t *table) {
			t.head("NAME", "WHY")
			t.fit(80)
			t.row("web", "web", strings.Repeat("because ", 20))
		})
		if err != nil {
			t.Fatal(err)
		}
		longest := 0
		for _, l := range strings.Split(b.String(), "\n") {
			longest = max(longest, width(l))
		}
		if cut := longest <= 80; cut != c.cut {
			t.Errorf("-o %s: a line has %d columns:\n%s", c.format, longest, &b)
		}
	}
}
