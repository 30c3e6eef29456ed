package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

func (a *app) egressCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "egress NAME", Short: "Show what egress rules let through and refused", Args: names(1, 1, "a workload or instance"),
		Long: "Asks the nodes what each egress rule of a workload's instances (`network.egress`\nin its file) has let through, in connections, and what was refused, in packets,\nsince the node last made the rules: at the instance's start, or when somebody\nelse had removed them.",
	}
	a.namespaced(c)
	return a.listing(c, func(ctx context.Context, f *connection, out *output, args []string) error {
		resp, err := f.GetEgress(ctx, &redoubtv1.GetEgressRequest{Namespace: a.namespace, Name: args[0]})
		if status.Code(err) == codes.Unimplemented {
			return fmt.Errorf("egress of %s: the server that answered is older than this command and knows no counters; upgrade it", args[0])
		}
		if err != nil {
			return fmt.Errorf("egress of %s: %w", args[0], err)
		}
		err = out.message(resp, func(t *table) {
			t.head("INSTANCE", "RULE", "CONNECTIONS", "REFUSED", "BYTES")
			for _, i := range resp.GetInstances() {
				for _, r := range i.GetRules() {
					passed, refused := fmt.Sprint(r.GetPackets()), "-"
					if r.GetRefused() {
						passed, refused = "-", fmt.Sprint(r.GetPackets())
					}
					t.row(i.GetInstance(), i.GetInstance(), clean(r.GetRule()), passed, refused, r.GetBytes())
				}
			}
			t.empty(fmt.Sprintf("No instance of %s that runs has limited egress: `network.egress` in its file limits it.", args[0]))
		})
		if err != nil || out.structured() || out.format == "name" {
			return err
		}
		for _, i := range resp.GetInstances() {
			if i.GetError() != "" {
				fmt.Fprint(out.w, hang("Missing  ", i.GetInstance()+": "+clean(i.GetError()), a.prose()))
			}
		}
		if resp.GetOmitted() > 0 {
			_, err = fmt.Fprint(out.w, hang("Missing  ", fmt.Sprintf("%d more instances; name one to see its", resp.GetOmitted()), a.prose()))
		}
		return err
	})
}

// egressNote says below a workload's status what its instances may not send.
func (a *app) egressNote(ctx context.Context, f *connection, out *output, w *redoubtv1.Workload) error {
	rules := w.GetNetworkRules()
	if !rules.GetNoEgress() && len(rules.GetEgress()) == 0 {
		return nil
	}
	resp, err := f.GetEgress(ctx, &redoubtv1.GetEgressRequest{Namespace: w.GetNamespace(), Name: w.GetName()})
	if err != nil {
		return ctx.Err() // the status stands without it
	}
	var passed, refused uint64
	var who []string
	for _, i := range resp.GetInstances() {
		for _, r := range i.GetRules() {
			switch {
			case !r.GetRefused():
				passed += r.GetPackets()
			case r.GetPackets() > 0:
				refused += r.GetPackets()
				who = append(who, i.GetInstance())
			}
		}
	}
	text := plural(int(passed), "connection", "connections") + " let through, nothing refused"
	if refused > 0 {
		text = plural(int(passed), "connection", "connections") + " let through; " + plural(int(refused), "packet", "packets") + " of " + list(who, 6) + " refused"
	}
	_, err = fmt.Fprint(out.w, hang("Egress   ", text+"; `redoubt workload egress "+w.GetName()+"` shows each rule", a.prose()))
	return err
}
