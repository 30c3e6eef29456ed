package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

func (a *app) raftListCommand() *cobra.Command {
	c := &cobra.Command{Use: "list", Short: "List servers: who leads, who votes, how far each is", Args: cobra.NoArgs}
	return a.listing(c, func(ctx context.Context, f *connection, out *output, _ []string) error {
		resp, err := f.ListServers(ctx, &redoubtv1.ListServersRequest{})
		if err != nil {
			return fmt.Errorf("list servers: %w", err)
		}
		return out.message(resp, func(t *table) {
			t.head("ID", "ROLE", "STATE", "APPLIED", "VERSION", "ADDRESS")
			t.wide("RAFT", "ENROLMENT", "LEVEL", "ANSWERED", "FAILURE")
			for _, s := range resp.GetServers() {
				role, st, applied, answered := "joining", "unreachable", "-", ""
				switch {
				case s.GetLeader():
					role = "leader"
				case s.GetVoter():
					role = "voter"
				}
				if s.GetReachable() {
					st, applied = "ready", fmt.Sprint(s.GetAppliedIndex())
				}
				if f := s.GetStoreFailure(); strings.HasPrefix(f, "disk full") {
					st = "disk full" // -o wide says how full
				} else if f != "" {
					st = "failing" // -o wide says how
				}
				if s.GetId() == resp.GetAnsweredBy() {
					answered = "here"
				}
				t.row(s.GetId(), s.GetId(), role, marked(st), applied, orDash(s.GetVersion()), s.GetApiAddress(),
					s.GetRaftAddress(), s.GetEnrollAddress(), s.GetFeatureLevel(), answered, orDash(s.GetStoreFailure()))
			}
		})
	})
}

func (a *app) raftRemoveCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "remove ID", Short: "Take a server out of the fleet for good", Args: names(1, 1, "a server (`redoubt operator raft list`)"),
		Long: "Takes a server out of the fleet for good: it no longer votes. One that leads\nhands leadership over first. It can come back only with a new data directory and\na new token.",
	}
	a.client(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		return a.with(c.Context(), func(ctx context.Context, f *connection) error {
			if _, err := f.RemoveServer(ctx, &redoubtv1.RemoveServerRequest{Id: args[0], CommandId: commandID()}); err != nil {
				return fmt.Errorf("remove server %s: %w", args[0], err)
			}
			_, err := fmt.Fprintf(a.Stdout, "%s removed\n", args[0])
			a.say("Its process ends by itself if it can reach the others; else stop it. Delete its data directory.")
			return err
		})
	}
	return c
}
