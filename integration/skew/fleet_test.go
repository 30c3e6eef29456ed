package skew

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"redoubt.dev/redoubt/identity"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// programs are the two builds.
type programs struct{ before, now string }

// build skips where the clone has no history or the program is not built.
func build(t *testing.T) programs {
	t.Helper()
	clone, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	p := programs{now: filepath.Join(clone, "bin/redoubt")}
	if out, err := exec.Command(p.now, "version", "-o", "name").Output(); err != nil || !bytes.Contains(out, []byte("runsc")) {
		t.Skip("bin/redoubt is not here with its carried runtimes: make build")
	}
	begun := time.Now()
	if p.before, err = Build(t.Context(), clone, Predecessor, t.TempDir(), nil); errors.Is(err, ErrNoHistory) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	t.Logf("built %.7s in %s", Predecessor, time.Since(begun).Round(100*time.Millisecond))
	return p
}

// fleet is servers and agents as processes on loopback addresses of its own.
type fleet struct {
	t    *testing.T
	dir  string
	p    programs
	runs map[string]*daemon
}

// daemon is a running server or agent.
type daemon struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it has ended
}

func newFleet(t *testing.T, p programs) *fleet {
	f := &fleet{t: t, dir: t.TempDir(), p: p, runs: map[string]*daemon{}}
	t.Cleanup(func() {
		for _, d := range f.runs {
			_ = d.cmd.Process.Kill()
			<-d.done
			if text, _ := os.ReadFile(d.log); t.Failed() {
				t.Logf("log of %s:\n%s", d.name, text[max(0, len(text)-6000):])
			}
		}
	})
	return f
}

// address of a server: no other process of the host listens there.
func (f *fleet) address(server string) string {
	pid := os.Getpid()
	return fmt.Sprintf("127.%d.%d.%d", 100+pid>>16&63, pid>>8&255, (pid&63)<<2|int(server[1]-'0'))
}

func (f *fleet) command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = f.dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + f.dir, "NO_COLOR=1", "REDOUBT_CONTEXT=" + filepath.Join(f.dir, "admin.context")}
	return cmd
}

func (f *fleet) try(program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(f.t.Context(), time.Minute)
	defer cancel()
	out, err := f.command(ctx, program, args...).CombinedOutput()
	return string(out), err
}

func (f *fleet) do(program string, args ...string) string {
	f.t.Helper()
	out, err := f.try(program, args...)
	if err != nil {
		f.t.Fatalf("%s %q: %v\n%s", f.which(program), args, err, out)
	}
	return out
}

func (f *fleet) which(program string) string {
	if program == f.p.before {
		return "the older redoubt"
	}
	return "redoubt"
}

// until repeats a command until done says that its output will do.
func (f *fleet) until(what string, done func(out string) bool, program string, args ...string) string {
	f.t.Helper()
	var out string
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		var err error
		if out, err = f.try(program, args...); err == nil && done(out) {
			return out
		}
	}
	f.t.Fatalf("%s: not within a minute; %q prints\n%s", what, args, out)
	return ""
}

func holds(texts ...string) func(string) bool {
	return func(out string) bool {
		for _, text := range texts {
			if !strings.Contains(out, text) {
				return false
			}
		}
		return true
	}
}

// start runs a daemon; its log is appended to that of the one before.
func (f *fleet) start(name, program string, args ...string) *daemon {
	f.t.Helper()
	d := &daemon{name: name, log: filepath.Join(f.dir, name+".log"), done: make(chan struct{})}
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		f.t.Fatal(err)
	}
	defer log.Close()
	d.cmd = f.command(context.Background(), program, args...)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := d.cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	go func() { _ = d.cmd.Wait(); close(d.done) }()
	f.runs[name] = d
	return d
}

// end ends a daemon as a supervisor would.
func (f *fleet) end(name string) {
	f.t.Helper()
	d := f.runs[name]
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		f.t.Fatalf("%s is not running any more: %v", name, err)
	}
	select {
	case <-d.done:
	case <-time.After(30 * time.Second):
		f.t.Fatalf("%s does not end", name)
	}
}

func (f *fleet) server(id, program string) {
	f.t.Helper()
	f.start(id, program, "server", "--data-dir", id, "--heartbeat", "500ms")
}

func (f *fleet) agent(node, program string) {
	f.t.Helper()
	f.start(node, program, "agent", "--data-dir", node, "--driver", "fake", "--gossip-port", "0", "--token-file", node+".token")
}

// replace runs another program as a server, and waits until all are ready again.
func (f *fleet) replace(id, program string) {
	f.t.Helper()
	f.end(id)
	f.server(id, program)
	f.settled()
}

// settled waits until one leads, all vote and answer, and the nodes are ready.
func (f *fleet) settled() {
	f.t.Helper()
	f.until("servers are ready", func(out string) bool {
		levels, leader := servers(out)
		return len(levels) == 3 && leader != "" && !strings.Contains(out, "unreachable")
	}, f.p.now, "operator", "raft", "list", "-o", "wide")
	f.until("nodes are ready", func(out string) bool { return strings.Count(out, " ready ") == 2 }, f.p.now, "node", "list")
}

