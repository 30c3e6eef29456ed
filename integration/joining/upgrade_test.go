package joining

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"redoubt.dev/redoubt/integration/skew"
)

const upgradedNode = "rd-joining-2"

// workloads under load: one that answers on a published port, and two that count
// in their logs, of either class.
const busy = `
kind: Service
name: talks
containers: [{name: talks, image: toolbox, command: [nc, -ll, -p, "7000", -e, cat], ports: [{containerPort: 7000, hostPort: 17000}]}]
---
kind: Service
name: counts
containers: [{name: counts, image: toolbox, command: [sh, -c, "i=0; while sleep 0.03; do echo n $i; i=$((i+1)); done"]}]
---
kind: Service
name: counts-bare
isolation: {floor: container, prefer: container}
containers: [{name: counts, image: toolbox, command: [sh, -c, "i=0; while sleep 0.03; do echo n $i; i=$((i+1)); done"]}]
`

// TestAnAgentIsUpgradedInPlace: the agent becomes that of the release before,
// and this one's again, while its instances are used. Processes, starts,
// addresses and an open connection through a published port stay; no line of a log
// is lost or doubled. The two carry different containerds, and each runs its own.
func TestAnAgentIsUpgradedInPlace(t *testing.T) {
	clone, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	built := builtProgram(t)
	h := newHost(t, "rd-upgrading")
	older, err := skew.Build(t.Context(), clone, skew.AgentPredecessor, t.TempDir(), skew.OtherContainerd)
	if errors.Is(err, skew.ErrNoHistory) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	now, before := filepath.Join(h.dir, "now"), filepath.Join(h.dir, "before")
	h.do("cp", built, now)
	h.do("cp", older, before)

	h.do(now, "server", "init", "--data-dir", "s1", "--id", "s1", "--trust-domain", "upgrading.example", "--address", "127.0.0.1", "--admin-context", "admin.context")
	h.supervise("server", now+" server --data-dir s1 --heartbeat 1s").started(t)
	redoubt := func(words ...string) []string { return append([]string{now, "--context", "admin.context"}, words...) }
	h.until(30*time.Second, `leader`, redoubt("operator", "raft", "list")...)
	h.do(redoubt("node", "join-token", "--site", "lab", "--out", "token")...)
	out := h.do(now, "agent", "install", "--join", "127.0.0.1", "--token-file", "token", "--node", upgradedNode, "--gossip-port", "0")
	agent := h.supervise("agent", startLine(t, out))
	pid := agent.started(t)
	ready := func() {
		t.Helper()
		h.until(60*time.Second, upgradedNode+` +lab +ready +sandbox +gvisor`, redoubt("node", "list")...)
	}
	ready()
	h.do("sh", "-c", `printf %s "$1" >busy.yml`, "sh", busy)
	h.do(redoubt("apply", "--wait", "busy.yml")...)
	t.Cleanup(func() {
		if t.Failed() {
			text, _ := h.try("tail", "-n", "60", "/var/lib/redoubt/agent/containerd/containerd.log")
			t.Logf("log of containerd:\n%s", text)
		}
	})
	follow := h.follow(redoubt("logs", "-f", "counts")...)
	talk := h.talk("127.0.0.1:17000")
	was := h.node(redoubt)
	daemon := h.containerd()

	for _, to := range []struct{ what, program string }{{"downgrade", before}, {"upgrade", now}} {
		said := talk.count()
		out := h.do(to.program, "agent", "install")
		h.holds(out, "replace  /usr/local/bin/redoubt", fmt.Sprintf("kill %d", pid))
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		pid = agent.started(t)
		ready()
		for name := range was {
			h.until(30*time.Second, `running`, redoubt("workload", "status", name)...)
		}
		for name, is := range h.node(redoubt) {
			if !is.same(was[name]) {
				t.Errorf("%s: the instance of %s was\n%v\nand is\n%v", to.what, name, was[name], is)
			}
		}
		if out := h.do(redoubt("exec", "talks", "--", "echo", "here")...); out != "here\n" {
			t.Errorf("%s: exec prints %q", to.what, out)
		}
		d := h.containerd()
		t.Logf("%s: containerd was %s, is %s", to.what, daemon, d)
		if to.program == now && (d == daemon || !strings.Contains(d, carriedContainerd(t, clone))) {
			t.Errorf("%s: containerd was %s and is %s; want the one that is carried now", to.what, daemon, d)
		}
		if to.program == before {
			// From now on it is this agent's own.
			d = h.anotherContainerd(d)
		}
		daemon = d
		if n := talk.count(); n <= said {
			t.Errorf("%s: nothing was said over the open connection", to.what)
		}
	}
	talk.end(t)
	for _, name := range []string{"counts", "counts-bare"} { // enough to tell by
		h.until(30*time.Second, fmt.Sprintf(`n %d\n`, enough), redoubt("logs", name)...)
	}
	for _, name := range []string{"counts", "counts-bare"} {
		consecutive(t, "logs "+name, h.do(redoubt("logs", name)...))
	}
	consecutive(t, "logs -f counts", follow())
	h.do(redoubt("stop", "--wait", "talks", "counts", "counts-bare")...)
	agent.stop()
	h.do("/usr/local/bin/redoubt", "agent", "uninstall", "--purge")
}

