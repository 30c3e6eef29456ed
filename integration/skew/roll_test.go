package skew

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// newKind asks for what only a fleet of this release's level keeps, as people do.
func (f *fleet) newKind() (string, error) {
	f.write("limited.yml", "{kind: Service, name: limited, isolation: {floor: vm}, containers: [{image: toolbox}], network: {noEgress: true}}")
	return f.try(f.p.now, "apply", "limited.yml")
}

// newKindAsked asks a server of this release for it, past what the command looks at.
func (f *fleet) newKindAsked(server string) error {
	return f.call(server, func(ctx context.Context, c redoubtv1.FleetServiceClient) error {
		_, err := c.ApplyWorkload(ctx, &redoubtv1.ApplyWorkloadRequest{CommandId: rand.Text(), Workload: &redoubtv1.Workload{
			Kind: "Service", Name: "limited", Containers: []*redoubtv1.Container{{Image: "toolbox"}},
			Isolation: &redoubtv1.Isolation{Floor: "vm"}, NetworkRules: &redoubtv1.NetworkRules{NoEgress: true},
		}})
		return err
	})
}

func (f *fleet) write(name, text string) {
	f.t.Helper()
	if err := os.WriteFile(filepath.Join(f.dir, name), []byte(text+"\n"), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// begin makes three servers of the older build, with a node of each.
func (f *fleet) begin() {
	f.t.Helper()
	old := f.p.before
	f.do(old, "server", "init", "--data-dir", "s1", "--id", "s1", "--trust-domain", "skew.example", "--address", f.address("s1"), "--admin-context", "admin.context")
	f.server("s1", old)
	f.until("s1 leads", holds("leader"), old, "operator", "raft", "list")
	for _, id := range []string{"s2", "s3"} {
		f.do(old, "node", "join-token", "--role", "server", "--out", id+".token")
		f.do(old, "server", "join", "--data-dir", id, "--id", id, "--address", f.address(id), "--join", f.address("s1")+":7452", "--token-file", id+".token")
		f.server(id, old)
		f.until(id+" votes", holds(id+"  voter"), old, "operator", "raft", "list")
	}
	for node, program := range map[string]string{"older": f.p.before, "newer": f.p.now} {
		f.do(old, "node", "join-token", "--node", node, "--site", "of-"+node, "--out", node+".token")
		f.agent(node, program)
	}
	f.settled()
	// A context looks for further servers every ten minutes.
	past := time.Now().Add(-time.Hour)
	if err := os.Chtimes(filepath.Join(f.dir, "admin.context"), past, past); err != nil {
		f.t.Fatal(err)
	}
	f.do(old, "get")
}

// verbs does with each build's command, on each build's node, what people do.
func (f *fleet) verbs(step string) {
	f.t.Helper()
	for _, program := range []string{f.p.before, f.p.now} {
		name := "web"
		f.write("web.yml", fmt.Sprintf(`{kind: Service, name: web, labels: {step: %q}, placement: {sites: [of-older, of-newer], perSite: 1}, containers: [{image: toolbox, command: [sh, -c, "trap 'exit 0' TERM; echo serving; sleep 1000"]}]}`, strings.ReplaceAll(step, " ", "-")))
		f.do(program, "apply", "--wait", "--timeout", "30s", "web.yml")
		if out := f.do(program, "get", name); !strings.Contains(out, "2/2") {
			f.t.Errorf("%s: %s: get prints\n%s", step, f.which(program), out)
		}
		for _, line := range strings.Split(strings.TrimSpace(f.do(program, "ps", "-o", "name")), "\n") {
			instance := line[strings.LastIndex(line, "/")+1:]
			if !strings.HasPrefix(instance, "web-") {
				continue
			}
			if out := f.do(program, "exec", instance, "--", "echo", "from", "inside"); out != "from inside\n" {
				f.t.Errorf("%s: %s: exec in %s prints %q", step, f.which(program), instance, out)
			}
			if out := f.do(program, "logs", instance); !strings.Contains(out, "serving") {
				f.t.Errorf("%s: %s: logs of %s print %q", step, f.which(program), instance, out)
			}
		}
		f.do(program, "stop", "--wait", name)
	}
}

// TestAFleetIsUpgradedServerByServer: three servers of the release before, with
// a node of either, become this release's one by one, one of them back and forth
// again, while workloads run and the fleet is written to.
func TestAFleetIsUpgradedServerByServer(t *testing.T) {
	f := newFleet(t, build(t))
	f.begin()
	f.write("stays.yml", `{kind: Service, name: stays, placement: {sites: [of-older, of-newer], perSite: 1}, containers: [{image: toolbox, command: [sleep, "10000"]}]}`)
	f.do(f.p.before, "apply", "--wait", "stays.yml")
	stays := f.instances("stays")
	levels, _ := f.servers()
	before := levels["s1"]
	p := f.pulse()

	step := func(what string, old ...string) {
		t.Helper()
		begun := time.Now()
		f.verbs(what)
		if now := f.instances("stays"); now != stays {
			t.Errorf("%s: what was running was\n%s\nand is\n%s", what, stays, now)
		}
		levels, leader := f.servers()
		for id, level := range levels {
			if slices.Contains(old, id) != (level == before) {
				t.Errorf("%s: server %s shows level %s; the older build's is %s", what, id, level, before)
			}
		}
		f.alikeNow(p)
		out, err := f.newKind()
		switch {
		case len(old) == 0 && err != nil:
			t.Errorf("%s: what every server knows by now is refused: %s", what, out)
		case len(old) > 0 && err == nil:
			t.Errorf("%s, led by %s: what %q do not know was taken: %s", what, leader, old, out)
		case len(old) > 0:
			t.Logf("%s, led by %s: %s", what, leader, strings.TrimSpace(out))
			if slices.Contains(old, leader) {
				break // it does not know what it does not know
			}
			err := f.newKindAsked(leader)
			if status.Code(err) != codes.FailedPrecondition || !slices.ContainsFunc(old, func(id string) bool { return strings.Contains(err.Error(), "server "+id+" knows") }) {
				t.Errorf("%s, asked past the command: %v", what, err)
			}
		}
		t.Logf("%s: %s", what, time.Since(begun).Round(100*time.Millisecond))
	}
	step("all of the release before", "s1", "s2", "s3")
	f.replace("s2", f.p.now)
	step("s2 upgraded", "s1", "s3")
	f.replace("s1", f.p.now)
	step("s1 and s2 upgraded", "s3")
	f.replace("s2", f.p.before)
	step("s2 rolled back", "s2", "s3")
	f.replace("s2", f.p.now)
	f.replace("s3", f.p.now)
	step("all upgraded")

	p.stop()
	if p.acked < 20 {
		t.Errorf("only %d changes were acknowledged: too few to tell anything", p.acked)
	}
	if p.longest > 20*time.Second {
		t.Errorf("for %s nothing was acknowledged", p.longest)
	}
	t.Logf("%d of %d changes acknowledged, the longest pause %s; not: %q", p.acked, p.tried, p.longest.Round(100*time.Millisecond), p.failed)
}
