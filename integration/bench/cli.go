package main

import (
	"context"
	"fmt"
	"time"

	"redoubt.dev/redoubt/integration/net/fleet"
)

const aboutCLI = `
The command as a process, from its start to its end, with one server and one workload.`

// benchCLI measures how long a person waits for a table and for a completion.
func benchCLI(ctx context.Context, set settings, out *result) error {
	runs := set.of(30, 8)
	return withFleet(ctx, layout{servers: []string{"s1"}, nodes: []string{"bergen-1"}}, func(f *fleet.Fleet) error {
		w, err := toolbox("web", 1)
		if err != nil {
			return err
		}
		if err := run(ctx, f, w); err != nil {
			return err
		}
		timed := func(args ...string) (float64, error) {
			var took []time.Duration
			for range runs {
				r, err := f.Run(ctx, "", args...)
				if err != nil {
					return 0, err
				}
				if r.Code != 0 {
					return 0, fmt.Errorf("redoubt %v ended with %d: %s", args, r.Code, r.Stderr)
				}
				took = append(took, r.Took)
			}
			return ms(median(took)), nil
		}
		bare, err := timed("version")
		if err != nil {
			return err
		}
		get, err := timed("get")
		if err != nil {
			return err
		}
		complete, err := timed("__complete", "exec", "")
		if err != nil {
			return err
		}
		out.add(
			against("redoubt get, median", get, "ms", "the aim", 30),
			against("completion of a workload's name, median", complete, "ms", "the aim", 20),
			against("redoubt get, median", get, "ms", "redoubt version, which asks nobody", bare))
		return nil
	})
}
