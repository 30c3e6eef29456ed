package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"redoubt.dev/redoubt/integration/net/fleet"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

func (d *demo) steps(ctx context.Context) error {
	for _, s := range []struct {
		headline string
		do       func(context.Context) error
	}{
		{"One file", d.file},
		{"Three servers", d.servers},
		{"Four agents in two sites prove what they can do", d.agents},
		{"Three workloads", d.workloads},
		{"What isolates web", d.look},
		{"Harm: the leader is killed", d.killLeader},
		{"Harm: the site oslo is cut off", d.cutSite},
	} {
		d.headline(s.headline)
		if err := s.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", strings.ToLower(s.headline), err)
		}
		if fallen := d.fleet.Fallen(); len(fallen) > 0 {
			return d.judge("servers and agents keep running", fallen)
		}
	}
	return nil
}

// file shows the one file with what it carries.
func (d *demo) file(ctx context.Context) error {
	info, err := os.Stat(d.fleet.Program())
	if err != nil {
		return fmt.Errorf("%w: run `make build` first", err)
	}
	if _, err := d.redoubt(ctx, "version"); err != nil {
		return err
	}
	const limit = 75 << 20
	if info.Size() > limit {
		return verdict{fmt.Sprintf("%s has at most %d MB", d.fleet.Program(), limit>>20), fmt.Sprintf("%d MB", info.Size()>>20)}
	}
	d.ok("%s is one file of %d MB with its runtimes in it.", d.fleet.Program(), info.Size()>>20)
	d.prove("one file carries its runtimes", "%d MB", info.Size()>>20)
	return nil
}

// inNamespace is how a person starts something in a server's or node's network.
func (d *demo) inNamespace(name string, args []string, daemon bool) []string {
	words := append([]string{"ip netns exec " + d.fleet.Plan().Namespace(name), d.fleet.Program()}, flags(args)...)
	if daemon {
		words = append(words, "&")
	}
	return words
}

// flags keeps a flag and its value on one line.
func flags(args []string) []string {
	var out []string
	for i := 0; i < len(args); i++ {
		w := quote(args[i])
		if strings.HasPrefix(w, "--") && i+1 < len(args) && !strings.HasPrefix(args[i+1], "-") {
			w += " " + quote(args[i+1])
			i++
		}
		out = append(out, w)
	}
	return out
}

func (d *demo) servers(ctx context.Context) error {
	f := d.fleet
	servers := f.Plan().Servers
	first := servers[0]
	d.note("Each process has a network namespace of its own; the sites oslo and lab hang on a routed link each.")
	if err := f.Build(ctx); err != nil {
		return err
	}
	d.command(append([]string{f.Program()}, flags(f.ServerInit(first))...)...)
	if err := d.quietly(ctx, "", f.ServerInit(first)...); err != nil {
		return err
	}
	d.command(d.inNamespace(first, f.ServerRun(first), true)...)
	if _, err := f.Start(first); err != nil {
		return err
	}
	if err := f.Begun(ctx); err != nil {
		return err
	}
	d.command("export", "REDOUBT_CONTEXT=$PWD/"+f.Path("admin.context"))
	second := servers[1]
	d.command(append([]string{f.Program()}, flags(f.JoinToken(second))...)...)
	d.command(d.inNamespace(second, f.ServerJoin(second), false)...)
	d.command(d.inNamespace(second, f.ServerRun(second), true)...)
	d.note("The same for %s. A token is shown once, here into a file.", strings.Join(servers[2:], " and "))
	for _, s := range servers[1:] {
		if err := d.quietly(ctx, "", f.JoinToken(s)...); err != nil {
			return err
		}
		if err := d.quietly(ctx, s, f.ServerJoin(s)...); err != nil {
			return err
		}
		if _, err := f.Start(s); err != nil {
			return err
		}
	}
	begun := time.Now()
	if err := f.Until(ctx, 30*time.Second, "three voters", func(ctx context.Context, c redoubtv1.FleetServiceClient) (string, error) {
		r, err := c.ListServers(ctx, &redoubtv1.ListServersRequest{})
		voters := 0
		for _, s := range r.GetServers() {
			if s.GetVoter() && s.GetReachable() {
				voters++
			}
		}
		if err == nil && voters < len(servers) {
			return fmt.Sprintf("%d voters", voters), nil
		}
		return "", err
	}); err != nil {
		return err
	}
	if _, err := d.redoubt(ctx, "operator", "raft", "list"); err != nil {
		return err
	}
	d.ok("Three voters, %s after the last one started.", seconds(time.Since(begun)))
	d.prove("servers joined over mutual TLS", "%d voters", len(servers))
	return nil
}

