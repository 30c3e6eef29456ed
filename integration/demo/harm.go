package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"redoubt.dev/redoubt/integration/net/fleet"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// acknowledge applies n small jobs whose floor keeps them waiting, and returns
// the names of those that the fleet acknowledged.
func (d *demo) acknowledge(ctx context.Context, n int) ([]string, error) {
	var names []string
	for i := range n {
		name := fmt.Sprintf("kept-%d", i+1)
		file := d.fleet.File(name + ".yml")
		text := "kind: Job\nname: " + name + "\nisolation: { floor: microvm }\ncontainers: [{ image: toolbox, command: [\"true\"] }]\n"
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			return names, err
		}
		if err := d.quietly(ctx, "", "apply", d.fleet.Path(name+".yml")); err != nil {
			return names, err
		}
		names = append(names, name)
	}
	return names, nil
}

func (d *demo) killLeader(ctx context.Context) error {
	f := d.fleet
	old, err := f.Leader(ctx)
	if err != nil {
		return err
	}
	victim := f.Daemon(old)
	if victim == nil {
		return verdict{"the leader is one of the three servers", old}
	}
	d.command("kill", "-9", fmt.Sprint(victim.Pid), " # "+old+", which leads")
	kill, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := f.Kill(kill, old); err != nil {
		return err
	}
	begun := time.Now()
	const n = 4
	names, err := d.acknowledge(ctx, n)
	if err != nil {
		return err
	}
	took := time.Since(begun)
	leader, err := f.Leader(ctx)
	if err != nil {
		return err
	}
	if leader == old {
		return verdict{"another leader than " + old, leader}
	}
	d.note("Meanwhile %d files are applied, one after the other. The first waits for the new leader.", n)
	if _, err := d.redoubt(ctx, "get"); err != nil {
		return err
	}
	d.command(d.inNamespace(old, f.ServerRun(old), true)...)
	if _, err := f.Start(old); err != nil {
		return err
	}
	var listed []string
	if err := f.Until(ctx, 20*time.Second, "what was acknowledged is there, and "+old+" is back", func(ctx context.Context, c redoubtv1.FleetServiceClient) (string, error) {
		r, err := c.ListWorkloads(ctx, &redoubtv1.ListWorkloadsRequest{})
		if err != nil {
			return "", err
		}
		listed = nil
		for _, w := range r.GetWorkloads() {
			listed = append(listed, w.GetSpec().GetName())
		}
		for _, name := range append([]string{"web", "vault"}, names...) {
			if !slices.Contains(listed, name) {
				return name + " is not there", nil
			}
		}
		s, err := c.ListServers(ctx, &redoubtv1.ListServersRequest{})
		for _, srv := range s.GetServers() {
			if !srv.GetReachable() {
				return srv.GetId() + " is not reached", nil
			}
		}
		return "", err
	}); err != nil {
		return err
	}
	if err := d.same(ctx); err != nil {
		return err
	}
	d.ok("%s leads now. All %d were acknowledged within %s of the kill and are there; web's processes are the same.", leader, n, seconds(took))
	d.prove("the leader killed with SIGKILL", "%d writes acknowledged in %s, all kept", n, seconds(took))
	for _, name := range names {
		if err := d.quietly(ctx, "", "workload", "stop", name); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) cutSite(ctx context.Context) error {
	f := d.fleet
	site := f.Plan().Sites[0]
	d.command("ip", "-n "+f.Plan().Namespace("core"), "link set", site.Name, "down")
	if err := f.World().Cut(site.Name); err != nil {
		return err
	}
	begun := time.Now()
	d.note("For %s: longer than an identity lasts, and than web's lostAfter.", seconds(d.cut))
	select {
	case <-time.After(d.cut):
	case <-ctx.Done():
		return ctx.Err()
	}
	if _, err := d.redoubt(ctx, "node", "list"); err != nil {
		return err
	}
	if err := d.judgeCut(ctx, site.Name, site.Nodes); err != nil {
		return err
	}
	d.command("ip", "-n "+f.Plan().Namespace("core"), "link set", site.Name, "up")
	away := time.Since(begun)
	if err := f.World().Heal(site.Name); err != nil {
		return err
	}
	healed := time.Now()
	if err := f.Until(ctx, 40*time.Second, site.Name+" comes back with a new identity", func(ctx context.Context, c redoubtv1.FleetServiceClient) (string, error) {
		r, err := c.ListNodes(ctx, &redoubtv1.ListNodesRequest{})
		if err != nil {
			return "", err
		}
		if missing := fleet.Unproven(site.Nodes, r.GetNodes()); len(missing) > 0 {
			return strings.Join(missing, "; "), nil
		}
		for _, id := range site.Nodes {
			if end, err := f.IdentityEnd(id); err != nil || !end.After(healed) {
				return fmt.Sprintf("%s has an identity that ended at %s: %v", id, end.Format(time.TimeOnly), err), nil
			}
		}
		return "", nil
	}); err != nil {
		return err
	}
	back := time.Since(healed)
	if _, err := d.redoubt(ctx, "node", "list"); err != nil {
		return err
	}
	// What the control plane thought meanwhile must not be carried out now.
	select {
	case <-time.After(2 * time.Second):
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := d.same(ctx); err != nil {
		return err
	}
	for _, t := range d.tasks {
		d.note("  %-8s %-8s process %-8d started at tick %s, as before", t.instance, t.node, t.pid, t.start)
	}
	d.ok("%s is back %s after the link, with new identities. Nothing was restarted, nothing was started twice.", site.Name, seconds(back))
	d.prove("a site cut off longer than identities last", "%s; back after %s", seconds(away), seconds(back))
	d.prove("same task pids and start times all along", "%d of %d", len(d.tasks), len(d.tasks))
	return nil
}

// judgeCut looks at both sides of the cut: the fleet calls the site
// disconnected and moves nothing, and the site goes on serving.
func (d *demo) judgeCut(ctx context.Context, site string, cut []string) error {
	now, err := d.fleet.Nodes(ctx)
	if err != nil {
		return err
	}
	var seen []string
	for _, id := range cut {
		n := now[id]
		if n.GetState() != redoubtv1.NodeState_NODE_STATE_DISCONNECTED {
			seen = append(seen, id+" is "+n.GetState().String())
		}
		end, err := d.fleet.IdentityEnd(id)
		if err != nil {
			return err
		}
		if end.After(time.Now()) {
			seen = append(seen, fmt.Sprintf("%s's identity ends at %s, after now", id, end.Format(time.TimeOnly)))
		}
	}
	if err := d.judge("the nodes of "+site+" are disconnected and not lost, and their identities have ended", seen); err != nil {
		return err
	}
	if err := d.same(ctx); err != nil {
		return err
	}
	// Inside the site its page is served as ever.
	for _, t := range d.tasks {
		if !slices.Contains(cut, t.node) {
			continue
		}
		if err := d.serves(ctx, t.node); err != nil {
			return verdict{"the cut-off site goes on serving", err.Error()}
		}
	}
	d.ok("%s is disconnected, not lost. It goes on serving inside, and nothing was started elsewhere.", site)
	return nil
}
