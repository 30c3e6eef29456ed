package fleet

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// Up brings up the whole plan: servers, then agents, until every node is ready
// and has proven gVisor and runc.
func (f *Fleet) Up(ctx context.Context) error {
	if err := f.Build(ctx); err != nil {
		return err
	}
	servers := f.cfg.Plan.Servers
	if err := f.must(ctx, "", f.ServerInit(servers[0])...); err != nil {
		return err
	}
	if _, err := f.Start(servers[0]); err != nil {
		return err
	}
	if err := f.Begun(ctx); err != nil {
		return err
	}
	for _, s := range servers[1:] {
		if err := f.must(ctx, "", f.JoinToken(s)...); err != nil {
			return err
		}
		if err := f.must(ctx, s, f.ServerJoin(s)...); err != nil {
			return err
		}
		if _, err := f.Start(s); err != nil {
			return err
		}
	}
	nodes := f.cfg.Plan.Nodes()
	for _, n := range nodes {
		if err := f.must(ctx, "", f.JoinToken(n)...); err != nil {
			return err
		}
		if _, err := f.Start(n); err != nil {
			return err
		}
	}
	return f.Until(ctx, time.Minute, "every node is ready", func(ctx context.Context, c redoubtv1.FleetServiceClient) (string, error) {
		r, err := c.ListNodes(ctx, &redoubtv1.ListNodesRequest{})
		if err != nil {
			return "", err
		}
		var missing []string
		for _, n := range nodes {
			missing = append(missing, Unproven([]string{n}, r.GetNodes(), f.cfg.Allow[n]...)...)
		}
		return strings.Join(missing, "; "), nil
	})
}

// Begun waits until the first server leads and knows its administrator.
func (f *Fleet) Begun(ctx context.Context) error {
	first := f.cfg.Plan.Servers[0]
	return f.Until(ctx, 20*time.Second, first+" leads", func(ctx context.Context, c redoubtv1.FleetServiceClient) (string, error) {
		r, err := c.GetServerInfo(ctx, &redoubtv1.GetServerInfoRequest{})
		if err == nil && (r.GetLeader() != first || len(r.GetRoles()) == 0) {
			return fmt.Sprintf("the leader is %q, the roles of %s are %q", r.GetLeader(), r.GetCaller(), r.GetRoles()), nil
		}
		return "", err
	})
}

// must runs a command that has to end with 0.
func (f *Fleet) must(ctx context.Context, in string, args ...string) error {
	out, err := f.Run(ctx, in, args...)
	if err == nil && out.Code != 0 {
		err = fmt.Errorf("`redoubt %s` ended with %d: %s", strings.Join(args, " "), out.Code, strings.TrimSpace(out.Stderr+out.Stdout))
	}
	return err
}

// Unproven says what is missing until every node is ready and has verified these
// runtimes; gVisor and runc, if none are named.
func Unproven(want []string, nodes []*redoubtv1.Node, runtimes ...string) []string {
	if len(runtimes) == 0 {
		runtimes = []string{"gvisor", "runc"}
	}
	var out []string
	for _, id := range want {
		at := slices.IndexFunc(nodes, func(n *redoubtv1.Node) bool { return n.GetId() == id })
		if at < 0 {
			out = append(out, id+" has not enrolled")
			continue
		}
		n := nodes[at]
		if n.GetState() != redoubtv1.NodeState_NODE_STATE_READY {
			out = append(out, id+" is "+strings.ToLower(strings.TrimPrefix(n.GetState().String(), "NODE_STATE_")))
			continue
		}
		for _, runtime := range runtimes {
			if !slices.ContainsFunc(n.GetReport().GetFindings(), func(f *redoubtv1.Finding) bool {
				return f.GetRuntime() == runtime && f.GetState() == redoubtv1.FindingState_FINDING_STATE_VERIFIED
			}) {
				out = append(out, fmt.Sprintf("%s has not verified %s", id, runtime))
			}
		}
	}
	return out
}

// Silence takes a node off the network at once, with no connection ended, and
// tells how long it took until the control plane suspected it, by the word of
// the site's other nodes, and until it was silent by the session's own timeout.
// Suspected is 0 if it never was. The node is plugged in again.
func (f *Fleet) Silence(ctx context.Context, node string) (suspected, silent time.Duration, err error) {
	if err := f.world.Unplug(node); err != nil {
		return 0, 0, err
	}
	begun := time.Now()
	defer func() {
		if e := f.world.Plug(node); err == nil {
			err = e
		}
	}()
	err = f.Until(ctx, 2*time.Minute, node+" is silent", func(ctx context.Context, c redoubtv1.FleetServiceClient) (string, error) {
		r, err := c.ListNodes(ctx, &redoubtv1.ListNodesRequest{})
		for _, n := range r.GetNodes() {
			if n.GetId() != node {
				continue
			}
			switch n.GetState() {
			case redoubtv1.NodeState_NODE_STATE_SUSPECT:
				if suspected == 0 {
					suspected = time.Since(begun)
				}
			case redoubtv1.NodeState_NODE_STATE_SILENT, redoubtv1.NodeState_NODE_STATE_LOST:
				silent = time.Since(begun)
				return "", nil
			}
			return node + " is " + n.GetState().String(), nil
		}
		return "no node " + node, err
	})
	return suspected, silent, err
}
