package net

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"redoubt.dev/redoubt/integration/net/fleet"
	"redoubt.dev/redoubt/integration/net/topology"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// trial is a fleet under harm.
type trial struct {
	*fleet.Fleet
	t *testing.T
}

func (f *trial) ctx() context.Context { return f.t.Context() }

// apply applies a service of one instance in bergen and waits until it runs.
func (f *trial) apply(name, lostAfter string) {
	f.t.Helper()
	text := fmt.Sprintf(`kind: Service
name: %s
isolation: { floor: sandbox }
placement: { sites: [bergen], replicas: 1 }
disconnect: { lostAfter: %s }
containers:
- image: toolbox
  command: [sh, -c, "while true; do sleep 1; done"]
  resources: { limits: { cpu: 100m, memory: 32Mi } }
`, name, lostAfter)
	if err := os.WriteFile(f.File(name+".yml"), []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
	f.run("apply", f.Path(name+".yml"), "--wait", "--timeout", "60s")
}

func (f *trial) run(args ...string) string {
	f.t.Helper()
	out, err := f.Run(f.ctx(), "", args...)
	if err != nil || out.Code != 0 {
		f.t.Fatalf("redoubt %s: %v, code %d: %s%s", strings.Join(args, " "), err, out.Code, out.Stderr, out.Stdout)
	}
	return out.Stdout
}

type running struct {
	name, node string
	pid        int
	start      string
	restarts   uint32
}

// instances are those of a workload that the fleet says run, with proof that
// they do.
func (f *trial) instances(name string) ([]running, error) {
	list, err := f.Instances(f.ctx(), name)
	if err != nil {
		return nil, err
	}
	var out []running
	for _, i := range list {
		if i.GetStatus().GetPhase() != redoubtv1.InstancePhase_INSTANCE_PHASE_RUNNING {
			continue
		}
		r := running{name: i.GetAssignment().GetInstance(), node: i.GetAssignment().GetNode(), pid: int(i.GetStatus().GetPid()), restarts: i.GetStatus().GetRestarts()}
		if r.start, err = fleet.StartTime(r.pid); err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

func (f *trial) one(name string) running {
	f.t.Helper()
	list, err := f.instances(name)
	if err != nil || len(list) != 1 {
		f.t.Fatalf("%s runs as %v, %v; want one instance", name, list, err)
	}
	return list[0]
}

// eventually asks until done finds nothing missing.
func (f *trial) eventually(what string, patience time.Duration, done func() string) {
	f.t.Helper()
	missing := ""
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if missing = done(); missing == "" {
			return
		}
	}
	f.t.Fatalf("%s: not within %v: %s", what, patience, missing)
}

// sentries counts the sandboxes that really run on this host for a node, by
// their control groups: what the fleet says of itself is not asked.
func sentries(t *testing.T, node string) []string {
	t.Helper()
	var out []string
	for _, root := range []string{"/sys/fs/cgroup/pids/redoubt", "/sys/fs/cgroup/redoubt"} {
		err := filepath.WalkDir(filepath.Join(root, node), func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil || !d.IsDir() || !strings.HasPrefix(d.Name(), "rd-") {
				return err
			}
			procs, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
			if len(strings.Fields(string(procs))) > 0 {
				out = append(out, d.Name())
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// raise brings a fleet up, and takes it down when the test ends.
func raise(t *testing.T, fl *fleet.Fleet) *trial {
	t.Helper()
	f := &trial{fl, t}
	t.Cleanup(func() {
		forced, err := f.Down(context.Background())
		if err != nil {
			t.Error(err)
		}
		if len(forced) > 0 && !t.Failed() {
			t.Errorf("left to be ended by force: %q", forced)
		}
		if t.Failed() || os.Getenv("REDOUBT_KEEP_LOGS") != "" {
			t.Logf("the logs are in %s", f.File("logs"))
		} else if err := f.Clear(); err != nil {
			t.Error(err)
		}
		f.Close()
	})
	if f.Left() {
		if _, err := f.Down(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Up(t.Context()); err != nil {
		t.Fatal(err)
	}
	return f
}

// TestAFleetUnderHarm brings a real fleet through what happens to hosts. The
// parts build on each other.
func TestAFleetUnderHarm(t *testing.T) {
	t.Parallel()
	dir := alone(t)
	nodes := []string{"bergen-1", "bergen-2", "bergen-3"}
	fl, err := fleet.New(fleet.Config{
		Clone: dir, Binary: filepath.Join(dir, "bin/redoubt"), Dir: filepath.Join(dir, ".demo-harm"),
		SVIDTTL: time.Hour, Heartbeat: 2 * time.Second,
		Plan: topology.Plan{Prefix: "rd-harm", Net: 80, Servers: []string{"s1", "s2", "s3"}, Sites: []topology.Site{{Name: "bergen", Nodes: nodes}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	f := raise(t, fl)
	f.apply("steady", "1h")
	for _, part := range []struct {
		name string
		do   func(*trial)
	}{
		{"AgentKilledContainersStay", agentKilled},
		{"ContainerdKilledContainersStay", containerdKilled},
		{"SandboxKilledRestartsInPlace", sandboxKilled},
		{"AllServersKilledNothingIsForgotten", serversKilled},
		{"GossipSuspectsSoonerAndMovesNothing", gossipSooner},
		{"LostNodeIsReplacedAndTheOlderStops", lostNode},
		{"ServerIsRemoved", serverRemoved},
	} {
		if !t.Run(part.name, func(t *testing.T) { part.do(&trial{fl, t}) }) {
			return
		}
	}
}

func agentKilled(f *trial) {
	before := f.one("steady")
	if err := f.Kill(f.ctx(), before.node); err != nil {
		f.t.Fatal(err)
	}
	if now, err := fleet.StartTime(before.pid); err != nil || now != before.start {
		f.t.Fatalf("the sandbox died with its agent: %v", err)
	}
	if _, err := f.Start(before.node); err != nil {
		f.t.Fatal(err)
	}
	f.eventually("the agent is back", 30*time.Second, func() string { return f.notReady(before.node) })
	if now := f.one("steady"); now != before {
		f.t.Errorf("it was %v and is %v", before, now)
	}
	if out := f.run("exec", "steady", "--", "uname", "-r"); !strings.Contains(out, "gvisor") {
		f.t.Errorf("exec after the restart says %q", out)
	}
}

// notReady says what keeps a node from being ready; empty: nothing.
func (f *trial) notReady(node string) string {
	all, err := f.Nodes(f.ctx())
	if err != nil {
		return err.Error()
	}
	return strings.Join(fleet.Unproven([]string{node}, []*redoubtv1.Node{all[node]}), "; ")
}

func containerdKilled(f *trial) {
	before := f.one("steady")
	data, err := os.ReadFile(filepath.Join(f.File(before.node), "containerd", "containerd.pid"))
	if err != nil {
		f.t.Fatal(err)
	}
	var record struct{ Pid int }
	if err := json.Unmarshal(data, &record); err != nil || record.Pid == 0 {
		f.t.Fatalf("containerd's pid file reads %q: %v", data, err)
	}
	if err := unix.Kill(record.Pid, unix.SIGKILL); err != nil {
		f.t.Fatal(err)
	}
	f.eventually("exec works again", 30*time.Second, func() string {
		out, err := f.Run(f.ctx(), "", "exec", "steady", "--", "echo", "here")
		if err != nil || strings.TrimSpace(out.Stdout) != "here" {
			return fmt.Sprintf("%v %s", err, out.Stderr)
		}
		return ""
	})
	if now := f.one("steady"); now != before {
		f.t.Errorf("it was %v and is %v", before, now)
	}
}

func sandboxKilled(f *trial) {
	before := f.one("steady")
	if err := unix.Kill(before.pid, unix.SIGKILL); err != nil {
		f.t.Fatal(err)
	}
	f.eventually("it runs again", 30*time.Second, func() string {
		list, err := f.instances("steady")
		if err != nil || len(list) != 1 || list[0].pid == before.pid {
			return fmt.Sprintf("%v %v", list, err)
		}
		if n := sentries(f.t, before.node); len(n) > 1 {
			f.t.Fatalf("it runs twice: %q", n)
		}
		return ""
	})
	now := f.one("steady")
	if now.name != before.name || now.node != before.node || now.restarts != before.restarts+1 {
		f.t.Errorf("it was %v and is %v: want the same instance, restarted once more", before, now)
	}
}

func serversKilled(f *trial) {
	before := f.one("steady")
	f.run("apply", f.Path("steady.yml"))
	for _, s := range f.Plan().Servers {
		if err := f.Kill(f.ctx(), s); err != nil {
			f.t.Fatal(err)
		}
	}
	if out, err := f.Run(f.ctx(), "", "get"); err != nil || out.Code != 2 || !strings.Contains(out.Stderr, "no server") {
		f.t.Errorf("with no server, `get` ends with %d, %v and says %q", out.Code, err, out.Stderr)
	}
	for _, s := range f.Plan().Servers {
		if _, err := f.Start(s); err != nil {
			f.t.Fatal(err)
		}
	}
	for _, n := range f.Plan().Nodes() {
		f.eventually("the nodes are back", 60*time.Second, func() string { return f.notReady(n) })
	}
	if now := f.one("steady"); now != before {
		f.t.Errorf("it was %v and is %v", before, now)
	}
}

func gossipSooner(f *trial) {
	before := f.one("steady")
	suspected, silent, err := f.Silence(f.ctx(), before.node)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Logf("suspected after %.1f s, its session timed out after %.1f s", suspected.Seconds(), silent.Seconds())
	if suspected == 0 || suspected >= silent {
		f.t.Errorf("suspected after %v, silent by its session after %v: gossip told nothing sooner", suspected, silent)
	}
	f.eventually("the node is back", 40*time.Second, func() string { return f.notReady(before.node) })
	if now := f.one("steady"); now != before {
		f.t.Errorf("a suspicion moved work: it was %v and is %v", before, now)
	}
}

func lostNode(f *trial) {
	f.apply("eager", "8s")
	before := f.one("eager")
	if err := f.World().Unplug(before.node); err != nil {
		f.t.Fatal(err)
	}
	f.eventually("a replacement runs elsewhere", 60*time.Second, func() string {
		list, err := f.Instances(f.ctx(), "eager")
		for _, i := range list {
			if a := i.GetAssignment(); a.GetNode() != before.node && a.GetInstance() != before.name &&
				i.GetStatus().GetPhase() == redoubtv1.InstancePhase_INSTANCE_PHASE_RUNNING {
				return ""
			}
		}
		return fmt.Sprintf("%v %v", list, err)
	})
	if now, err := fleet.StartTime(before.pid); err != nil || now != before.start {
		f.t.Errorf("cut off, the node stopped its eager work: %v", err)
	}
	if err := f.World().Plug(before.node); err != nil {
		f.t.Fatal(err)
	}
	f.eventually("the older one stops", 60*time.Second, func() string {
		if _, err := fleet.StartTime(before.pid); err == nil {
			return fmt.Sprintf("process %d still runs", before.pid)
		}
		list, err := f.instances("eager")
		if err != nil || len(list) != 1 || list[0].name == before.name {
			return fmt.Sprintf("%v %v", list, err)
		}
		return ""
	})
	f.eventually("the node is back", 40*time.Second, func() string { return f.notReady(before.node) })
	f.run("workload", "stop", "eager", "--wait", "--timeout", "60s")
}

func serverRemoved(f *trial) {
	leader, err := f.Leader(f.ctx())
	if err != nil {
		f.t.Fatal(err)
	}
	servers := f.Plan().Servers
	i := slices.IndexFunc(servers, func(s string) bool { return s != leader })
	before := f.one("steady")
	f.run("operator", "raft", "remove", servers[i])
	f.eventually("two voters are left", 30*time.Second, func() string {
		missing := "no answer"
		err := f.Call(f.ctx(), func(ctx context.Context, c redoubtv1.FleetServiceClient) error {
			r, err := c.ListServers(ctx, &redoubtv1.ListServersRequest{})
			missing = ""
			for _, s := range r.GetServers() {
				if s.GetId() == servers[i] {
					missing = servers[i] + " is still listed"
				}
			}
			if len(r.GetServers()) != 2 && missing == "" {
				missing = fmt.Sprintf("%d servers", len(r.GetServers()))
			}
			return err
		})
		if err != nil {
			return err.Error()
		}
		return missing
	})
	f.eventually("every node has a session", 40*time.Second, func() string {
		for _, n := range f.Plan().Nodes() {
			if m := f.notReady(n); m != "" {
				return m
			}
		}
		return ""
	})
	if now := f.one("steady"); now != before {
		f.t.Errorf("it was %v and is %v", before, now)
	}
}
