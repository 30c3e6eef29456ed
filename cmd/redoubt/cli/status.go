package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"redoubt.dev/redoubt/control/fleet"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

func (a *app) statusCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "status NAME", Short: "Show a workload with its instances", Args: names(1, 1, "a workload"),
		Long: "Shows a workload with its instances: node, runtime, class, phase, the host pid\nof the process that is the boundary, address, restarts, age, the kernel inside\nas it was measured, and why it runs on nothing stronger.",
	}
	a.namespaced(c)
	return a.listing(c, func(ctx context.Context, f *connection, out *output, args []string) error {
		resp, err := f.GetWorkload(ctx, &redoubtv1.GetWorkloadRequest{Namespace: a.namespace, Name: args[0]})
		if err != nil {
			return fmt.Errorf("status of %s: %w", args[0], err)
		}
		w := resp.GetWorkload()
		if out.format == "table" || out.format == "wide" {
			if _, err := fmt.Fprint(out.w, out.heading(w, a.prose())); err != nil {
				return err
			}
			if len(w.GetStatus().GetInstances()) == 0 {
				return out.workloadEvents(ctx, f, w.GetSpec())
			}
		}
		err = out.message(w, func(t *table) { instanceTable(t, w.GetStatus().GetInstances()) })
		if err == nil && (out.format == "table" || out.format == "wide") {
			_, err = fmt.Fprint(out.w, notes(w.GetStatus().GetInstances(), a.prose()))
			if err == nil {
				err = a.egressNote(ctx, f, out, w.GetSpec())
			}
		}
		if err != nil {
			return err
		}
		return out.workloadEvents(ctx, f, w.GetSpec())
	})
}

func (o *output) workloadEvents(ctx context.Context, f *connection, w *redoubtv1.Workload) error {
	if w.GetName() == "" {
		return nil
	}
	all, ns := "--workload "+w.GetName(), fleet.NamespaceOrDefault(w.GetNamespace())
	if ns != fleet.DefaultNamespace {
		all = "-n " + ns + " " + all
	}
	return o.eventsBeside(ctx, f, &redoubtv1.EventFilter{Namespace: ns, Workload: w.GetName()}, all)
}

// heading says in a few lines how a workload is.
func (o *output) heading(w *redoubtv1.StoredWorkload, width int) string {
	s, st := w.GetSpec(), w.GetStatus()
	var b strings.Builder
	phase := orDash(workloadPhase(st.GetPhase()))
	fmt.Fprintf(&b, "%s  %s  %s, %s\n", o.paint(cell{named(s.GetNamespace(), s.GetName()), bold}), clean(s.GetKind()), o.paint(marked(phase)), ready(w))
	floor, prefer := floorOf(s), preferOf(s)
	by := ""
	if w.GetUpdatedBy() != "" {
		by = " by " + w.GetUpdatedBy()
	}
	b.WriteString(hang("  ", fmt.Sprintf("floor %s, prefer %s; revision %d, changed %s ago%s", floor, prefer, w.GetRevision(), since(w.GetUpdated()), by), width))
	if st.GetWhy() != "" {
		b.WriteString(hang("  ", st.GetWhy(), width))
	}
	if w.GetFailures() > 0 {
		fmt.Fprintf(&b, "  %s so far\n", plural(int(w.GetFailures()), "failure", "failures"))
	}
	if len(st.GetInstances()) > 0 {
		b.WriteString("\n")
	}
	return b.String()
}

