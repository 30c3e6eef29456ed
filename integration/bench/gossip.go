package main

import (
	"context"
	"fmt"
	"time"

	"redoubt.dev/redoubt/integration/net/fleet"
)

// benchGossip takes a node off the network and waits until the control plane
// suspects it by the word of its site, and until its session times out.
func benchGossip(ctx context.Context) (out []figure, err error) {
	err = withFleet(ctx, []string{"s1"}, []string{"bergen-1", "bergen-2", "bergen-3", "bergen-4"}, 5*time.Second, func(f *fleet.Fleet) error {
		out, err = silence(ctx, f)
		return err
	})
	return out, err
}

func silence(ctx context.Context, f *fleet.Fleet) ([]figure, error) {
	select {
	case <-time.After(3 * time.Second): // the pool forms
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	suspected, silent, err := f.Silence(ctx, "bergen-4")
	if err != nil {
		return nil, err
	}
	if suspected == 0 {
		return nil, fmt.Errorf("bergen-4 was never suspected; its session timed out after %v", silent)
	}
	return []figure{against("suspicion of a dead node by gossip", suspected.Seconds(), "s", "its session's timeout", silent.Seconds())}, nil
}
