package cli

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"redoubt.dev/redoubt/control/fleet"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// completeTimeout is how long a shell waits for names of a fleet.
const completeTimeout = 300 * time.Millisecond

// A kind of thing that has a name in a fleet.
type kind string

const (
	kindWorkload  kind = "workload"
	kindInstance  kind = "instance"
	kindEither    kind = "workload or instance"
	kindNode      kind = "node"
	kindSite      kind = "site"
	kindServer    kind = "server"
	kindNamespace kind = "namespace"
)

// placeholders are the words by which a verb's usage says what it takes.
var placeholders = map[string]kind{
	"NAME": kindEither, "WORKLOAD": kindWorkload, "INSTANCE": kindInstance, "NODE": kindNode, "SITE": kindSite, "ID": kindServer,
}

// flagKinds are flags that take a name, of whichever verb.
var flagKinds = map[string]kind{
	"namespace": kindNamespace, "site": kindSite, "node": kindNode, "workload": kindWorkload, "instance": kindInstance,
}

// completions gives every verb of the tree, by its usage line, completion of
// what is there. A verb that has its own keeps it.
func (a *app) completions(root *cobra.Command) {
	_ = walk(root, func(c *cobra.Command) error { // nothing in here fails
		a.completeFlags(c)
		if c.ValidArgsFunction != nil || c.HasAvailableSubCommands() || c.ValidArgs != nil {
			return nil
		}
		words := strings.Fields(c.Use)[1:]
		words = slices.DeleteFunc(words, func(w string) bool { return w == "[flags]" || strings.HasPrefix(w, "[-") })
		if len(words) == 0 {
			c.ValidArgsFunction = cobra.NoFileCompletions
			return nil
		}
		first := strings.Trim(words[0], "[].")
		many := strings.Contains(words[0], "...")
		switch k, known := placeholders[first]; {
		case c.HasParent() && c.Parent().Name() == "context" && c.Name() == "use":
			c.ValidArgsFunction = a.completeContexts
		case c.HasParent() && c.Parent().Name() == "context":
		case first == "SOURCE":
			c.ValidArgsFunction = a.completeCopy
		case known:
			c.ValidArgsFunction = func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
				if len(args) > 0 && !many {
					return nil, cobra.ShellCompDirectiveNoFileComp
				}
				names := a.offer(c, k)
				return slices.DeleteFunc(names, func(n string) bool { return slices.Contains(args, n) }), cobra.ShellCompDirectiveNoFileComp
			}
		}
		return nil
	})
}

func (a *app) completeFlags(c *cobra.Command) {
	client := c.Flags().Lookup("quiet") != nil && c.Flags().Lookup("dry-run") == nil
	for name, k := range flagKinds {
		if client && c.Flags().Lookup(name) != nil {
			// It fails for a flag that has its own.
			_ = c.RegisterFlagCompletionFunc(name, func(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
				return a.offer(c, k), cobra.ShellCompDirectiveNoFileComp
			})
		}
	}
	if c.Flags().Lookup("output") != nil {
		_ = c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
	}
	for _, name := range []string{"prefer", "floor"} {
		if c.Flags().Lookup(name) != nil {
			_ = c.RegisterFlagCompletionFunc(name, cobra.FixedCompletions([]string{"container", "sandbox", "vm", "microvm"}, cobra.ShellCompDirectiveNoFileComp))
		}
	}
	if !c.HasParent() {
		_ = c.RegisterFlagCompletionFunc("context", a.completeContexts)
	}
}

func (a *app) completeContexts(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	cs, err := a.contexts()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	known, err := cs.list()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return known, cobra.ShellCompDirectiveNoFileComp
}

// completeCopy offers NAME: where no path was begun, and files.
func (a *app) completeCopy(c *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 1 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	if strings.ContainsAny(begun, "/.:") {
		return nil, cobra.ShellCompDirectiveDefault
	}
	names := a.offer(c, kindEither)
	for i := range names {
		names[i] += ":"
	}
	return names, cobra.ShellCompDirectiveNoSpace
}

