package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"redoubt.dev/redoubt/integration/net/fleet"
	"redoubt.dev/redoubt/integration/net/topology"
)

// benchGossip takes a node off the network and waits until the control plane
// suspects it by the word of its site, and until its session times out.
func benchGossip(ctx context.Context) (out []figure, err error) {
	dir, err := os.MkdirTemp(".", ".demo-bench")
	if err != nil {
		return nil, err
	}
	f, err := fleet.New(fleet.Config{
		Clone: ".", Binary: "bin/redoubt", Dir: dir, SVIDTTL: time.Hour, Heartbeat: 5 * time.Second,
		Plan: topology.Plan{Prefix: "rd-bench", Net: 79, Servers: []string{"s1"},
			Sites: []topology.Site{{Name: "bergen", Nodes: []string{"bergen-1", "bergen-2", "bergen-3", "bergen-4"}}}},
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		_, downErr := f.Down(ctx)
		if err == nil {
			downErr = errors.Join(downErr, f.Clear()) // the logs are of use no more
		}
		err = errors.Join(err, downErr, f.Close())
	}()
	if err := f.Up(ctx); err != nil {
		return nil, err
	}
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
