package joining

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const nodeName = "rd-joining-1"

// host is this host with a name, mounts and a network of the test's own.
type host struct {
	t   *testing.T
	dir string // holds the copied program and what was written over the host's files
	pid int    // of the process that keeps the namespaces

	mounts string // those that were there before
}

const layers = `
set -e
mount -t tmpfs tmpfs "$1"
for d in etc usr/local; do
	n=${d//\//-}
	mkdir -p "$1/$n/upper" "$1/$n/work"
	mount -t overlay overlay -o "lowerdir=/$d,upperdir=$1/$n/upper,workdir=$1/$n/work" "/$d"
done
mount -t tmpfs tmpfs /var/lib
mount -t tmpfs tmpfs /run
ip link set lo up
hostname "$2"
echo 0 >/proc/sys/net/ipv4/ip_forward
mkdir "$1/home"
echo ready
exec sleep infinity
`

func newHost(t *testing.T, name string) *host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("joining a host needs root")
	}
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		// In here systemctl would speak to the host's own.
		t.Log("systemd runs this host; it is hidden from the test by a mount over /run")
	}
	h := &host{t: t, dir: t.TempDir()}
	cmd := exec.Command("unshare", "--mount", "--net", "--uts", "--propagation", "private", "bash", "-c", layers, "layers", h.dir, name)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			h.clear()
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line := make([]byte, 6)
	if _, err := out.Read(line); err != nil {
		t.Fatalf("mounts of our own: %v %s", err, stderr.String())
	}
	h.pid = cmd.Process.Pid
	h.mounts = h.do("cat", "/proc/self/mounts")
	return h
}

// builtProgram is bin/redoubt, with what it carries.
func builtProgram(t *testing.T) string {
	t.Helper()
	built, err := filepath.Abs("../../bin/redoubt")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(built, "version", "-o", "name").Output(); err != nil || !bytes.Contains(out, []byte("runsc")) {
		t.Skip("bin/redoubt is not here with its carried runtimes: make build")
	}
	return built
}

// command is a command on that host.
func (h *host) command(ctx context.Context, words ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--target", strconv.Itoa(h.pid), "--mount", "--net", "--uts", "--wdns=" + h.dir, "--"}, words...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + filepath.Join(h.dir, "home"), "NO_COLOR=1"}
	return cmd
}

func (h *host) try(words ...string) (string, error) {
	ctx, cancel := context.WithTimeout(h.t.Context(), 2*time.Minute)
	defer cancel()
	out, err := h.command(ctx, words...).CombinedOutput()
	return string(out), err
}

func (h *host) do(words ...string) string {
	h.t.Helper()
	out, err := h.try(words...)
	if err != nil {
		h.t.Fatalf("%q: %v\n%s", words, err, out)
	}
	return out
}

// holds fails unless each text is in out.
func (h *host) holds(out string, texts ...string) {
	h.t.Helper()
	for _, text := range texts {
		if !strings.Contains(out, text) {
			h.t.Errorf("%q is not in:\n%s", text, out)
		}
	}
}

// supervised is a daemon that is started again whenever it ends.
type supervised struct {
	pids chan int // of each start
	stop func()
	log  string
}

// supervise runs the command that an install said, as an init would.
func (h *host) supervise(name, command string) *supervised {
	h.t.Helper()
	log, err := os.Create(filepath.Join(h.t.TempDir(), name+".log"))
	if err != nil {
		h.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	s := &supervised{pids: make(chan int, 16), log: log.Name()}
	words := strings.Fields(command)
	if name == "server" { // as far as the unit's rules can be had without systemd
		words = append([]string{"setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"}, words...)
	}
	go func() {
		defer close(done)
		defer log.Close()
		for ctx.Err() == nil {
			cmd := h.command(ctx, words...)
			cmd.Stdout, cmd.Stderr = log, log
			cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
			cmd.WaitDelay = 20 * time.Second
			if err := cmd.Start(); err != nil {
				fmt.Fprintln(log, err)
				return
			}
			s.pids <- cmd.Process.Pid // nsenter executes the command in its own place
			_ = cmd.Wait()
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
			}
		}
	}()
	s.stop = func() { cancel(); <-done }
	h.t.Cleanup(s.stop)
	h.t.Cleanup(func() {
		if h.t.Failed() {
			text, _ := os.ReadFile(s.log)
			h.t.Logf("log of the %s:\n%s", name, text)
		}
	})
	return s
}

// started is the process of the next start.
func (s *supervised) started(t *testing.T) int {
	t.Helper()
	select {
	case pid := <-s.pids:
		return pid
	case <-time.After(30 * time.Second):
		t.Fatal("it is not started")
		return 0
	}
}

