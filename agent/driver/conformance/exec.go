package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"redoubt.dev/redoubt/agent/driver"
)

func (s *suite) exec(t *testing.T) {
	spec := s.spec(t, forever)
	spec.Env = []string{"FROM=spec"}
	c := s.mustStart(t, spec)
	ctx := s.ctx(t)

	var out, errout bytes.Buffer
	code, err := s.Driver.Exec(ctx, spec.ID, driver.ExecSpec{Command: []string{"sh", "-c", "echo out; echo err >&2; exit 3"}},
		driver.Streams{Stdout: &out, Stderr: &errout})
	if err != nil || code != 3 || out.String() != "out\n" || errout.String() != "err\n" {
		t.Errorf("exec: %d, %v, %q, %q", code, err, out.String(), errout.String())
	}

	// Input is passed whole, and so is its end.
	text := strings.Repeat("0123456789abcde\n", 16384) // 256 KiB
	out.Reset()
	code, err = s.Driver.Exec(ctx, spec.ID, driver.ExecSpec{Command: []string{"cat"}},
		driver.Streams{Stdin: strings.NewReader(text), Stdout: &out})
	if err != nil || code != 0 || out.String() != text {
		t.Errorf("cat: %d, %v, %d of %d bytes", code, err, out.Len(), len(text))
	}
	// No input is an empty one, not one that never comes.
	if code, err = s.Driver.Exec(ctx, spec.ID, driver.ExecSpec{Command: []string{"cat"}}, driver.Streams{}); err != nil || code != 0 {
		t.Errorf("cat without input: %d, %v", code, err)
	}
	if _, err := s.Driver.Exec(ctx, spec.ID, driver.ExecSpec{}, driver.Streams{}); err == nil {
		t.Error("an exec of nothing succeeded")
	}

	// Many at once, each with its own code.
	var wg sync.WaitGroup
	for i := range 5 {
		wg.Go(func() {
			code, err := s.Driver.Exec(ctx, spec.ID, driver.ExecSpec{Command: []string{"sh", "-c", fmt.Sprintf("exit %d", 10+i)}}, driver.Streams{})
			if err != nil || code != 10+i {
				t.Errorf("exec %d at once: %d, %v", i, code, err)
			}
		})
	}
	wg.Wait()
	if now, _ := find(t, s.Driver, spec.ID); now.Pid != c.Pid || now.State != driver.StateRunning {
		t.Errorf("after execs: %+v", now)
	}

	if !s.Simulated {
		out.Reset()
		code, err = s.Driver.Exec(ctx, spec.ID, driver.ExecSpec{
			Command: []string{"sh", "-c", "echo $FROM $ADDED $(pwd) $(id -u):$(id -g) $1", "-", "detach"},
			Env:     []string{"ADDED=exec"}, WorkingDir: "/tmp", User: "65534:65534",
		}, driver.Streams{Stdout: &out})
		if err != nil || code != 0 || out.String() != "spec exec /tmp 65534:65534 detach\n" {
			t.Errorf("exec: %d, %v, %q", code, err, out.String())
		}
		out.Reset()
		code, err = s.Driver.Exec(ctx, spec.ID, driver.ExecSpec{Command: []string{"id", "-u"}, User: "nobody"}, driver.Streams{Stdout: &out})
		if err != nil || code != 0 || out.String() != "65534\n" {
			t.Errorf("exec as nobody: %d, %v, %q", code, err, out.String())
		}
		_, err = s.Driver.Exec(ctx, spec.ID, driver.ExecSpec{Command: []string{"/no/such/program"}}, driver.Streams{})
		if err == nil || !strings.Contains(err.Error(), "/no/such/program") {
			t.Errorf("a program that is not there: %v", err)
		}
	}

	if err := s.Driver.Stop(ctx, spec.ID, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Driver.Exec(ctx, spec.ID, driver.ExecSpec{Command: []string{"true"}}, driver.Streams{}); !errors.Is(err, driver.ErrNotRunning) {
		t.Errorf("exec in what has exited: %v", err)
	}
}

// lockedBuffer may be looked at while it is written to.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *lockedBuffer) await(t *testing.T, text string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(l.String(), text); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no %q in the output: %q", text, l.String())
		}
	}
}

