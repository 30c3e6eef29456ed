package cli

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/spf13/cobra"

	"redoubt.dev/redoubt/agent"
	"redoubt.dev/redoubt/deploy/node"
)

// DefaultAgentDir is an agent's data directory.
const DefaultAgentDir = "/var/lib/redoubt/agent"

func (a *app) agentCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "agent", Short: "Run this host's agent", Args: nounArgs,
		Long: "Proves which isolation this host delivers, and runs what the fleet assigns to\nit. The first start needs a token of `redoubt node join-token`. It only dials\nout. Stopping it leaves containers running; the next start adopts them.",
	}
	cfg := node.Config{}
	f := c.Flags()
	f.StringVar(&cfg.DataDir, "data-dir", DefaultAgentDir, "the agent's data `DIR`ectory")
	f.StringVar(&cfg.Node, "node", "", "this node's `NAME` (default: the token's, or the host's)")
	f.StringVar(&cfg.Site, "site", "", "the node's `SITE`: hosts that reach each other (default: the token's)")
	f.StringSliceVar(&cfg.Join, "join", nil, "`HOST:PORT` of servers' first contact (default: those in the token)")
	token := f.String("token", "", "the join token; other users of this host may see it, so rather use --token-file")
	file := f.String("token-file", "", "`FILE` that holds the join token; - is standard input")
	address := f.String("address", "", "`IP` that the site's other agents reach this one at (default: the one towards a server)")
	port := f.Int("gossip-port", node.GossipPort, "port of the site's gossip; 0: no gossip")
	f.StringVar(&cfg.Runtimes, "runtimes", node.RuntimesCarried, "carried: those in this program; host: those on PATH")
	f.StringVar(&cfg.RuntimesDir, "runtimes-dir", "", "where carried runtimes are unpacked; agents of one host may share it (default: in --data-dir)")
	f.StringVar(&cfg.Containerd, "containerd", "", "`SOCKET` of a containerd that is there already (default: a private one)")
	f.StringSliceVar(&cfg.AllowHostPaths, "allow-host-path", nil, "host `PATH` that workloads may mount, with everything below it")
	f.StringSliceVar(&cfg.InsecureRegistries, "insecure-registry", nil, "registry `HOST[:PORT]` that is spoken to without TLS")
	f.DurationVar(&cfg.ProbeEvery, "probe-every", agent.DefaultProbeEvery, "how often runtimes are proven again")
	f.StringToStringVar(&cfg.Labels, "label", nil, "`KEY=VALUE` of the node")
	f.StringVar(&cfg.Driver, "driver", node.DriverContainerd, "containerd, or fake: in memory, for trying the control plane; proves nothing")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if err := a.finishAgent(&cfg, *token, *file, *address, *port); err != nil {
			return err
		}
		return node.Run(c.Context(), cfg)
	}
	a.daemon(c)
	c.AddCommand(a.agentRemoveCommand())
	return c
}

func (a *app) finishAgent(cfg *node.Config, token, file, address string, port int) (err error) {
	cfg.Version, cfg.Log = Version, a.log
	if cfg.Driver != node.DriverContainerd && cfg.Driver != node.DriverFake {
		return fmt.Errorf("--driver %q is neither containerd nor fake", cfg.Driver)
	}
	if cfg.ProbeEvery < time.Minute {
		return fmt.Errorf("--probe-every %s: at least 1m", cfg.ProbeEvery)
	}
	if port < 0 || port > 65535 {
		return fmt.Errorf("--gossip-port %d is no port", port)
	}
	if port != 0 {
		cfg.GossipBind = net.JoinHostPort(address, fmt.Sprint(port))
		if address == "" {
			cfg.GossipBind = net.JoinHostPort("0.0.0.0", fmt.Sprint(port))
		}
	}
	_, err = agent.Enrolled(cfg.DataDir)
	if err == nil {
		return nil // the token's work is done
	}
	if !errors.Is(err, agent.ErrNotEnrolled) {
		return err
	}
	if cfg.Token, err = a.joinToken(token, file); err != nil {
		return err
	}
	if cfg.Token == "" {
		return errors.New("this node has joined no fleet yet: give --token-file FILE, from `redoubt node join-token`")
	}
	return nil
}

func (a *app) agentRemoveCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "remove", Short: "End this node's containers and take away what it has on the host", Args: cobra.NoArgs,
		Long: "Ends every container of the node in --data-dir and removes its network, control\ngroups and mounts. The agent must not be running. The data directory stays.",
	}
	cfg := node.Config{}
	c.Flags().StringVar(&cfg.DataDir, "data-dir", DefaultAgentDir, "the agent's data `DIR`ectory")
	c.Flags().StringVar(&cfg.RuntimesDir, "runtimes-dir", "", "as the agent's")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if _, err := os.Stat(cfg.DataDir); err != nil {
			return err
		}
		cfg.Log = a.log
		return node.Remove(c.Context(), cfg)
	}
	a.daemon(c)
	return c
}