func (d *demo) agents(ctx context.Context) error {
	f := d.fleet
	nodes := f.Plan().Nodes()
	d.command(append([]string{f.Program()}, flags(f.JoinToken(nodes[0]))...)...)
	d.command(d.inNamespace(nodes[0], f.AgentRun(nodes[0]), true)...)
	d.note("The same for %s.", strings.Join(nodes[1:], ", "))
	begun := time.Now()
	for _, n := range nodes {
		if err := d.quietly(ctx, "", f.JoinToken(n)...); err != nil {
			return err
		}
		if _, err := f.Start(n); err != nil {
			return err
		}
	}
	if err := f.Until(ctx, 60*time.Second, "every agent enrols and proves gVisor and runc", func(ctx context.Context, c redoubtv1.FleetServiceClient) (string, error) {
		r, err := c.ListNodes(ctx, &redoubtv1.ListNodesRequest{})
		if err != nil {
			return "", err
		}
		return strings.Join(fleet.Unproven(nodes, r.GetNodes()), "; "), nil
	}); err != nil {
		return err
	}
	took := time.Since(begun)
	if _, err := d.redoubt(ctx, "node", "list"); err != nil {
		return err
	}
	if _, err := d.redoubt(ctx, "node", "status", nodes[0]); err != nil {
		return err
	}
	d.ok("Every node ran a canary container under gVisor and under runc, and believes only what the canary saw: %s from the first start.", seconds(took))
	d.prove("runtimes proven by a canary container", "gvisor, runc on %d nodes in %s", len(nodes), seconds(took))
	return nil
}

func (d *demo) workloads(ctx context.Context) error {
	web, changed, err := d.adapt("web")
	if err != nil {
		return err
	}
	d.note("%s/web.yml, here with %s:", d.examples, strings.Join(changed, " and "))
	d.command("cat", web)
	text, err := os.ReadFile(web)
	if err != nil {
		return err
	}
	d.output(string(text))
	if _, err := d.redoubt(ctx, "apply", web, "--wait"); err != nil {
		return err
	}
	if _, err := d.redoubt(ctx, "workload", "status", "web"); err != nil {
		return err
	}
	list, err := d.fleet.Instances(ctx, "web")
	if err != nil {
		return err
	}
	if len(list) == 0 {
		return errNoInstance
	}
	sites := map[string]bool{}
	var seen []string
	for _, i := range list {
		a := i.GetAssignment()
		sites[a.GetSite()] = true
		if a.GetRuntime() != "gvisor" || a.GetClass() != redoubtv1.IsolationClass_ISOLATION_CLASS_SANDBOX || a.GetWhy() == "" ||
			i.GetStatus().GetPhase() != redoubtv1.InstancePhase_INSTANCE_PHASE_RUNNING {
			seen = append(seen, fmt.Sprintf("%s: %s, %s, %s, why %q", a.GetInstance(), a.GetRuntime(), a.GetClass(), i.GetStatus().GetPhase(), a.GetWhy()))
		}
	}
	if len(sites) != len(d.fleet.Plan().Sites) {
		seen = append(seen, fmt.Sprintf("instances in %d sites", len(sites)))
	}
	if err := d.judge("web prefers vm and runs on gvisor in both sites, with the reason why nothing stronger", seen); err != nil {
		return err
	}
	d.ok("web prefers a VM. No node proved one, so it runs on the strongest that was proven, gVisor, on %d nodes of both sites.", len(list))
	d.prove("strongest proven isolation, with the why", "web: %d on gvisor", len(list))
	return d.batchAndVault(ctx)
}

