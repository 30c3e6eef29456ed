package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"redoubt.dev/redoubt/cmd/redoubt/workloadfile"
	"redoubt.dev/redoubt/control/fleet"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

func (a *app) applyCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "apply FILE...", Short: "Make the fleet run what files say", Args: names(1, -1, "a workload file, or - for standard input"),
		Long: "Makes the fleet run what the workload files say. Nothing is changed unless every\nfile is understood. What docs/workload.md says can be in a file.",
	}
	a.client(c)
	a.namespaced(c)
	a.formatted(c)
	wait := waitFlags(c, "services are ready and jobs have completed")
	revision := c.Flags().Uint64("if-revision", 0, "change it only if its revision is this `N`; 0: only if it does not exist")
	c.RunE = func(c *cobra.Command, files []string) error {
		out, err := a.output()
		if err != nil {
			return err
		}
		workloads, err := a.read(files)
		if err != nil {
			return err
		}
		conditional := c.Flags().Changed("if-revision")
		if conditional && len(workloads) != 1 {
			return fmt.Errorf("--if-revision is about one workload, the files have %d", len(workloads))
		}
		return a.with(c.Context(), func(ctx context.Context, f *connection) error {
			if err := f.knows(ctx, workloads); err != nil {
				return err
			}
			for _, w := range workloads {
				req := &redoubtv1.ApplyWorkloadRequest{Workload: w, CommandId: commandID()}
				if conditional {
					req.ExpectedRevision = proto.Uint64(*revision)
				}
				resp, err := f.ApplyWorkload(ctx, req)
				if err != nil {
					return fmt.Errorf("apply %s: %w", named(w.GetNamespace(), w.GetName()), err)
				}
				if err := a.applied(out, w, resp); err != nil {
					return err
				}
			}
			if !wait.wait {
				return nil
			}
			ctx, cancel := wait.deadline(ctx)
			defer cancel()
			for _, w := range workloads {
				if err := a.await(ctx, f, wait, w.GetNamespace(), w.GetName()); err != nil {
					return err
				}
			}
			return nil
		})
	}
	fileFlag(c)
	a.traced(c)
	return c
}

// fileFlag lets files be given behind -f too, as kubectl has it.
func fileFlag(c *cobra.Command) {
	given := c.Flags().StringArrayP("file", "f", nil, "a workload `FILE`, as an argument is; may be repeated")
	check, run := c.Args, c.RunE
	c.Args = func(c *cobra.Command, args []string) error { return check(c, append(*given, args...)) }
	c.RunE = func(c *cobra.Command, args []string) error { return run(c, append(*given, args...)) }
}

func (a *app) applied(out *output, w *redoubtv1.Workload, resp *redoubtv1.ApplyWorkloadResponse) error {
	name := named(w.GetNamespace(), w.GetName())
	switch {
	case out.structured():
		return out.message(resp, nil)
	case out.format == "name":
		_, err := fmt.Fprintln(out.w, name)
		return err
	}
	_, err := fmt.Fprintf(out.w, "%s %s (revision %d)\n", name, resp.GetResult(), resp.GetWorkload().GetRevision())
	return err
}

// read reads all files before anything is done with one. A workload without a
// namespace is given that of the command.
func (a *app) read(files []string) ([]*redoubtv1.Workload, error) {
	var (
		all  []*redoubtv1.Workload
		errs workloadfile.Errors
	)
	from := map[string]string{}
	for _, file := range files {
		if file == "-" && from["-"] != "" {
			return nil, errors.New("standard input can be read once; name - once")
		}
		if file == "-" {
			from["-"] = "-"
		}
		ws, err := workloadfile.Read(file, a.Stdin)
		var bad workloadfile.Errors
		switch {
		case errors.As(err, &bad):
			errs = append(errs, bad...)
			continue
		case errors.Is(err, os.ErrNotExist):
			return nil, fmt.Errorf("there is no file %s", file)
		case err != nil:
			return nil, err
		}
		for _, w := range ws {
			if a.namespace != "" {
				if w.GetNamespace() != "" && w.GetNamespace() != a.namespace {
					return nil, fmt.Errorf("%s: %s says namespace %s and --namespace says %s; drop one of them", w.GetName(), file, w.GetNamespace(), a.namespace)
				}
				w.Namespace = a.namespace
			}
			key := fleet.NamespaceOrDefault(w.GetNamespace()) + "/" + w.GetName()
			if first, ok := from[key]; ok {
				return nil, fmt.Errorf("%s is in %s and in %s; keep one of them", w.GetName(), first, file)
			}
			from[key] = file
			all = append(all, w)
		}
	}
	if len(errs) > 0 {
		return nil, errs
	}
	return all, nil
}

