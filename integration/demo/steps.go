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