func (d *demo) batchAndVault(ctx context.Context) error {
	if _, err := d.redoubt(ctx, "apply", filepath.Join(d.examples, "batch.yml"), "--wait"); err != nil {
		return err
	}
	if _, err := d.redoubt(ctx, "logs", "batch"); err != nil {
		return err
	}
	if err := d.fleet.Until(ctx, 10*time.Second, "batch completes", func(ctx context.Context, c redoubtv1.FleetServiceClient) (string, error) {
		r, err := c.GetWorkload(ctx, &redoubtv1.GetWorkloadRequest{Namespace: "default", Name: "batch"})
		if p := r.GetWorkload().GetStatus().GetPhase(); err == nil && p != redoubtv1.WorkloadPhase_WORKLOAD_PHASE_COMPLETED {
			return "it is " + p.String(), nil
		}
		return "", err
	}); err != nil {
		return err
	}
	d.ok("batch ran to its end.")
	d.prove("a job completes", "batch")
	if _, err := d.redoubt(ctx, "apply", filepath.Join(d.examples, "vault.yml")); err != nil {
		return err
	}
	out, err := d.redoubt(ctx, "explain", "vault")
	if err != nil {
		return err
	}
	var e *redoubtv1.Explanation
	if err := d.fleet.Call(ctx, func(ctx context.Context, c redoubtv1.FleetServiceClient) error {
		r, err := c.ExplainWorkload(ctx, &redoubtv1.ExplainWorkloadRequest{Namespace: "default", Name: "vault"})
		e = r.GetExplanation()
		return err
	}); err != nil {
		return err
	}
	nodes := d.fleet.Plan().Nodes()
	var seen []string
	for _, n := range nodes {
		if !strings.Contains(out, n) {
			seen = append(seen, n+" is not named")
		}
		if !slices.ContainsFunc(e.GetRejections(), func(r *redoubtv1.Rejection) bool { return r.GetNode() == n && r.GetReason() != "" }) {
			seen = append(seen, n+" has no reason")
		}
	}
	if len(e.GetPlaced()) > 0 || e.GetPending() == 0 {
		seen = append(seen, fmt.Sprintf("%d placed, %d pending", len(e.GetPlaced()), e.GetPending()))
	}
	if len(e.GetFixes()) == 0 {
		seen = append(seen, "no fix is offered")
	}
	if err := d.judge("vault pends, with a reason for every node and the nearest fix", seen); err != nil {
		return err
	}
	d.ok("vault's floor is a VM. Nothing crosses a floor, so it waits, and says why and what would help.")
	d.prove("a floor is never crossed", "vault pends, %d reasons on %d nodes", len(e.GetRejections()), len(nodes))
	return nil
}

func (d *demo) look(ctx context.Context) error {
	list, err := d.fleet.Instances(ctx, "web")
	if err != nil {
		return err
	}
	i := list[0]
	node := i.GetAssignment().GetNode()
	port, err := d.published(ctx, "web")
	if err != nil {
		return err
	}
	base := fmt.Sprintf("http://%s:%d", d.fleet.Plan().Address(node), port)
	for _, path := range []string{"/", "/cgi-bin/where"} {
		const lines = 4
		d.command("curl", "-s", base+path, "| head -n", fmt.Sprint(lines))
		page, err := fetch(ctx, base+path)
		if err != nil {
			return err
		}
		d.output(strings.Join(strings.SplitN(page, "\n", lines+1)[:min(lines, strings.Count(page, "\n"))], "\n"))
		if len(page) < 20 {
			return verdict{"a page from " + base + path, fmt.Sprintf("%q", page)}
		}
	}
	if _, err := d.redoubt(ctx, "logs", "web", "--tail", "3"); err != nil {
		return err
	}
	inside, err := d.redoubt(ctx, "exec", i.GetAssignment().GetInstance(), "--", "uname", "-srv")
	if err != nil {
		return err
	}
	d.command("uname", "-srv")
	outside := host("-srv")
	d.output(outside)
	// What a kernel calls itself can be made up; since when it runs, hardly.
	up, err := d.redoubt(ctx, "exec", i.GetAssignment().GetInstance(), "--", "cat", "/proc/uptime")
	if err != nil {
		return err
	}
	d.command("cat", "/proc/uptime")
	hostUp, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return err
	}
	d.output(string(hostUp))
	pid := int(i.GetStatus().GetPid())
	d.command("readlink", fmt.Sprintf("/proc/%d/exe", pid))
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return fmt.Errorf("the sentry of %s: %w", i.GetAssignment().GetInstance(), err)
	}
	d.output(exe)
	var seen []string
	if strings.TrimSpace(inside) == outside {
		seen = append(seen, "the same kernel inside and outside: "+outside)
	}
	age, running := first(up), time.Since(i.GetStatus().GetStarted().AsTime()).Seconds()
	if age <= 0 || age > running+5 || first(string(hostUp)) < age+1 {
		seen = append(seen, fmt.Sprintf("the kernel inside has been up for %.1f s, the instance for %.1f s, the host for %.1f s", age, running, first(string(hostUp))))
	}
	if !strings.HasSuffix(exe, "/runsc") {
		seen = append(seen, "the boundary process is "+exe)
	}
	if err := d.judge("another kernel than the host's answers inside, and its process is gVisor's sentry", seen); err != nil {
		return err
	}
	d.ok("Inside answers another kernel, which booted with the instance, %.0f s ago. On the host it is process %d, gVisor's sentry.", age, pid)
	d.prove("the kernel inside is not the host's", "%s, not %s", second(inside), second(outside))
	d.tasks, err = d.tasksOf(ctx, "web")
	return err
}

// first is the number that a line begins with; 0 if there is none.
func first(line string) float64 {
	f := strings.Fields(line)
	if len(f) == 0 {
		return 0
	}
	n, err := strconv.ParseFloat(f[0], 64)
	if err != nil {
		return 0
	}
	return n
}

// second is the second word: the release in what uname says.
func second(uname string) string {
	if f := strings.Fields(uname); len(f) > 1 {
		return f[1]
	}
	return uname
}

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
