package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

func (a *app) stopCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "stop NAME...", Short: "Stop workloads and forget them", Args: names(1, -1, "a workload"),
		Long: "Stops workloads: each instance is told to end, has its grace period, and once all\nhave ended the workload is forgotten.",
	}
	a.client(c)
	a.namespaced(c)
	wait := waitFlags(c, "all instances have ended")
	revision := c.Flags().Uint64("if-revision", 0, "stop it only if its revision is this `N`")
	c.RunE = func(c *cobra.Command, args []string) error {
		conditional := c.Flags().Changed("if-revision")
		if conditional && len(args) != 1 {
			return fmt.Errorf("--if-revision is about one workload, this names %d", len(args))
		}
		return a.with(c.Context(), func(ctx context.Context, f *connection) error {
			var pending []string
			for _, name := range args {
				req := &redoubtv1.StopWorkloadRequest{Namespace: a.namespace, Name: name, CommandId: commandID()}
				if conditional {
					req.ExpectedRevision = proto.Uint64(*revision)
				}
				resp, err := f.StopWorkload(ctx, req)
				if err != nil {
					return fmt.Errorf("stop %s: %w", name, err)
				}
				word := "stopped"
				if resp.GetWorkload() != nil {
					word = "stopping"
					pending = append(pending, name)
				}
				if !wait.wait || word == "stopped" {
					fmt.Fprintf(a.Stdout, "%s %s\n", named(a.namespace, name), word)
				}
			}
			if !wait.wait {
				return nil
			}
			ctx, cancel := wait.deadline(ctx)
			defer cancel()
			for _, name := range pending {
				if err := a.awaitStop(ctx, f, wait, name); err != nil {
					return err
				}
				fmt.Fprintf(a.Stdout, "%s stopped\n", named(a.namespace, name))
			}
			return nil
		})
	}
	return c
}

// awaitStop waits until the workload is forgotten.
func (a *app) awaitStop(ctx context.Context, f *connection, wait *waiting, name string) error {
	left, most := 0, 0
	m := a.meter()
	defer m.end()
	err := f.watch(ctx, a.namespace, func(ctx context.Context) (bool, error) {
		resp, err := f.GetWorkload(ctx, &redoubtv1.GetWorkloadRequest{Namespace: a.namespace, Name: name})
		if status.Code(err) == codes.NotFound {
			return true, nil
		}
		if err != nil {
			return false, fmt.Errorf("wait for the end of %s: %w", name, err)
		}
		w := resp.GetWorkload()
		if !w.GetStopping() {
			return false, fmt.Errorf("%s was applied again while it stopped", name)
		}
		left = 0
		for _, i := range w.GetStatus().GetInstances() {
			if live(i) {
				left++
			}
		}
		most = max(most, left)
		m.show(most-left, most, fmt.Sprintf("%s: stopping, %s left", named(a.namespace, name), plural(left, "instance", "instances")))
		return false, nil
	})
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil {
		return fmt.Errorf("%s has not stopped after %s: %s left; `redoubt workload status %s` shows where", name, wait.timeout, plural(left, "instance is", "instances are"), name)
	}
	return err
}