// instance is what a restart would change.
type instance struct {
	said      string   // its uid, start, boundary, address and restarts, as shown
	processes []string // with their starts
}

// same tells whether all that ran then runs still; an exec may have come since.
func (i instance) same(then instance) bool {
	return i.said == then.said && !slices.ContainsFunc(then.processes, func(p string) bool { return !slices.Contains(i.processes, p) })
}

// node lists the node's instances by workload.
func (h *host) node(redoubt func(...string) []string) map[string]instance {
	h.t.Helper()
	out := map[string]instance{}
	for _, name := range []string{"talks", "counts", "counts-bare"} {
		var w struct {
			Status struct {
				Instances []struct {
					Assignment struct{ UID, Instance string }
					Status     struct {
						Pid              int
						Started, Address string
						Restarts         int
					}
				}
			}
		}
		text := h.do(redoubt("workload", "status", name, "-o", "json")...)
		if err := json.Unmarshal([]byte(text), &w); err != nil || len(w.Status.Instances) != 1 {
			h.t.Fatalf("one instance of %s: %v in\n%s", name, err, text)
		}
		i := w.Status.Instances[0]
		out[name] = instance{fmt.Sprintf("%+v", i), h.started(i.Assignment.UID)}
	}
	return out
}

// started lists what carries one instance, each with when it started: its shim
// and the shim's children, which are its first process, or the sandbox around it.
func (h *host) started(uid string) (found []string) {
	h.t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		h.t.Fatal(err)
	}
	shim := ""
	children := map[string][]string{} // by the parent's pid
	for _, dir := range procs {
		pid := filepath.Base(dir)
		stat, _ := os.ReadFile(dir + "/stat")
		_, after, _ := strings.Cut(string(stat), ") ")
		f := strings.Fields(after)
		if len(f) < 20 {
			continue // it has ended
		}
		children[f[1]] = append(children[f[1]], pid+" since "+f[19])
		line, _ := os.ReadFile(dir + "/cmdline")
		if words := strings.Split(string(line), "\x00"); strings.Contains(string(line), uid) && strings.HasSuffix(words[0], "containerd-shim-runc-v2") {
			shim, found = pid, append(found, pid+" since "+f[19])
		}
	}
	found = append(found, children[shim]...)
	if slices.Sort(found); len(found) < 2 {
		h.t.Fatalf("of instance %s only %q runs", uid, found)
	}
	return found
}

// containerd is the node's daemon: its process and what it runs.
func (h *host) containerd() string {
	h.t.Helper()
	var record struct{ Pid int }
	text := h.do("cat", "/var/lib/redoubt/agent/containerd/containerd.pid")
	if err := json.Unmarshal([]byte(text), &record); err != nil {
		h.t.Fatal(err)
	}
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", record.Pid))
	if err != nil {
		h.t.Fatal(err)
	}
	return strconv.Itoa(record.Pid) + " " + exe
}

