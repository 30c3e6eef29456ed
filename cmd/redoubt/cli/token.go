package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"redoubt.dev/redoubt/identity"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

func (a *app) joinTokenCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "join-token", Short: "Make a token with which a host joins the fleet", Args: cobra.NoArgs,
		Long: "Makes a token with which a host joins the fleet, once: it binds to the first key\nthat uses it, and that key may use it again until it expires. The token is a\nsecret. It alone goes to standard output; what to do with it to standard error.",
	}
	a.client(c)
	role := c.Flags().String("role", "node", "what joins: node or server")
	node := c.Flags().String("node", "", "only a host of this `NAME`; needed to let an enrolled one in with a new key")
	site := c.Flags().String("site", "", "the `SITE` that the node is in")
	ttl := c.Flags().Duration("ttl", time.Hour, "how long it can be used, 1m to 720h")
	file := c.Flags().String("out", "", "write it to `FILE`, readable by you alone, and not to standard output")
	c.RunE = func(c *cobra.Command, _ []string) error {
		switch {
		case *role != "node" && *role != "server":
			return fmt.Errorf("--role %q is neither node nor server", *role)
		case *role == "server" && *site != "":
			return fmt.Errorf("--site is for nodes; a server belongs to no site")
		}
		return a.with(c.Context(), func(ctx context.Context, f *connection) error {
			resp, err := f.CreateJoinToken(ctx, &redoubtv1.CreateJoinTokenRequest{
				Role: *role, Node: *node, Site: *site, Ttl: durationpb.New(*ttl), CommandId: commandID(),
			})
			if err != nil {
				return fmt.Errorf("make a join token: %w", err)
			}
			where := "TOKEN-FILE"
			if *file != "" {
				if err := identity.WriteFile(*file, []byte(resp.GetToken()+"\n")); err != nil {
					return fmt.Errorf("write the join token: %w", err)
				}
				where = *file
			} else if _, err := fmt.Fprintln(a.Stdout, resp.GetToken()); err != nil {
				return err
			}
			a.say("It is good for %s. Copy it and this program to the host, and there:", age(time.Until(resp.GetExpires().AsTime()).Round(time.Minute)))
			if *role == "server" {
				a.say("  sudo ./redoubt server install --address IP --token-file %s", where)
				return nil
			}
			flags := ""
			if *site == "" {
				flags = " --site SITE"
			}
			a.say("  sudo ./redoubt agent install%s --token-file %s", flags, where)
			return nil
		})
	}
	return c
}