func (s *suite) execTerminal(t *testing.T) {
	needs(t, !s.Simulated, "give a terminal")
	spec := s.spec(t, forever)
	s.mustStart(t, spec)
	var out lockedBuffer
	in, type1 := io.Pipe()
	resize := make(chan [2]uint16)
	done := make(chan error, 1)
	go func() {
		code, err := s.Driver.Exec(s.ctx(t), spec.ID, driver.ExecSpec{
			Command: []string{"sh"}, Terminal: true, Width: 97, Height: 31,
		}, driver.Streams{Stdin: in, Stdout: &out, Resize: resize})
		if err == nil && code != 5 {
			err = fmt.Errorf("code %d", code)
		}
		done <- err
	}()
	io.WriteString(type1, "[ -t 0 ] && [ -t 1 ] && echo a-$((6*7))-terminal\n")
	out.await(t, "a-42-terminal")
	size := func(want string) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); !strings.Contains(out.String(), want); time.Sleep(100 * time.Millisecond) {
			io.WriteString(type1, "stty size\n")
			if time.Now().After(deadline) {
				t.Fatalf("no size of %s: %q", want, out.String())
			}
		}
	}
	size("31 97")
	resize <- [2]uint16{120, 40}
	size("40 120")
	// The terminal's own interrupt reaches the foreground process.
	io.WriteString(type1, "sleep 777\n")
	time.Sleep(500 * time.Millisecond)
	io.WriteString(type1, "\x03")
	io.WriteString(type1, "echo back-$((40+2)); exit 5\n")
	out.await(t, "back-42")
	if err := <-done; err != nil {
		t.Errorf("exec: %v", err)
	}
	type1.Close()
}

func (s *suite) execSignal(t *testing.T) {
	spec := s.spec(t, forever)
	s.mustStart(t, spec)
	var out lockedBuffer
	signals := make(chan string, 1)
	type result struct {
		code int
		err  error
	}
	done := make(chan result, 1)
	go func() {
		code, err := s.Driver.Exec(s.ctx(t), spec.ID, driver.ExecSpec{
			Command: []string{"sh", "-c", "trap 'exit 9' TERM; echo ready; while true; do sleep 0.05; done"},
		}, driver.Streams{Stdout: &out, Signals: signals})
		done <- result{code, err}
	}()
	out.await(t, "ready")
	signals <- "SIGTERM"
	select {
	case r := <-done:
		if r.err != nil || r.code != 9 {
			t.Errorf("signalled: %+v", r)
		}
	case <-time.After(20 * time.Second):
		t.Error("the signal did not reach the process inside")
	}
}

func (s *suite) execContext(t *testing.T) {
	spec := s.spec(t, forever)
	s.mustStart(t, spec)
	ctx, cancel := context.WithCancel(s.ctx(t))
	var out lockedBuffer
	done := make(chan error, 1)
	go func() {
		_, err := s.Driver.Exec(ctx, spec.ID, driver.ExecSpec{Command: []string{"sh", "-c", "echo ready; exec sleep 4321"}},
			driver.Streams{Stdout: &out})
		done <- err
	}()
	out.await(t, "ready")
	cancel()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("exec goes on after its context ended")
	}
	if !s.Simulated {
		if ps, _ := s.sh(t, spec.ID, "ps"); strings.Contains(ps, "4321") {
			t.Errorf("the process goes on inside: %s", ps)
		}
	}
}

// execFast loses nothing of what short processes write, many at once.
func (s *suite) execFast(t *testing.T) {
	needs(t, !s.Simulated, "run a command")
	spec := s.spec(t, forever)
	s.mustStart(t, spec)
	ctx := s.ctx(t)
	var all sync.WaitGroup
	for i := range 6 {
		all.Go(func() {
			for j := range 6 {
				said := fmt.Sprintf("%d of %d\n", j, i)
				var out, errs strings.Builder
				code, err := s.Driver.Exec(ctx, spec.ID, driver.ExecSpec{Command: []string{"sh", "-c", "cat; echo no >&2; exit 3"}},
					driver.Streams{Stdin: strings.NewReader(said), Stdout: &out, Stderr: &errs})
				if err != nil || code != 3 || out.String() != said || errs.String() != "no\n" {
					t.Errorf("exec %q: %d, %v, %q, %q", said, code, err, out.String(), errs.String())
				}
			}
		})
	}
	all.Wait()
}

// execCut ends an exec's context in the middle of its start, of its life, and
// in between.
func (s *suite) execCut(t *testing.T) {
	needs(t, !s.Simulated, "look from inside")
	spec := s.spec(t, forever)
	s.mustStart(t, spec)
	// From within the first question to the runtime until well after the start.
	for after := time.Millisecond; after < 250*time.Millisecond; after += after/3 + time.Millisecond {
		ctx, cancel := context.WithTimeout(s.ctx(t), after)
		_, err := s.Driver.Exec(ctx, spec.ID, driver.ExecSpec{Command: []string{"sleep", "4322"}}, driver.Streams{})
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("cut after %v: %v", after, err)
		}
		if ps, _ := s.sh(t, spec.ID, "ps"); strings.Contains(ps, "4322") {
			t.Fatalf("cut after %v, the process goes on inside: %s", after, ps)
		}
	}
}