// offer is what a shell shows: the names of a kind, or nothing, without a word,
// where no fleet is known or none answers at once.
func (a *app) offer(c *cobra.Command, k kind) []string {
	a.quiet = true
	ctx, cancel := context.WithTimeout(c.Context(), completeTimeout)
	defer cancel()
	f, err := a.connect()
	if err != nil {
		return nil
	}
	defer f.conn.close()
	names, err := f.names(ctx, k, a.namespace)
	if err != nil {
		return nil
	}
	return names
}

// names lists what there is of a kind, sorted. Nodes and servers belong to no
// namespace.
func (f *connection) names(ctx context.Context, k kind, namespace string) (names []string, err error) {
	defer func() {
		slices.Sort(names)
		names = slices.Compact(names)
	}()
	switch k {
	case kindNode, kindSite:
		resp, err := f.ListNodes(ctx, &redoubtv1.ListNodesRequest{})
		for _, n := range resp.GetNodes() {
			if k == kindSite {
				names = append(names, n.GetSite())
			} else {
				names = append(names, n.GetId())
			}
		}
		return names, err
	case kindServer:
		resp, err := f.ListServers(ctx, &redoubtv1.ListServersRequest{})
		for _, s := range resp.GetServers() {
			names = append(names, s.GetId())
		}
		return names, err
	}
	if k != kindNamespace {
		namespace = fleet.NamespaceOrDefault(namespace)
	} else {
		namespace = ""
	}
	resp, err := f.ListWorkloads(ctx, &redoubtv1.ListWorkloadsRequest{Namespace: namespace})
	for _, w := range resp.GetWorkloads() {
		if k == kindNamespace {
			names = append(names, fleet.NamespaceOrDefault(w.GetSpec().GetNamespace()))
			continue
		}
		if k != kindInstance {
			names = append(names, w.GetSpec().GetName())
		}
		if k != kindWorkload {
			for _, i := range w.GetStatus().GetInstances() {
				names = append(names, i.GetAssignment().GetInstance())
			}
		}
	}
	return names, err
}

// nothingCalled is how a server, and this program, say that a name is nobody's.
var nothingCalled = regexp.MustCompile(`there is no (workload or instance|workload|instance|node|site|server) "([^"]{1,64})"`)

// noneSuch is how the state machine says it of a workload.
var noneSuch = regexp.MustCompile(`(workload) (?:[a-z0-9-]{1,63}/)?([a-z0-9-]{1,63}) does not exist`)

// meant adds to the refusal of a name the one that is nearest to it, if there
// is one near.
func (f *connection) meant(ctx context.Context, err error, namespace string) error {
	var exit exitCode
	if status.Code(err) != codes.NotFound && (!errors.As(err, &exit) || status.Code(exit.err) != codes.NotFound) {
		return err
	}
	text := plain(err)
	m := nothingCalled.FindStringSubmatch(text)
	if m == nil {
		if m = noneSuch.FindStringSubmatch(text); m == nil {
			return err
		}
		err = fmt.Errorf("%w; `redoubt get` shows what there is", err)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if other, ok := elsewhere[m[2]]; ok {
		return fmt.Errorf("%w. %s", err, other)
	}
	names, lookErr := f.names(ctx, kind(m[1]), namespace)
	if lookErr != nil {
		return err
	}
	if near := fleet.Nearest(m[2], names); near != "" && near != m[2] {
		return fmt.Errorf("%w. Did you mean %q?", err, near)
	}
	return err
}

// elsewhere is where those find a thing who ask for it as they do with kubectl.
var elsewhere = map[string]string{
	"nodes": "Nodes: `redoubt node list`", "node": "Nodes: `redoubt node list`",
	"pods": "Instances: `redoubt ps`", "pod": "Instances: `redoubt ps`", "all": "Everything: `redoubt get`",
	"workloads": "Workloads: `redoubt get`, without a word behind it", "deployments": "Workloads: `redoubt get`, without a word behind it",
	"services": "Workloads: `redoubt get`, without a word behind it", "jobs": "Workloads: `redoubt get`, without a word behind it",
	"sites": "Sites: `redoubt site list`", "servers": "Servers: `redoubt operator raft list`", "events": "Events: `redoubt events`",
}
