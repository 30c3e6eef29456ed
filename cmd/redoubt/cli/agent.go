package cli

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"redoubt.dev/redoubt/agent"
	"redoubt.dev/redoubt/agent/session"
	"redoubt.dev/redoubt/control"
	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/deploy/install"
	"redoubt.dev/redoubt/deploy/node"
	"redoubt.dev/redoubt/isolation"
	"redoubt.dev/redoubt/proto/tracing"
)

// DefaultAgentDir is an agent's data directory.
const DefaultAgentDir = "/var/lib/redoubt/agent"

func (a *app) agentCommand() *cobra.Command {
	c, _ := a.agentVerb()
	a.daemon(c)
	c.AddCommand(a.agentInstallCommand(), a.uninstallCommand(install.Agent), a.agentRemoveCommand())
	return c
}

// agentVerb is the verb with its own flags alone, and what reads them into a
// configuration: whether or not the node has joined, or has yet to with a token.
func (a *app) agentVerb() (c *cobra.Command, settle func(mayJoin bool) (node.Config, error)) {
	c = &cobra.Command{
		Use: "agent", Short: "Run this host's agent", Args: nounArgs,
		Long: "Proves which isolation this host delivers, and runs what the fleet assigns to\nit. The first start needs a token of `redoubt node join-token`. It only dials\nout. Stopping it leaves containers running; the next start adopts them.",
	}
	cfg := node.Config{}
	cfg.Images.MaxSize = 16 << 30
	f := c.Flags()
	f.StringVar(&cfg.DataDir, "data-dir", DefaultAgentDir, "the agent's data `DIR`ectory")
	f.StringVar(&cfg.Node, "node", "", "this node's `NAME` (default: the token's, or the host's)")
	f.StringVar(&cfg.Site, "site", "", "the node's `SITE`: hosts that reach each other (default: the token's)")
	f.StringSliceVar(&cfg.Join, "join", nil, "`HOST[:PORT]` of servers' first contact, port 7452 (default: those in the token)")
	token, file := tokenFlags(f)
	address := f.String("address", "", "`IP` that the site's other agents reach this one at (default: the one towards a server)")
	port := f.Int("gossip-port", node.GossipPort, "port of the site's gossip; 0: no gossip")
	metrics := metricsFlag(c)
	traces := tracesFlags(c, "redoubt-agent")
	f.StringVar(&cfg.Runtimes, "runtimes", node.RuntimesCarried, "carried: those in this program; host: those on PATH")
	allowed := f.StringSlice("allow-runtime", nil, "only `NAME`, such as runc or gvisor, is offered here; the others are shown as switched off (default: all)")
	f.StringVar(&cfg.RuntimesDir, "runtimes-dir", "", "where carried runtimes are unpacked; agents of one host may share it (default: in --data-dir)")
	f.StringVar(&cfg.Containerd, "containerd", "", "`SOCKET` of a containerd that is there already (default: a private one)")
	f.StringSliceVar(&cfg.AllowHostPaths, "allow-host-path", nil, "host `PATH` that workloads may mount, with everything below it")
	f.StringSliceVar(&cfg.InsecureRegistries, "insecure-registry", nil, "registry `HOST[:PORT]` that is spoken to without TLS")
	f.StringVar(&cfg.Registries, "registry-dir", node.DefaultRegistries, "`DIR` with credentials, mirrors and roots of registries: config.json (docker's), HOST/hosts.toml (containerd's)")
	f.Var((*bytesFlag)(&cfg.Images.MaxSize), "max-image-size", "the most `BYTES` that one image may take, before and after it is unpacked (Ki, Mi, Gi)")
	f.IntVar(&cfg.Images.Pulls, "parallel-pulls", 3, "`NUMBER` of images fetched at once")
	f.IntVar(&cfg.Images.High, "image-gc-high", 85, "`PERCENT` of the disk in use from which unused images are removed; 100: never")
	f.IntVar(&cfg.Images.Low, "image-gc-low", 80, "`PERCENT` of the disk in use at which that ends")
	f.DurationVar(&cfg.Images.MinAge, "image-min-age", 2*time.Minute, "how long after its last use an image is never removed")
	f.DurationVar(&cfg.ProbeEvery, "probe-every", agent.DefaultProbeEvery, "how often runtimes are proven again")
	f.IntVar(&cfg.MaxExecs, "max-execs", session.DefaultExecs, "execs at once, `N`; each costs about 6 MB of the host")
	f.StringToStringVar(&cfg.Labels, "label", nil, "`KEY=VALUE` of the node")
	f.StringVar(&cfg.Driver, "driver", node.DriverContainerd, "containerd, or fake: in memory, for trying the control plane; proves nothing")
	settle = func(mayJoin bool) (node.Config, error) {
		err := a.finishAgent(&cfg, *address, *port)
		if err == nil {
			cfg.AllowRuntimes, err = runtimeNames(*allowed)
		}
		if err == nil && mayJoin {
			err = a.memberOrToken(&cfg, *token, *file)
		}
		return cfg, err
	}
	c.RunE = func(c *cobra.Command, _ []string) error {
		cfg, err := settle(true)
		if err != nil {
			return err
		}
		return a.supervised(c.Context(), func(ctx context.Context, ready func(string)) error {
			cfg.Ready = func(m agent.Member) { ready("node " + m.Node + " of site " + m.Site) }
			return withMetrics(ctx, *metrics, func(ctx context.Context, reg prometheus.Registerer) error {
				return a.withTraces(ctx, traces, reg, func(ctx context.Context, p tracing.Provider) error {
					cfg.Registry, cfg.Traces = reg, p
					return node.Run(ctx, cfg)
				})
			})
		})
	}
	return c, settle
}