// commandID makes repeating a call harmless.
func commandID() string { return rand.Text() }

// await waits until a service is ready as it should be, or a job has completed.
func (a *app) await(ctx context.Context, f *connection, wait *waiting, namespace, name string) error {
	var (
		why    string
		behind *redoubtv1.Instance // one that keeps it from being there
	)
	m := a.meter()
	defer m.end()
	err := f.watch(ctx, namespace, func(ctx context.Context) (bool, error) {
		resp, err := f.ExplainWorkload(ctx, &redoubtv1.ExplainWorkloadRequest{Namespace: namespace, Name: name})
		if err != nil {
			return false, fmt.Errorf("wait for %s: %w", name, err)
		}
		w, e := resp.GetWorkload(), resp.GetExplanation()
		st := w.GetStatus()
		why = e.GetSummary()
		behind = laggard(st)
		done, total := howFar(w)
		m.show(done, total, progress(w))
		if w.GetSpec().GetKind() == string(fleet.KindJob) {
			switch st.GetPhase() {
			case redoubtv1.WorkloadPhase_WORKLOAD_PHASE_COMPLETED:
				return true, nil
			case redoubtv1.WorkloadPhase_WORKLOAD_PHASE_FAILED:
				return false, errors.New(why)
			}
			return false, nil
		}
		return settled(st, e), nil
	})
	if !errors.Is(err, context.DeadlineExceeded) || ctx.Err() == nil {
		return err
	}
	if behind != nil {
		return fmt.Errorf("%s is not there after %s: %s; `redoubt workload status %s` shows more", named(namespace, name), wait.timeout, standing(behind), name)
	}
	return fmt.Errorf("%s is not there after %s. %s `redoubt explain %s` says more", named(namespace, name), wait.timeout, why, name)
}

// laggard is the first instance that has a node and is not what it should be.
func laggard(st *redoubtv1.WorkloadStatus) *redoubtv1.Instance {
	for _, i := range st.GetInstances() {
		switch i.GetStatus().GetPhase() {
		case redoubtv1.InstancePhase_INSTANCE_PHASE_SUCCEEDED, redoubtv1.InstancePhase_INSTANCE_PHASE_STOPPED:
		case redoubtv1.InstancePhase_INSTANCE_PHASE_RUNNING:
			if i.GetStatus().GetNotReady() != "" {
				return i
			}
		default:
			return i
		}
	}
	return nil
}

// standing is an instance's phase with what the agent says of it.
func standing(i *redoubtv1.Instance) string {
	s := i.GetAssignment().GetInstance() + " is " + phaseOf(i)
	m := endNote(i)
	if i.GetStatus().GetPhase() == redoubtv1.InstancePhase_INSTANCE_PHASE_BACKOFF {
		m = backOffNote(i.GetStatus(), false) // a line of progress does not change with the clock
	}
	if m != "" {
		s += ": " + m
	}
	return s
}

// settled tells whether all that should be ready is, and placement wants no more.
func settled(st *redoubtv1.WorkloadStatus, e *redoubtv1.Explanation) bool {
	for _, p := range e.GetPlaced() {
		if p.GetAction() != "keep" {
			return false
		}
	}
	return readyCount(st) >= st.GetDesired() && st.GetPending() == 0 && e.GetPending() == 0
}

// progress is one line on how far a workload is.
func progress(w *redoubtv1.StoredWorkload) string {
	st := w.GetStatus()
	name := named(w.GetSpec().GetNamespace(), w.GetSpec().GetName())
	s := fmt.Sprintf("%s: %s, %s", name, orDash(workloadPhase(st.GetPhase())), ready(w))
	if i := laggard(st); i != nil && endNote(i) != "" {
		s += "; " + standing(i)
	}
	if st.GetPending() > 0 && st.GetWhy() != "" {
		s += "; " + strings.TrimSpace(st.GetWhy())
	}
	return s
}

// howFar counts what of a workload is as it should be, and what should be.
func howFar(w *redoubtv1.StoredWorkload) (done, total int) {
	st := w.GetStatus()
	if w.GetSpec().GetKind() == string(fleet.KindJob) {
		want := uint32(1)
		if j := w.GetSpec().GetJob(); j != nil && j.Completions != nil {
			want = j.GetCompletions()
		}
		return int(st.GetSucceeded()), int(want)
	}
	return int(readyCount(st)), int(st.GetDesired())
}

// ready says how many of a workload are as they should be.
func ready(w *redoubtv1.StoredWorkload) string {
	done, total := howFar(w)
	if w.GetSpec().GetKind() == string(fleet.KindJob) {
		return fmt.Sprintf("%d of %d done", done, total)
	}
	return fmt.Sprintf("%d of %d", done, total)
}