// until repeats a command until its output matches.
func (h *host) until(patience time.Duration, pattern string, words ...string) string {
	h.t.Helper()
	want := regexp.MustCompile(pattern)
	var out string
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if out, _ = h.try(words...); want.MatchString(out) {
			return out
		}
	}
	h.t.Fatalf("after %s %q does not print %s but\n%s", patience, words, pattern, out)
	return ""
}

// byHand is the line by which install says how to start a daemon.
var byHand = regexp.MustCompile(`(?m)^  (/usr/local/bin/redoubt .*)$`)

func startLine(t *testing.T, out string) string {
	t.Helper()
	m := byHand.FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("it does not say how to start it:\n%s", out)
	}
	return m[1]
}

// TestAHostJoinsFromTheOneFile: copied, installed, a proven node in the list
// within a minute; again, nothing changes; upgraded, its containers live on;
// purged, nothing is left.
func TestAHostJoinsFromTheOneFile(t *testing.T) {
	built := builtProgram(t)
	h := newHost(t, "rd-joining")
	program := filepath.Join(h.dir, "redoubt")
	h.do("cp", built, program)

	plan := h.do(program, "server", "install", "--trust-domain", "joining.example", "--address", "127.0.0.1", "--dry-run")
	h.holds(plan, "create   0755 /usr/local/bin/redoubt", "create   0700 /var/lib/redoubt/server/", "| ProtectSystem=strict", "begin    the fleet joining.example")
	if left := h.files(); left != "" {
		t.Fatalf("a dry run made:\n%s", left)
	}
	out := h.do(program, "server", "install", "--trust-domain", "joining.example", "--address", "127.0.0.1", "--heartbeat", "1s")
	server := h.supervise("server", startLine(t, out))
	server.started(t)
	redoubt := "/usr/local/bin/redoubt"
	h.until(30*time.Second, `leader`, redoubt, "operator", "raft", "list")
	h.do(redoubt, "node", "join-token", "--site", "lab", "--out", "token")

	copied := time.Now()
	h.do("cp", built, program)
	secret := strings.TrimSpace(h.do("cat", "token"))
	plan = h.do(program, "agent", "install", "--join", "127.0.0.1", "--token-file", "token", "--node", nodeName, "--gossip-port", "0", "--dry-run")
	h.holds(plan, "| gossip-port: 0", "| KillMode=process", "join     the fleet joining.example")
	out = h.do(program, "agent", "install", "--join", "127.0.0.1", "--token", secret, "--node", nodeName, "--gossip-port", "0")
	h.holds(out, "node "+nodeName+" of site lab")
	if where, err := h.try("grep", "-rlF", secret, "/etc/redoubt", "/etc/systemd/system", "/var/lib/redoubt"); err == nil {
		t.Errorf("the token was stored:\n%s", where)
	}
	agent := h.supervise("agent", startLine(t, out))
	pid := agent.started(t)
	h.until(60*time.Second, nodeName+` +lab +ready +sandbox +gvisor`, redoubt, "node", "list")
	if took := time.Since(copied); took > time.Minute {
		t.Errorf("%s from the copy to a proven node in the list", took)
	} else {
		t.Logf("a proven node %s after the copy began", took.Round(100*time.Millisecond))
	}

	h.holds(h.do(program, "agent", "install"), "Nothing to do", fmt.Sprintf("process %d", pid))
	h.upgrade(program, agent, pid)
	h.removal(program, agent, server)
}

// upgrade installs another build over a running agent with a workload.
func (h *host) upgrade(program string, agent *supervised, pid int) {
	h.t.Helper()
	const redoubt = "/usr/local/bin/redoubt"
	h.do(redoubt, "run", "-d", "--name", "stays", "--keep", "toolbox", "--", "sleep", "600")
	h.until(30*time.Second, `running`, redoubt, "workload", "status", "stays")
	task := sentry(h.t)
	h.do("sh", "-c", "printf more >>"+program) // another file, the same program
	h.do("chmod", "0755", "/var/lib/redoubt/agent")
	out := h.do(program, "agent", "install")
	h.holds(out, "replace  /usr/local/bin/redoubt", "mend     /var/lib/redoubt/agent/", fmt.Sprintf("kill %d", pid))
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		h.t.Fatal(err)
	}
	next := agent.started(h.t)
	h.until(30*time.Second, nodeName+` +lab +ready`, redoubt, "node", "list")
	if exe, err := os.Stat(fmt.Sprintf("/proc/%d/exe", next)); err != nil {
		h.t.Error(err)
	} else if built, err := os.Stat("../../bin/redoubt"); err != nil || exe.Size() != built.Size()+4 {
		h.t.Errorf("the agent that was started anew is not the new program: %v", err)
	}
	h.until(30*time.Second, `running`, redoubt, "workload", "status", "stays")
	if now := sentry(h.t); now != task {
		h.t.Errorf("the workload's process was %s and is %s: an upgrade restarted it", task, now)
	}
}

