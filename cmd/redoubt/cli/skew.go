package cli

import (
	"context"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"redoubt.dev/redoubt/control/state"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// knows refuses workloads that say what a server of the fleet is too old to
// know: the first servers leave such a thing out instead of refusing it, and the
// workload would run without the limits that were asked for. Files that say
// nothing new cost no call.
func (f *connection) knows(ctx context.Context, workloads []*redoubtv1.Workload) error {
	name, level := "", uint32(state.BaseLevel)
	for _, w := range workloads {
		need := state.RequiredLevel(&redoubtv1.Command{Operations: []*redoubtv1.Operation{{
			Operation: &redoubtv1.Operation_PutWorkload{PutWorkload: &redoubtv1.PutWorkload{Workload: w}},
		}}})
		if need > level {
			name, level = named(w.GetNamespace(), w.GetName()), need
		}
	}
	if level == state.BaseLevel {
		return nil
	}
	resp, err := f.ListServers(ctx, &redoubtv1.ListServersRequest{})
	if status.Code(err) == codes.PermissionDenied {
		return nil // not to be asked by this user; a server of today refuses by itself
	}
	if err != nil {
		return fmt.Errorf("list servers: %w", err)
	}
	for _, s := range resp.GetServers() {
		if s.GetFeatureLevel() < level {
			return fmt.Errorf("%s: server %s (%s) is too old for what the file says: that needs feature level %d and it knows %d; upgrade that server first (`redoubt operator raft list -o wide` shows levels)",
				name, s.GetId(), orDash(s.GetVersion()), level, s.GetFeatureLevel())
		}
	}
	return nil
}
