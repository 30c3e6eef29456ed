package agent

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"redoubt.dev/redoubt/isolation"
)

// A canary that failed is tried again soon, a few times; a runtime that is not
// there has nothing to try.
func TestAFailedCanaryIsTriedAgainSoonAFewTimes(t *testing.T) {
	f := isolation.Finding{Runtime: "gvisor", Class: isolation.ClassSandbox, State: isolation.StateUnusable, Digest: "sha256:1", Reason: "it did not start"}
	r := &Reporter{
		node: "n", site: "s", every: time.Hour, again: make(chan struct{}, 1), log: slog.New(slog.DiscardHandler),
		boot: func() time.Duration { return time.Minute }, generation: func(string) (uint64, error) { return 1, nil },
		host: Host{
			Facts:    func(context.Context) (isolation.Host, error) { return isolation.Host{BootID: "b"}, nil },
			Findings: func(context.Context, isolation.Host) ([]isolation.Finding, error) { return []isolation.Finding{f}, nil },
		},
	}
	soon := func() (n int) {
		for range 6 {
			sure, err := r.round(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if !sure {
				n++
			}
		}
		return n
	}
	if n := soon(); n != quickLooks {
		t.Errorf("tried again soon %d times, want %d", n, quickLooks)
	}
	f.State, f.Reason = isolation.StateVerified, ""
	soon()
	f.State = isolation.StateUnusable
	if n := soon(); n != quickLooks {
		t.Errorf("after it was proven again: %d times, want %d", n, quickLooks)
	}
	f.Digest = ""
	r.doubts = 0
	if n := soon(); n != 0 {
		t.Errorf("a runtime that is not installed is tried again soon %d times", n)
	}
}