// groupPatterns are where the node's control groups are, on either version.
var groupPatterns = []string{"/sys/fs/cgroup/redoubt/" + nodeName, "/sys/fs/cgroup/*/redoubt/" + nodeName}

// sentry is the process between the one workload of the node and the host, with
// the time of its start.
func sentry(t *testing.T) string {
	t.Helper()
	var groups []string
	for _, pattern := range groupPatterns {
		g, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		groups = append(groups, g...)
	}
	if len(groups) == 0 {
		t.Fatalf("node %s has no control group", nodeName)
	}
	var found []string
	err := filepath.WalkDir(groups[0], func(path string, d os.DirEntry, err error) error {
		if err != nil || d.Name() != "cgroup.procs" {
			return err
		}
		text, err := os.ReadFile(path)
		for _, pid := range strings.Fields(string(text)) {
			stat, _ := os.ReadFile("/proc/" + pid + "/stat")
			_, after, _ := strings.Cut(string(stat), ") ")
			if f := strings.Fields(after); len(f) > 19 && strings.Contains(string(stat), "(exe)") {
				found = append(found, pid+" since "+f[19])
			}
		}
		return err
	})
	if err != nil || len(found) == 0 {
		t.Fatalf("no sandbox of node %s below %s: %v", nodeName, groups[0], err)
	}
	return strings.Join(found, ", ")
}

// removal refuses while the agent runs, then leaves nothing.
func (h *host) removal(program string, agent, server *supervised) {
	h.t.Helper()
	const redoubt = "/usr/local/bin/redoubt"
	if out, err := h.try(redoubt, "agent", "uninstall", "--purge"); err == nil || !strings.Contains(out, "end it first") {
		h.t.Errorf("it took a running agent away: %v\n%s", err, out)
	}
	agent.stop()
	h.holds(h.do(redoubt, "agent", "uninstall", "--dry-run", "--purge"), "end      the containers of node "+nodeName, "keep     /usr/local/bin/redoubt")
	h.do(redoubt, "agent", "uninstall", "--purge")
	for _, pattern := range groupPatterns {
		if left, _ := filepath.Glob(pattern); left != nil {
			h.t.Errorf("control groups are left: %q", left)
		}
	}
	server.stop()
	h.do(redoubt, "server", "uninstall", "--purge")
	if left := h.files(); left != "" {
		h.t.Errorf("files are left:\n%s", left)
	}
	h.holds(h.do(program, "agent", "uninstall", "--purge"), "no agent is installed here")
	for what, words := range map[string][]string{
		"links":      {"sh", "-c", "ip -o link | grep -v ': lo:' || true"},
		"rules":      {"nft", "list", "ruleset"},
		"forwarding": {"sh", "-c", "grep -v 0 /proc/sys/net/ipv4/ip_forward || true"},
	} {
		if left := strings.TrimSpace(h.do(words...)); left != "" {
			h.t.Errorf("%s are left:\n%s", what, left)
		}
	}
	if now := h.do("cat", "/proc/self/mounts"); now != h.mounts {
		h.t.Errorf("mounts were\n%s and are\n%s", h.mounts, now)
	}
	if left := h.processes(); len(left) > 0 {
		h.t.Errorf("processes are left: %q", left)
	}
}

// processes are those with our mounts, but for the one that keeps them.
func (h *host) processes() (out []string) {
	ours, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", h.pid))
	if err != nil {
		h.t.Fatal(err)
	}
	all, err := filepath.Glob("/proc/[0-9]*/ns/mnt")
	if err != nil {
		h.t.Fatal(err)
	}
	for _, path := range all {
		pid := strings.Split(path, "/")[2]
		if ns, err := os.Readlink(path); err == nil && ns == ours && pid != strconv.Itoa(h.pid) {
			line, _ := os.ReadFile("/proc/" + pid + "/cmdline")
			out = append(out, pid+" "+strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return out
}

// clear ends what a failed test has left on this kernel: whatever still has our
// mounts, and its control groups.
func (h *host) clear() {
	if h.pid == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_ = h.command(ctx, "/usr/local/bin/redoubt", "agent", "uninstall", "--purge").Run()
	for _, line := range h.processes() {
		pid, _, _ := strings.Cut(line, " ")
		if n, err := strconv.Atoi(pid); err == nil {
			_ = syscall.Kill(n, syscall.SIGKILL)
		}
	}
}

// files lists what was made or changed below /etc, /usr/local, /var/lib and
// /run; the administrator's context is that person's.
func (h *host) files() string {
	return strings.TrimSpace(h.do("find", filepath.Join(h.dir, "etc/upper"), filepath.Join(h.dir, "usr-local/upper"), "/var/lib", "/run",
		"(", "-type", "f", "-o", "-type", "s", "-o", "-type", "l", "-o", "-path", "*redoubt*", ")"))
}