// servers reads levels and the leader of `operator raft list -o wide`.
func servers(out string) (levels map[string]string, leader string) {
	levels = map[string]string{}
	for i, line := range strings.Split(strings.TrimSpace(out), "\n") {
		if w := strings.Fields(line); i > 0 && len(w) > 8 {
			levels[w[0]] = w[8]
			if w[1] == "leader" {
				leader = w[0]
			}
		}
	}
	return levels, leader
}

func (f *fleet) servers() (map[string]string, string) {
	f.t.Helper()
	return servers(f.do(f.p.now, "operator", "raft", "list", "-o", "wide"))
}

// call calls one server as the administrator.
func (f *fleet) call(server string, do func(context.Context, redoubtv1.FleetServiceClient) error) error {
	file, err := identity.LoadFile(filepath.Join(f.dir, "admin.context"))
	if err != nil {
		return err
	}
	src := file.Source()
	defer src.Close()
	conn, err := identity.NewConn("passthrough:///"+f.address(server)+":7450", src, identity.AuthorizeServers(file.Bundle.TrustDomain()))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(f.t.Context(), 10*time.Second)
	defer cancel()
	return do(ctx, redoubtv1.NewFleetServiceClient(conn))
}

// state is all that a server has applied.
func (f *fleet) state(server string) (index uint64, state []byte, err error) {
	err = f.call(server, func(ctx context.Context, c redoubtv1.FleetServiceClient) error {
		stream, err := c.SaveSnapshot(ctx, &redoubtv1.SaveSnapshotRequest{Stale: true})
		if err != nil {
			return err
		}
		for {
			m, err := stream.Recv()
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			if d := m.GetDescription(); d != nil {
				index = d.GetIndex()
			}
			state = append(state, m.GetData()...)
		}
	})
	return index, state, err
}

// alike fails unless all servers hold the same bytes at the same log index.
func (f *fleet) alike() {
	f.t.Helper()
	for range 100 {
		first, want, err := f.state("s1")
		same := err == nil
		for _, id := range []string{"s2", "s3"} {
			index, got, err := f.state(id)
			if err != nil || index != first {
				same = false
			} else if same && !bytes.Equal(got, want) {
				f.t.Fatalf("at log index %d the states of s1 (%d bytes) and %s (%d bytes) differ", index, len(want), id, len(got))
			}
		}
		if same {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	f.t.Fatal("the servers do not come to one log index")
}

// alikeNow holds the pulse while it looks.
func (f *fleet) alikeNow(p *pulse) {
	f.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	f.alike()
}

// instances says of each instance of a workload what a restart would change.
func (f *fleet) instances(name string) string {
	f.t.Helper()
	var w struct {
		Status struct {
			Instances []struct {
				Assignment struct{ UID, Instance, Node string }
				Status     struct {
					Phase, Started string
					Restarts       int
				}
			}
		}
	}
	out := f.do(f.p.now, "workload", "status", name, "-o", "json")
	if err := json.Unmarshal([]byte(out), &w); err != nil {
		f.t.Fatalf("%v in\n%s", err, out)
	}
	return fmt.Sprintf("%+v", w.Status.Instances)
}

// pulse changes a workload again and again, and remembers what was acknowledged.
type pulse struct {
	stop func()

	mu      sync.Mutex
	acked   int
	tried   int
	last    time.Time
	longest time.Duration
	failed  []string
}

func (f *fleet) pulse() *pulse {
	ctx, cancel := context.WithCancel(f.t.Context())
	done := make(chan struct{})
	p := &pulse{last: time.Now()}
	p.stop = func() { cancel(); <-done }
	f.t.Cleanup(p.stop)
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			p.beat(ctx, f)
			select {
			case <-ctx.Done():
			case <-time.After(150 * time.Millisecond):
			}
		}
	}()
	return p
}

func (p *pulse) beat(ctx context.Context, f *fleet) {
	p.mu.Lock()
	p.tried++
	n := p.tried
	p.mu.Unlock()
	file := filepath.Join(f.dir, "pulse.yml")
	text := fmt.Sprintf("{kind: Service, name: pulse, isolation: {floor: vm}, containers: [{image: toolbox, env: [{name: N, value: %q}]}]}\n", fmt.Sprint(n))
	err := os.WriteFile(file, []byte(text), 0o600)
	var out []byte
	if err == nil {
		out, err = f.command(ctx, f.p.now, "apply", "-q", file).CombinedOutput()
	}
	if ctx.Err() != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.failed = append(p.failed, strings.TrimSpace(string(out)))
		return
	}
	p.longest = max(p.longest, time.Since(p.last))
	p.last, p.acked = time.Now(), n
}