// anotherContainerd kills the daemon, and gives the one that the agent starts.
func (h *host) anotherContainerd(was string) string {
	h.t.Helper()
	pid, _, _ := strings.Cut(was, " ")
	n, err := strconv.Atoi(pid)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := syscall.Kill(n, syscall.SIGKILL); err != nil {
		h.t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		var record struct{ Pid int }
		text, _ := h.try("cat", "/var/lib/redoubt/agent/containerd/containerd.pid")
		if json.Unmarshal([]byte(text), &record) == nil && record.Pid != n {
			if now := h.containerd(); now != was {
				return now
			}
		}
	}
	h.t.Fatalf("containerd %s was killed, and none is started", was)
	return ""
}

// carriedContainerd is the folder of the containerd that bin/redoubt carries.
func carriedContainerd(t *testing.T, clone string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(clone, "deploy/runtimes/out/manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	var m struct {
		Parts []struct{ Name, SHA256 string }
	}
	if err := json.Unmarshal(text, &m); err != nil {
		t.Fatal(err)
	}
	for _, p := range m.Parts {
		if p.Name == "containerd" {
			return "/" + p.SHA256[:12] + "/"
		}
	}
	t.Fatal("no containerd in the manifest")
	return ""
}

// follow runs a command until the returned function gives what it printed.
func (h *host) follow(words ...string) func() string {
	h.t.Helper()
	cmd := h.command(h.t.Context(), words...)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	return func() string {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
		if stderr.Len() > 0 {
			h.t.Logf("%q says\n%s", words, stderr.String())
		}
		return out.String()
	}
}

// enough is how many lines of a log can tell something.
const enough = 100

// consecutive fails unless the lines count from 0 without a gap or a double.
func consecutive(t *testing.T, what, out string) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	for i, line := range lines {
		if want := fmt.Sprintf("n %d", i); !strings.HasSuffix(line, want) {
			t.Errorf("%s: line %d is %q; want %q", what, i, line, want)
			return
		}
	}
	if len(lines) < enough {
		t.Errorf("%s: only %d lines: too few to tell anything", what, len(lines))
	}
	t.Logf("%s: %d lines, one after the other", what, len(lines))
}

// talk is a connection over which each line is awaited before the next is sent.
type talk struct {
	conn net.Conn
	done chan struct{}

	mu      sync.Mutex
	n       int
	longest time.Duration
	err     error
}

func (h *host) talk(address string) *talk {
	h.t.Helper()
	var (
		conn net.Conn
		err  error
	)
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if conn, err = h.dial(address); err == nil {
			break
		}
	}
	if err != nil {
		h.t.Fatal(err)
	}
	c := &talk{conn: conn, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		from := bufio.NewReader(conn)
		for {
			begun := time.Now()
			_ = conn.SetDeadline(begun.Add(30 * time.Second))
			_, err := fmt.Fprintf(conn, "line %d\n", c.n)
			var line string
			if err == nil {
				line, err = from.ReadString('\n')
			}
			if err == nil && line != fmt.Sprintf("line %d\n", c.n) {
				err = fmt.Errorf("line %d comes back as %q", c.n, line)
			}
			c.mu.Lock()
			if c.err = err; err == nil {
				c.n++
				c.longest = max(c.longest, time.Since(begun))
			}
			c.mu.Unlock()
			if err != nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
	h.t.Cleanup(func() { conn.Close(); <-c.done })
	return c
}

func (c *talk) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

func (c *talk) end(t *testing.T) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		t.Errorf("the open connection broke after %d lines: %v", c.n, c.err)
	}
	t.Logf("%d lines over one connection, the longest answer after %s", c.n, c.longest.Round(time.Millisecond))
}

// dial connects from inside the host's network. The thread goes back to its own:
// were it to end, what was started on it would be killed with it.
func (h *host) dial(address string) (conn net.Conn, err error) {
	runtime.LockOSThread()
	own, err := unix.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(own)
	theirs, err := unix.Open(fmt.Sprintf("/proc/%d/ns/net", h.pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(theirs)
	if err := unix.Setns(theirs, unix.CLONE_NEWNET); err != nil {
		return nil, err
	}
	conn, err = net.DialTimeout("tcp4", address, 2*time.Second)
	if back := unix.Setns(own, unix.CLONE_NEWNET); back != nil {
		h.t.Fatalf("go back to the own network: %v", back)
	}
	runtime.UnlockOSThread()
	return conn, err
}
