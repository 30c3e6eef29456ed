package main

import (
	"context"
	"fmt"
	"time"

	"redoubt.dev/redoubt/integration/net/fleet"
)

const aboutGossip = `
One of four nodes of a site is taken off the network: until the others' word makes the
control plane suspect it, against the timeout of its session.`

// benchGossip takes a node off the network and waits until the control plane
// suspects it by the word of its site, and until its session times out.
func benchGossip(ctx context.Context, _ settings, out *result) error {
	return withFleet(ctx, layout{servers: []string{"s1"}, nodes: []string{"bergen-1", "bergen-2", "bergen-3", "bergen-4"}}, func(f *fleet.Fleet) error {
		figures, err := silence(ctx, f)
		out.add(figures...)
		return err
	})
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
