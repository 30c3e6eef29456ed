package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

func (a *app) explainCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "explain NAME", Short: "Say why here, why not there, and what would help",
		Long: "Says where a workload (or an instance) runs and why there, why not elsewhere or\non stronger isolation, and which change would help, the smallest first.\n-o wide lists every node's every reason.",
		Args: names(1, 1, "a workload or an instance"),
	}
	a.namespaced(c)
	return a.listing(c, func(ctx context.Context, f *connection, out *output, args []string) error {
		resp, err := f.ExplainWorkload(ctx, &redoubtv1.ExplainWorkloadRequest{Namespace: a.namespace, Name: args[0]})
		if err != nil {
			return fmt.Errorf("explain %s: %w", args[0], err)
		}
		switch {
		case out.structured():
			return out.message(resp, nil)
		case out.format == "name":
			_, err = fmt.Fprintln(out.w, resp.GetExplanation().GetWorkload())
		default:
			_, err = fmt.Fprint(out.w, out.explanation(resp.GetExplanation(), a.prose()))
		}
		if err != nil {
			return err
		}
		return out.workloadEvents(ctx, f, resp.GetWorkload().GetSpec())
	})
}

// explanation renders an explanation for a tired person: what is, why, and
// what would help.
func (o *output) explanation(e *redoubtv1.Explanation, width int) string {
	var b strings.Builder
	b.WriteString(hang("", e.GetSummary(), width))
	if p := placements(e.GetPlaced(), width); p != "" {
		b.WriteString("\n" + p)
	}
	if g := groups(e.GetGroups(), width); g != "" {
		b.WriteString("\n" + g)
	}
	if o.format == "wide" {
		b.WriteString(rejections(e.GetRejections(), width))
	}
	for i, fix := range e.GetFixes() {
		label := "Or           "
		if i == 0 {
			label = "Nearest fix  "
			b.WriteString("\n")
		}
		text := fix.GetChange()
		if fix.GetEffect() != "" {
			text += ": " + fix.GetEffect()
		}
		b.WriteString(hang(label, text, width))
	}
	return b.String()
}

// placements lists instances, those with the same reason together.
func placements(placed []*redoubtv1.Placed, width int) string {
	var b strings.Builder
	for done := 0; done < len(placed); {
		var (
			rows  [][]string
			first = placed[done]
		)
		for done < len(placed) && placed[done].GetWhy() == first.GetWhy() && placed[done].GetAction() == first.GetAction() {
			p := placed[done]
			where := p.GetNode()
			if p.GetSite() != "" {
				where += " (" + p.GetSite() + ")"
			}
			rows = append(rows, []string{p.GetAction(), p.GetInstance(), where, runtimeName(p.GetRuntime(), p.GetVariant()), class(p.GetClass()), fmt.Sprintf("%.2f", p.GetScore())})
			done++
		}
		b.WriteString(columns("  ", rows))
		if first.GetWhy() != "" {
			b.WriteString(hang("        ", first.GetWhy(), width))
		}
	}
	return b.String()
}

// columns aligns rows without heads.
func columns(indent string, rows [][]string) string {
	var widths []int
	for _, r := range rows {
		for i, c := range r {
			c = clean(c)
			r[i] = c
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], width(c))
		}
	}
	var b strings.Builder
	for _, r := range rows {
		line := indent
		for i, c := range r {
			line += c + strings.Repeat(" ", widths[i]-width(c)+2)
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	return b.String()
}

// groups lists reasons with the nodes that each holds for. Nodes stand behind
// the reasons, in line, as long as that fits; else below each.
func groups(gs []*redoubtv1.ReasonGroup, total int) string {
	if len(gs) == 0 {
		return ""
	}
	counts, reasons, nodes := 0, 0, 0
	for _, g := range gs {
		counts = max(counts, width(plural(len(g.GetNodes()), "node", "nodes")))
		reasons = max(reasons, width(g.GetReason()))
		nodes = max(nodes, width(list(g.GetNodes(), 0)))
	}
	inline := 2+counts+2+reasons+3+nodes <= total
	var b strings.Builder
	for _, g := range gs {
		count := plural(len(g.GetNodes()), "node", "nodes")
		label := "  " + count + strings.Repeat(" ", counts-width(count)+2)
		if inline {
			fmt.Fprintf(&b, "%s%s%s   %s\n", label, clean(g.GetReason()), strings.Repeat(" ", reasons-width(g.GetReason())), clean(list(g.GetNodes(), 0)))
			continue
		}
		b.WriteString(hang(label, g.GetReason(), total))
		b.WriteString(hang(strings.Repeat(" ", width(label)), list(g.GetNodes(), 24), total))
	}
	return b.String()
}

// rejections lists every reason of every node.
func rejections(rs []*redoubtv1.Rejection, width int) string {
	var b strings.Builder
	node := ""
	for _, r := range rs {
		if r.GetNode() != node {
			node = r.GetNode()
			fmt.Fprintf(&b, "\n%s (%s)\n", clean(node), clean(r.GetSite()))
		}
		text := r.GetReason()
		if r.GetRuntime() != "" {
			text = runtimeName(r.GetRuntime(), r.GetVariant()) + ": " + text
		}
		if r.GetFix() != "" && !slices.Contains([]string{text, r.GetReason()}, r.GetFix()) {
			text += "; " + r.GetFix()
		}
		b.WriteString(hang("  ", text, width))
	}
	return b.String()
}
