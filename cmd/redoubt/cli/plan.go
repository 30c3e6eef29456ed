package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

func (a *app) planCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "plan FILE...", Short: "Show what apply would do, and change nothing", Args: names(1, -1, "a workload file, or - for standard input"),
		Long: "Shows what apply would do: what is created or changed, where it would run and\nwhy. Nothing is changed.\n\nExit codes: 0 no change, 1 changes, 2 an error, 3 something cannot be placed.",
	}
	a.client(c)
	a.namespaced(c)
	a.formatted(c)
	c.RunE = func(c *cobra.Command, files []string) error {
		out, err := a.output()
		if err != nil {
			return err
		}
		workloads, err := a.read(files)
		if err != nil {
			return err
		}
		return a.with(c.Context(), func(ctx context.Context, f *connection) error {
			if err := f.knows(ctx, workloads); err != nil {
				return err
			}
			for n, w := range workloads {
				name := named(w.GetNamespace(), w.GetName())
				resp, err := f.PlanWorkload(ctx, &redoubtv1.PlanWorkloadRequest{Workload: w})
				if err != nil {
					return fmt.Errorf("plan %s: %w", name, err)
				}
				if resp.GetResult() != "unchanged" {
					a.code = max(a.code, exitChanges)
				}
				if resp.GetExplanation().GetPending() > 0 {
					a.code = exitUnplaceable
				}
				switch {
				case out.structured():
					err = out.message(resp, nil)
				case out.format == "name":
					_, err = fmt.Fprintln(out.w, name)
				default:
					if n > 0 {
						fmt.Fprintln(out.w)
					}
					_, err = fmt.Fprint(out.w, out.plan(name, resp, a.prose()))
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	fileFlag(c)
	return c
}

// plan renders what an apply would do.
func (o *output) plan(name string, resp *redoubtv1.PlanWorkloadResponse, width int) string {
	var b strings.Builder
	switch resp.GetResult() {
	case "created":
		fmt.Fprintf(&b, "%s would be created.\n", name)
	case "unchanged":
		fmt.Fprintf(&b, "%s is as the file says.\n", name)
	default:
		b.WriteString(hang(name+" would change in ", strings.Join(resp.GetChangedFields(), ", "), width))
	}
	b.WriteString("\n" + o.explanation(resp.GetExplanation(), width))
	return b.String()
}
