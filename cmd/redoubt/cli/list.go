package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"redoubt.dev/redoubt/control/fleet"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// listCommand is `workload list`, and `get` for short.
func (a *app) listCommand(verb string) *cobra.Command {
	c := &cobra.Command{Use: verb + " [NAME...]", Short: "List workloads, or only the named ones"}
	a.namespaced(c)
	c.Flags().Lookup("namespace").Usage = "only that namespace (default: all that you may see)"
	return a.listing(c, func(ctx context.Context, f *connection, out *output, args []string) error {
		resp, err := f.ListWorkloads(ctx, &redoubtv1.ListWorkloadsRequest{Namespace: a.namespace})
		if err != nil {
			return fmt.Errorf("list workloads: %w", err)
		}
		if len(args) > 0 {
			for _, name := range args {
				if !slices.ContainsFunc(resp.GetWorkloads(), func(w *redoubtv1.StoredWorkload) bool { return w.GetSpec().GetName() == name }) {
					return status.Errorf(codes.NotFound, "there is no workload %q; `redoubt get` shows what there is", name)
				}
			}
			resp.Workloads = slices.DeleteFunc(resp.Workloads, func(w *redoubtv1.StoredWorkload) bool { return !slices.Contains(args, w.GetSpec().GetName()) })
		}
		return out.message(resp, func(t *table) {
			t.head("NAME", "KIND", "PHASE", "READY", "ISOLATION", "AGE", "WHY")
			t.fit(80) // -o wide has the whole of WHY
			t.wide("FLOOR", "PREFER", "NODES", "REVISION", "BY")
			for _, w := range resp.GetWorkloads() {
				s, st := w.GetSpec(), w.GetStatus()
				name := named(s.GetNamespace(), s.GetName())
				why := whyNot(st, s.GetName())
				on, nodes := isolationOf(st.GetInstances())
				t.row(name, name, s.GetKind(), marked(workloadPhase(st.GetPhase())), readyShort(w), on, since(w.GetCreated()), why,
					floorOf(s), preferOf(s), orDash(nodes), w.GetRevision(), w.GetUpdatedBy())
			}
			t.empty("There are no workloads. `redoubt apply FILE` or `redoubt run IMAGE` begins one.")
		})
	})
}

// whyNot says why a workload is not as it should be; empty where it is.
func whyNot(st *redoubtv1.WorkloadStatus, name string) string {
	switch st.GetPhase() {
	case redoubtv1.WorkloadPhase_WORKLOAD_PHASE_RUNNING, redoubtv1.WorkloadPhase_WORKLOAD_PHASE_COMPLETED, redoubtv1.WorkloadPhase_WORKLOAD_PHASE_STOPPING:
		if st.GetPending() == 0 {
			return ""
		}
	}
	return strings.TrimPrefix(st.GetWhy(), name+" is pending: ")
}

func floorOf(w *redoubtv1.Workload) string {
	return cmp.Or(w.GetIsolation().GetFloor(), fleet.DefaultFloor.String())
}

func preferOf(w *redoubtv1.Workload) string { return cmp.Or(w.GetIsolation().GetPrefer(), "strongest") }

func readyShort(w *redoubtv1.StoredWorkload) string {
	st := w.GetStatus()
	if w.GetSpec().GetKind() == string(fleet.KindJob) {
		want := uint32(1)
		if j := w.GetSpec().GetJob(); j != nil && j.Completions != nil {
			want = j.GetCompletions()
		}
		return fmt.Sprintf("%d/%d", st.GetSucceeded(), want)
	}
	return fmt.Sprintf("%d/%d", readyCount(st), st.GetDesired())
}

// readyCount is how many are ready; where the server knows no probes, how many run.
func readyCount(st *redoubtv1.WorkloadStatus) uint32 {
	if st.Ready == nil {
		return st.GetRunning()
	}
	return st.GetReady()
}

// isolationOf sums up on what instances run, and where.
func isolationOf(instances []*redoubtv1.Instance) (on, nodes string) {
	var what, where []string
	for _, i := range instances {
		if !live(i) && i.GetStatus().GetPhase() != redoubtv1.InstancePhase_INSTANCE_PHASE_SUCCEEDED {
			continue
		}
		w := class(i.GetAssignment().GetClass()) + " (" + i.GetAssignment().GetRuntime() + ")"
		if !slices.Contains(what, w) {
			what = append(what, w)
		}
		if n := i.GetAssignment().GetNode(); !slices.Contains(where, n) {
			where = append(where, n)
		}
	}
	slices.Sort(what)
	return orDash(list(what, 2)), list(where, 0)
}

func (a *app) psCommand() *cobra.Command {
	c := &cobra.Command{Use: "ps [WORKLOAD...]", Short: "List instances"}
	a.namespaced(c)
	c.Flags().Lookup("namespace").Usage = "only that namespace (default: all that you may see)"
	all := c.Flags().BoolP("all", "a", false, "those that have ended, too")
	return a.listing(c, func(ctx context.Context, f *connection, out *output, args []string) error {
		resp, err := f.ListWorkloads(ctx, &redoubtv1.ListWorkloadsRequest{Namespace: a.namespace})
		if err != nil {
			return fmt.Errorf("list instances: %w", err)
		}
		var shown redoubtv1.WorkloadStatus
		for _, w := range resp.GetWorkloads() {
			if len(args) > 0 && !slices.Contains(args, w.GetSpec().GetName()) {
				continue
			}
			for _, i := range w.GetStatus().GetInstances() {
				if *all || live(i) {
					shown.Instances = append(shown.Instances, i)
				}
			}
		}
		return out.message(&shown, func(t *table) {
			instanceTable(t, shown.GetInstances())
			t.empty("Nothing runs.")
		})
	})
}

// instanceTable fills a table with instances.
func instanceTable(t *table, instances []*redoubtv1.Instance) {
	t.head("INSTANCE", "NODE", "RUNTIME", "CLASS", "PHASE", "PID", "ADDRESS", "RST", "AGE")
	t.wide("SITE", "VARIANT", "SURFACE", "KERNEL", "EXIT", "IMAGE", "UID", "MESSAGE")
	for _, i := range instances {
		as, st := i.GetAssignment(), i.GetStatus()
		name := named(as.GetNamespace(), as.GetInstance())
		pid, exit := "-", "-"
		if st.GetPid() > 0 {
			pid = fmt.Sprint(st.GetPid())
		}
		if ended(i) && st.GetFinished() != nil {
			exit = fmt.Sprint(st.GetExitCode())
		}
		t.row(name, name, as.GetNode(), as.GetRuntime(), class(as.GetClass()), marked(phaseOf(i)), pid, orDash(st.GetAddress()),
			st.GetRestarts(), since(i.GetCreated()),
			as.GetSite(), orDash(as.GetVariant()), orDash(surfaceOf(st.GetMeasured())), orDash(st.GetKernel()), exit, orDash(st.GetImageDigest()), as.GetUid(), orDash(endNote(i)))
	}
}

// surfaceOf says what was measured of a live boundary.
func surfaceOf(t *redoubtv1.Terms) string {
	s := t.GetSurface()
	if !s.GetMeasured() {
		return ""
	}
	return fmt.Sprintf("%d of %d host syscalls, %s", s.GetSyscalls(), s.GetSyscallsTotal(), plural(int(s.GetDevices()), "device", "devices"))
}