// notes say below the table what does not fit in it, instances with the same
// note together.
func notes(instances []*redoubtv1.Instance, width int) string {
	var b strings.Builder
	for _, kind := range []struct {
		label string
		text  func(*redoubtv1.Instance) string
	}{
		{"Message  ", func(i *redoubtv1.Instance) string { return endNote(i) }},
		{"Inside   ", func(i *redoubtv1.Instance) string { return insideNote(i) }},
		{"Image    ", func(i *redoubtv1.Instance) string { return imageNote(i, instances) }},
		{"Why      ", func(i *redoubtv1.Instance) string {
			if !live(i) {
				return ""
			}
			return i.GetAssignment().GetWhy()
		}},
	} {
		var texts []string
		who := map[string][]string{}
		for _, i := range instances {
			text := kind.text(i)
			if text == "" {
				continue
			}
			if who[text] == nil {
				texts = append(texts, text)
			}
			who[text] = append(who[text], i.GetAssignment().GetInstance())
		}
		for _, text := range texts {
			if b.Len() == 0 {
				b.WriteString("\n")
			}
			shown := text
			if len(texts) > 1 || len(who[text]) < len(instances) {
				shown = list(who[text], 6) + ": " + text
			}
			b.WriteString(hang(kind.label, shown, width))
		}
	}
	return b.String()
}

// imageNote is what i runs, where instances of one revision run different
// contents under one name: its tag moved between two pulls.
func imageNote(i *redoubtv1.Instance, all []*redoubtv1.Instance) string {
	mine := i.GetStatus().GetImageDigest()
	if !live(i) || mine == "" {
		return ""
	}
	for _, other := range all {
		theirs := other.GetStatus().GetImageDigest()
		if live(other) && theirs != "" && theirs != mine && other.GetAssignment().GetRevision() == i.GetAssignment().GetRevision() {
			return mine
		}
	}
	return ""
}

func endNote(i *redoubtv1.Instance) string {
	st := i.GetStatus()
	msg := st.GetMessage()
	switch st.GetPhase() {
	case redoubtv1.InstancePhase_INSTANCE_PHASE_BACKOFF:
		msg = backOffNote(st, true)
	case redoubtv1.InstancePhase_INSTANCE_PHASE_RUNNING:
		msg = runningNote(st)
	}
	if st.GetPhase() == redoubtv1.InstancePhase_INSTANCE_PHASE_FAILED && st.GetExitCode() != 0 && !strings.Contains(msg, fmt.Sprint(st.GetExitCode())) {
		msg = strings.TrimSuffix(fmt.Sprintf("exit code %d: %s", st.GetExitCode(), msg), ": ")
	}
	if p := phaseOf(i); strings.HasSuffix(p, "?") && msg == "" {
		msg = "its node is not heard; this is the last that was known"
	}
	return msg
}

// backOffNote says how long it pauses, since when, and what for.
func backOffNote(st *redoubtv1.InstanceStatus, sinceWhen bool) string {
	if st.GetBackOff() == nil { // an agent that does not say
		return st.GetMessage()
	}
	s := "back-off " + age(st.GetBackOff().AsDuration())
	if st.GetRestarts() > 0 {
		s += fmt.Sprintf(", restart %d", st.GetRestarts())
	}
	if sinceWhen && st.GetFinished() != nil {
		s += ", for " + since(st.GetFinished())
	}
	return s + ", last: " + orDash(st.GetMessage())
}

// runningNote says why it is not ready, or what became of it before.
func runningNote(st *redoubtv1.InstanceStatus) string {
	switch {
	case st.GetNotReady() != "":
		return st.GetNotReady()
	case st.GetMessage() == "" && st.GetRestarts() > 0 && st.GetLastEnd() != "":
		return plural(int(st.GetRestarts()), "restart", "restarts") + ", last: " + st.GetLastEnd()
	}
	return st.GetMessage()
}

func insideNote(i *redoubtv1.Instance) string {
	st := i.GetStatus()
	if !live(i) {
		return ""
	}
	var parts []string
	if st.GetKernel() != "" {
		parts = append(parts, "kernel "+st.GetKernel())
	}
	if s := surfaceOf(st.GetMeasured()); s != "" {
		parts = append(parts, "its boundary process can reach "+s)
	}
	return strings.Join(parts, "; ")
}