// inside looks at the hardening from where the workload stands.
func (s *suite) inside(t *testing.T) {
	needs(t, !s.Simulated, "look from inside")
	host := filepath.Join(s.Dir, "bind")
	if err := os.MkdirAll(host, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(host, "file"), []byte("from the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	resolv := filepath.Join(s.Dir, "resolv.conf")
	if err := os.WriteFile(resolv, []byte("nameserver 192.0.2.1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	spec := s.spec(t, "echo $0 $A $HOSTNAME; "+forever)
	spec.Env = []string{"A=b"}
	spec.Hostname = "inner"
	spec.ReadOnlyRoot = true
	spec.Tmpfs = []driver.Tmpfs{{Path: "/scratch", Size: 1 << 20}}
	spec.Mounts = []driver.Mount{{HostPath: host, Path: "/ro", ReadOnly: true}, {HostPath: host, Path: "/rw"}}
	spec.ResolvConf = resolv
	spec.WorkingDir = "/tmp"
	s.mustStart(t, spec)
	awaitLog(t, spec, "b inner")
	for _, tt := range []struct{ name, script, want string }{
		{"working directory", "readlink /proc/1/cwd", "/tmp"},
		{"hostname", "hostname", "inner"},
		{"no new privileges", "grep NoNewPrivs /proc/self/status || echo NoNewPrivs: 1", "1"},
		{"seccomp", "grep Seccomp: /proc/self/status", "2"},
		{"capabilities", "grep CapEff /proc/self/status", fmt.Sprintf("%016x", capMask)},
		{"bounding set", "grep CapBnd /proc/self/status", fmt.Sprintf("%016x", capMask)},
		{"pid 1 is ours", `tr "\0" " " < /proc/1/cmdline`, "sleep 1000"},
		{"read-only root", "touch /x 2>&1 || echo refused", "refused"},
		{"tmpfs", "echo hi > /scratch/f && cat /scratch/f", "hi"},
		{"tmpfs size", "dd if=/dev/zero of=/scratch/big bs=1k count=2048 2>&1 | tail -1; [ $(wc -c < /scratch/big) -le 1048576 ] && echo bounded", "bounded"},
		{"read-only bind", "cat /ro/file; touch /ro/x 2>&1 || echo refused", "from the host\ntouch: /ro/x: Read-only file system\nrefused"},
		{"bind", "echo in > /rw/from-inside && cat /rw/from-inside", "in"},
		{"resolv.conf", "cat /etc/resolv.conf", "192.0.2.1"},
		{"mount", "mount -t tmpfs none /scratch 2>/dev/null || echo refused", "refused"},
		{"devices", "mknod /scratch/kmsg c 1 11 2>/dev/null || echo refused", "refused"},
		{"kernel settings", "echo 1 2>/dev/null > /proc/sys/kernel/sysrq || echo refused", "refused"},
		{"chroot", "chroot / true 2>/dev/null || echo refused", "refused"},
		{"namespaces", "unshare -m true 2>/dev/null || echo refused", "refused"},
		{"kernel memory", "head -c1 /proc/kcore 2>/dev/null | wc -c", "0"},
		{"only the usual devices", "ls /dev | grep -Ev '^(char|console|core|fd|full|mqueue|net|null|ptmx|pts|random|shm|stderr|stdin|stdout|tty|urandom|zero|fuse)$' || echo none", "none"},
		{"no link but lo", "ls /sys/class/net 2>/dev/null | grep -v '^lo$' || echo none", "none"},
	} {
		out, _ := s.sh(t, spec.ID, tt.script)
		if !strings.Contains(out, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, out, tt.want)
		}
	}
	data, err := os.ReadFile(filepath.Join(host, "from-inside"))
	if err != nil || string(data) != "in\n" {
		t.Errorf("a writable bind: %q, %v", data, err)
	}
	// Another kernel, or the host's own.
	version, _ := s.sh(t, spec.ID, "dmesg 2>/dev/null | head -3; cat /proc/version")
	hostVersion, err := os.ReadFile("/proc/version")
	if err != nil {
		t.Fatal(err)
	}
	if same := strings.Contains(version, string(hostVersion)); same == s.Sandbox {
		t.Errorf("sandbox %v, and /proc/version says %q; the host's is %q", s.Sandbox, version, hostVersion)
	}

	other := s.spec(t, "id -u; "+forever)
	other.User = "65534:65534"
	s.mustStart(t, other)
	awaitLog(t, other, "65534")
	if out, _ := s.sh(t, other.ID, "grep CapEff /proc/self/status"); !strings.Contains(out, "0000000000000000") {
		t.Errorf("a user that is not root has %q", out)
	}
}

// capMask is CHOWN, DAC_OVERRIDE, FOWNER, KILL, SETGID, SETUID and
// NET_BIND_SERVICE.
const capMask = 1<<0 | 1<<1 | 1<<3 | 1<<5 | 1<<6 | 1<<7 | 1<<10