func (a *app) finishAgent(cfg *node.Config, address string, port int) error {
	cfg.Version, cfg.Log = Version, a.log
	if cfg.Driver != node.DriverContainerd && cfg.Driver != node.DriverFake {
		return fmt.Errorf("--driver %q is neither containerd nor fake", cfg.Driver)
	}
	if cfg.ProbeEvery < time.Minute {
		return fmt.Errorf("--probe-every %s: at least 1m", cfg.ProbeEvery)
	}
	if err := cfg.Images.Validate(); err != nil {
		return fmt.Errorf("--max-image-size, --parallel-pulls, --image-gc-high, --image-gc-low: %w", err)
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
	for i, server := range cfg.Join {
		cfg.Join[i] = withPort(server, control.PortEnroll)
	}
	return nil
}

// runtimeNames are the runtimes that are meant. An unknown one is refused: a
// slip of the pen would otherwise switch off what it was to allow.
func runtimeNames(given []string) ([]isolation.Name, error) {
	var known []string
	for _, n := range isolation.Runtimes() {
		known = append(known, string(n))
	}
	var out []isolation.Name
	for _, name := range given {
		name = strings.TrimSpace(name)
		if !slices.Contains(known, name) {
			hint := "; there are " + strings.Join(known, ", ")
			if near := fleet.Nearest(name, known); near != "" {
				hint = fmt.Sprintf(". Did you mean %q?", near)
			}
			return nil, fmt.Errorf("allow-runtime: unknown runtime %q%s", name, hint)
		}
		out = append(out, isolation.Name(name))
	}
	return out, nil
}

// withPort adds a port to an address that has none.
func withPort(address string, port int) string {
	if _, _, err := net.SplitHostPort(address); err == nil {
		return address
	}
	return net.JoinHostPort(strings.Trim(address, "[]"), fmt.Sprint(port))
}

// memberOrToken finds out whether the node has joined, else takes the token.
func (a *app) memberOrToken(cfg *node.Config, token, file string) (err error) {
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
		return removeNode(c.Context(), cfg)
	}
	a.daemon(c)
	return c
}

// bytesFlag is a number of bytes as people write it: 16Gi, 512Mi, 1000000.
type bytesFlag int64

var byteUnits = []struct {
	suffix string
	size   int64
}{{"Ti", 1 << 40}, {"Gi", 1 << 30}, {"Mi", 1 << 20}, {"Ki", 1 << 10}, {"", 1}}

// Set implements pflag.Value.
func (b *bytesFlag) Set(s string) error {
	for _, u := range byteUnits {
		number, ok := strings.CutSuffix(s, u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(number, 10, 64)
		if err != nil || n < 1 || n > math.MaxInt64/u.size {
			return fmt.Errorf("%q is not a number of bytes such as 16Gi or 512Mi", s)
		}
		*b = bytesFlag(n * u.size)
		return nil
	}
	return nil // not reached: the last suffix is empty
}

// String implements pflag.Value.
func (b *bytesFlag) String() string {
	for _, u := range byteUnits {
		if n := int64(*b); n > 0 && n%u.size == 0 {
			return strconv.FormatInt(n/u.size, 10) + u.suffix
		}
	}
	return "0"
}

// Type implements pflag.Value.
func (b *bytesFlag) Type() string { return "bytes" }
