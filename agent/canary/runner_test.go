package canary

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/isolation"
	"redoubt.dev/redoubt/isolation/probe"
)

// program is the canary, built from its own module, so that these tests break
// when it and this package no longer speak the same words.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "redoubt-test-canary-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "canary")
	cmd := exec.Command("go", "build", "-o", path, ".")
	cmd.Dir = "../../deploy/runtimes/canary"
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=mod", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the canary: %w\n%s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := program(); err == nil {
		_ = os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

// hostTask runs the canary as a plain process of this host: what a runtime
// does that silently isolates nothing.
type hostTask struct {
	cmd   *exec.Cmd
	lines chan []byte
	kills *atomic.Int32
}

func (h hostTask) Pid() int { return h.cmd.Process.Pid }
func (h hostTask) Output(ctx context.Context) ([]byte, error) {
	select {
	case l := <-h.lines:
		return l, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
func (h hostTask) Kill(context.Context) error {
	h.kills.Add(1)
	_ = h.cmd.Process.Kill()
	_ = h.cmd.Wait()
	return nil
}

type launchFunc func(ctx context.Context, id string, runtime isolation.Name, variant string, args []string) (Task, error)

func (f launchFunc) Launch(ctx context.Context, id string, runtime isolation.Name, variant string, args []string) (Task, error) {
	return f(ctx, id, runtime, variant, args)
}

// onHostLauncher starts the canary in namespaces of its own but on this kernel
// and without any filter.
func onHostLauncher(t *testing.T, kills *atomic.Int32) Launcher {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: the canary gets namespaces of its own")
	}
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	return launchFunc(func(_ context.Context, _ string, _ isolation.Name, _ string, args []string) (Task, error) {
		cmd := exec.Command(path, args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
		}
		pipe, err := cmd.StdoutPipe()
		if err != nil {
			return nil, err
		}
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		h := hostTask{cmd: cmd, lines: make(chan []byte, 1), kills: kills}
		go func() {
			var buf bytes.Buffer
			b := make([]byte, 64<<10)
			for {
				n, err := pipe.Read(b)
				buf.Write(b[:n])
				if bytes.IndexByte(buf.Bytes(), '\n') >= 0 {
					h.lines <- buf.Bytes()
					return
				}
				if err != nil {
					return
				}
			}
		}()
		return h, nil
	})
}

func quiet(t *testing.T) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

var gvisor = probe.Candidate{Runtime: "gvisor", Variant: "systrap", Class: isolation.ClassSandbox, Digest: "sha256:aa"}

// TestCanaryIsLookedAt is the promise of this package: a runtime that claims a
// sandbox and runs the canary on the host's kernel is found out, by a real
// canary on the real kernel.
func TestCanaryIsLookedAt(t *testing.T) {
	var kills atomic.Int32
	r := NewRunner(onHostLauncher(t, &kills), quiet(t))
	got, err := r.RunCanary(t.Context(), gvisor)
	if err != nil {
		t.Fatal(err)
	}
	if got.Class != isolation.ClassUnknown || got.Reason != "claims to be gVisor, but the canary saw the host's kernel" {
		t.Errorf("got %v, %q", got.Class, got.Reason)
	}
	if _, ok := r.Age("gvisor", "systrap"); ok {
		t.Error("it counts as proven")
	}
	if kills.Load() == 0 {
		t.Error("the canary was not removed")
	}
	// And the finding that placement reads.
	exe, _ := os.Executable()
	in := probe.Inputs{Binaries: probe.Binaries{Containerd: exe, Shim: exe, Runsc: exe, Wrapper: exe},
		Host: isolation.Host{KVM: isolation.KVM{Verdict: isolation.KVMAbsent, Reason: "there is no /dev/kvm"}},
		Find: func(string) (string, error) { return "", os.ErrNotExist }}
	for _, f := range probe.Findings(t.Context(), in, r) {
		if f.Runtime == "gvisor" && (f.State != isolation.StateUnusable || f.Fix == "") {
			t.Errorf("gvisor: %v %q %q", f.State, f.Reason, f.Fix)
		}
	}
}

func TestContainerWithoutFilterIsRefuted(t *testing.T) {
	var kills atomic.Int32
	r := NewRunner(onHostLauncher(t, &kills), quiet(t))
	got, err := r.RunCanary(t.Context(), probe.Candidate{Runtime: "runc", Class: isolation.ClassContainer})
	if err != nil {
		t.Fatal(err)
	}
	// A plain process finds the host's devices before anything else.
	if got.Class != isolation.ClassUnknown || !strings.Contains(got.Reason, "host's device") {
		t.Errorf("got %v, %q", got.Class, got.Reason)
	}
}

// TestCanaryAndThisPackageSpeakTheSameWords runs the program and reads its
// answer strictly.
func TestCanaryAndThisPackageSpeakTheSameWords(t *testing.T) {
	var kills atomic.Int32
	task, err := onHostLauncher(t, &kills).Launch(t.Context(), "", "", "", []string{"nonce", "30"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = task.Kill(t.Context()) }()
	text, err := task.Output(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	var s Sight
	if err := dec.Decode(&s); err != nil {
		t.Fatal(err)
	}
	tried := map[string]bool{}
	for _, try := range s.Tries {
		tried[try.What] = true
	}
	for _, what := range mustRefuse {
		if !tried[what] {
			t.Errorf("the canary does not try: %s", what)
		}
	}
	if s.Nonce != "nonce" || len(s.VDSO) != 64 || s.BootID == "" || s.PID != 1 || len(s.Namespaces) == 0 || s.UptimeNs == 0 {
		t.Errorf("answer: %+v", s)
	}
	if host, err := hostKernel(); err != nil || host.vdso != s.VDSO {
		t.Errorf("the vDSO inside %s and outside %s differ on one kernel (%v)", s.VDSO, host.vdso, err)
	}
	if took := time.Duration(s.TookNs); took > 5*time.Second {
		t.Errorf("the canary took %v", took)
	}
}

// fakeTask answers with a text or an error.
type fakeTask struct {
	pid    int
	text   []byte
	err    error
	killed *atomic.Int32
	kill   error
}

func (f fakeTask) Pid() int { return f.pid }
func (f fakeTask) Output(ctx context.Context) ([]byte, error) {
	if f.text == nil && f.err == nil {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return f.text, f.err
}
func (f fakeTask) Kill(ctx context.Context) error {
	f.killed.Add(1)
	if ctx.Err() != nil {
		return fmt.Errorf("killed with a context that is over: %w", ctx.Err())
	}
	return f.kill
}

func TestRunCanaryFailures(t *testing.T) {
	var killed atomic.Int32
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name     string
		launch   launchFunc
		noAnswer bool
		says     string
		kills    int32
	}{
		{"does not start", func(context.Context, string, isolation.Name, string, []string) (Task, error) {
			return nil, errors.New("exec format error")
		}, false, "exec format error", 0},
		{"containerd goes away", func(context.Context, string, isolation.Name, string, []string) (Task, error) {
			return nil, fmt.Errorf("start container: %w", driver.ErrUnavailable)
		}, true, "does not answer", 0},
		{"never answers", func(context.Context, string, isolation.Name, string, []string) (Task, error) {
			return fakeTask{killed: &killed}, nil
		}, true, "in time", 1},
		{"dies", func(context.Context, string, isolation.Name, string, []string) (Task, error) {
			return fakeTask{killed: &killed, err: errors.New("the canary ended without an answer")}, nil
		}, false, "without an answer", 1},
		{"talks nonsense", func(context.Context, string, isolation.Name, string, []string) (Task, error) {
			return fakeTask{killed: &killed, text: []byte("hello\n")}, nil
		}, false, "read the canary's answer", 1},
		{"boundary is gone", func(_ context.Context, _ string, _ isolation.Name, _ string, args []string) (Task, error) {
			return fakeTask{killed: &killed, pid: gone.Process.Pid, text: []byte(`{"nonce":"` + args[0] + "\"}\n")}, nil
		}, false, "process is gone", 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			killed.Store(0)
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			r := NewRunner(tt.launch, quiet(t))
			_, err := r.RunCanary(ctx, gvisor)
			if err == nil || errors.Is(err, probe.ErrNoAnswer) != tt.noAnswer || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v", err)
			}
			if killed.Load() != tt.kills {
				t.Errorf("killed %d times, want %d", killed.Load(), tt.kills)
			}
			if _, ok := r.Age("gvisor", "systrap"); ok {
				t.Error("it counts as proven")
			}
		})
	}
}

func TestOneCanaryAtATime(t *testing.T) {
	var running, most atomic.Int32
	r := NewRunner(launchFunc(func(context.Context, string, isolation.Name, string, []string) (Task, error) {
		if n := running.Add(1); n > most.Load() {
			most.Store(n)
		}
		time.Sleep(5 * time.Millisecond)
		running.Add(-1)
		return nil, errors.New("enough")
	}), quiet(t))
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() { _, _ = r.RunCanary(t.Context(), gvisor) })
	}
	wg.Wait()
	if most.Load() != 1 {
		t.Errorf("%d at once", most.Load())
	}
	// Who waits for its turn can give up.
	block := make(chan struct{})
	r = NewRunner(launchFunc(func(context.Context, string, isolation.Name, string, []string) (Task, error) {
		<-block
		return nil, errors.New("enough")
	}), quiet(t))
	wg.Go(func() { _, _ = r.RunCanary(context.Background(), gvisor) })
	for len(r.turn) == 0 {
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.RunCanary(ctx, gvisor); !errors.Is(err, probe.ErrNoAnswer) {
		t.Errorf("got %v", err)
	}
	close(block)
	wg.Wait()
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("{\"nonce\":\"x\",\"tries\":[{\"what\":\"bpf\",\"errno\":1}]}\n"))
	f.Add([]byte("{\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if s, err := parse(text); err == nil {
			judge(evidence{candidate: gvisor, nonce: "x", sight: s})
		}
	})
}
