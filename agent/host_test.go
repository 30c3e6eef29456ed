package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/agent/logs"
	"redoubt.dev/redoubt/agent/reconcile"
	"redoubt.dev/redoubt/deploy/runtimes"
	"redoubt.dev/redoubt/identity"
	"redoubt.dev/redoubt/isolation/probe"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// TestRealHost runs the whole agent on this machine: containerd, gVisor, runc,
// network, canaries. It leaves nothing behind.
func TestRealHost(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	bundle, err := runtimes.Embedded()
	if err != nil {
		t.Skipf("needs the carried runtimes: %v", err)
	}
	// Not shared: another run of this test would take it away under this one.
	paths, err := bundle.Unpack(t.Context(), t.TempDir())
	if err != nil {
		t.Skipf("needs the carried runtimes: %v", err)
	}
	before := links(t)

	c := newControl(t)
	dir := t.TempDir()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	enrol(t, c, dir)
	// The host's objects are named by node: other tests may have an n1.
	host := HostConfig{Node: fmt.Sprintf("n1-%d", os.Getpid()), DataDir: dir, Log: log,
		Binaries: probe.Binaries{Containerd: paths.Containerd, Shim: paths.Shim, Runc: paths.Runc, Runsc: paths.Runsc, Wrapper: paths.Wrapper},
		Carried:  map[string]string{"carried.redoubt/toolbox:1": paths.ToolboxImage, "carried.redoubt/canary:1": paths.CanaryImage},
		Subnet:   netip.MustParsePrefix("10.95.117.0/24")}

	run := func() (h *RealHost, stop func()) {
		h, err := OpenHost(t.Context(), host)
		if err != nil {
			t.Fatal(err)
		}
		src, err := identity.OpenDisk(IdentityDir(dir), log)
		if err != nil {
			t.Fatal(err)
		}
		m, err := Enrolled(dir)
		if err != nil {
			t.Fatal(err)
		}
		a, err := New(Config{Member: m, DataDir: dir, Version: "test"}, Deps{Host: h.Host(), Identity: src, Log: log})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- a.Run(ctx) }()
		return h, func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Run: %v", err)
			}
			src.Close()
		}
	}
	h, stop := run()
	torn := false
	defer func() {
		if !torn {
			stop()
			_ = h.Teardown(context.Background())
		}
	}()

	begin := time.Now()
	for deadline := time.Now().Add(90 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		c.mu.Lock()
		rep := c.report
		c.mu.Unlock()
		if rep != nil {
			t.Logf("first report after %s", time.Since(begin).Round(time.Millisecond))
			proven := map[string]bool{}
			for _, f := range rep.GetFindings() {
				proven[f.GetRuntime()+"/"+f.GetVariant()] = f.GetState() == redoubtv1.FindingState_FINDING_STATE_VERIFIED
				t.Logf("%s/%s: %s %s, %d calls; %s", f.GetRuntime(), f.GetVariant(), f.GetState(), f.GetClass(), f.GetTerms().GetSurface().GetSyscalls(), f.GetReason())
			}
			if !proven["gvisor/systrap"] || !proven["runc/"] {
				t.Fatal("gVisor and runc are not proven")
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no report")
		}
	}

	sandboxed, plain := web("u1", "echo hello; touch /ok /alive; httpd -p 8080 -h /; while true; do sleep 1; done"), web("u2", "exit 3")
	second, two := uint32(1), uint32(2)
	sandboxed.Spec.Containers[0].ReadinessProbe = &redoubtv1.Probe{HttpGet: &redoubtv1.HTTPGetAction{Path: "/ok", Port: "8080"}, PeriodSeconds: &second, FailureThreshold: &two}
	sandboxed.Spec.Containers[0].LivenessProbe = &redoubtv1.Probe{Exec: &redoubtv1.ExecAction{Command: []string{"cat", "/alive"}}, PeriodSeconds: &second, FailureThreshold: &two, TimeoutSeconds: new(uint32)}
	*sandboxed.Spec.Containers[0].LivenessProbe.TimeoutSeconds = 20
	plain.Instance, plain.Runtime, plain.Variant, plain.Floor = "batch-1", "runc", "", redoubtv1.IsolationClass_ISOLATION_CLASS_CONTAINER
	plain.Spec.Kind, plain.Spec.RestartPolicy = "Job", "Never"
	c.assign(func() { c.assigned = []*redoubtv1.Assignment{sandboxed, plain} })
	eventually(t, "the service runs and is measured", func() bool {
		s := c.status("u1")
		return s.GetPhase() == redoubtv1.InstancePhase_INSTANCE_PHASE_RUNNING && s.GetMeasured().GetSurface().GetMeasured() && s.GetNotReady() == ""
	})
	eventually(t, "the job has failed with its code", func() bool {
		s := c.status("u2")
		return s.GetPhase() == redoubtv1.InstancePhase_INSTANCE_PHASE_FAILED && s.GetExitCode() == 3
	})
	s := c.status("u1")
	t.Logf("web-1: pid %d, %s, %d host calls reachable", s.GetPid(), s.GetAddress(), s.GetMeasured().GetSurface().GetSyscalls())
	if !strings.HasPrefix(s.GetAddress(), "10.95.117.") || s.GetMeasured().GetSurface().GetSyscalls() > probe.SandboxCalls {
		t.Errorf("status: %v", s)
	}

	if facts, err := probe.Host(t.Context()); err != nil || s.GetKernel() == "" || s.GetKernel() == facts.Kernel {
		t.Errorf("in gVisor it sees kernel %q, the host has %q, %v", s.GetKernel(), facts.Kernel, err)
	}

	// Another agent process: what runs is adopted.
	stop()
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	c.mu.Lock()
	delete(c.statuses, "u1")
	c.mu.Unlock()
	h, stop = run()
	// Its first word may be what the earlier process stored. Had it touched the
	// instance after that, the count of restarts below would show it.
	eventually(t, "the other agent measured it", func() bool {
		n := c.status("u1")
		return n.GetPhase() == redoubtv1.InstancePhase_INSTANCE_PHASE_RUNNING && n.GetMeasured().GetSurface().GetMeasured() && n.GetKernel() == s.GetKernel() && n.GetNotReady() == ""
	})
	if again := c.status("u1"); again.GetPid() != s.GetPid() || !again.GetStarted().AsTime().Equal(s.GetStarted().AsTime()) || again.GetRestarts() != 0 {
		t.Errorf("a restart of the agent touched it: %v, was %v", again, s)
	}

	// Its port is reached as a forward does, and one where nothing listens is not.
	reach := h.Host().Inside
	if conn, err := reach(t.Context(), "u1", 8080); err != nil {
		t.Error(err)
	} else {
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		_, _ = io.WriteString(conn, "GET /ok HTTP/1.0\r\n\r\n")
		if answer, err := io.ReadAll(conn); err != nil || !strings.HasPrefix(string(answer), "HTTP/1.") || !strings.Contains(string(answer), " 200 ") {
			t.Errorf("its port answers %q, %v", answer, err)
		}
		conn.Close()
	}
	if _, err := reach(t.Context(), "u1", 81); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a port where nothing listens: %v", err)
	}
	// What it holds is read and written through its own tar.
	var there bytes.Buffer
	copied := func(stdin io.Reader, out io.Writer, command ...string) {
		t.Helper()
		if code, err := h.driver.Exec(t.Context(), reconcile.ContainerID("u1"), driver.ExecSpec{Command: command}, driver.Streams{Stdin: stdin, Stdout: out}); err != nil || code != 0 {
			t.Errorf("%q: %d, %v", command, code, err)
		}
	}
	copied(nil, &there, "tar", "-cf", "-", "-C", "/bin", "./busybox")
	copied(bytes.NewReader(there.Bytes()), io.Discard, "tar", "-xf", "-", "-C", "/tmp")
	copied(nil, io.Discard, "cmp", "/bin/busybox", "/tmp/busybox")

	// The sentry is killed: it is restarted.
	for i := range 20 {
		var out, errs bytes.Buffer
		if code, err := h.driver.Exec(t.Context(), reconcile.ContainerID("u1"), driver.ExecSpec{Command: []string{"sh", "-c", "echo in"}}, driver.Streams{Stdout: &out, Stderr: &errs}); err != nil || code != 0 || out.String() != "in\n" {
			t.Errorf("exec %d: %d, %v, %q, %q", i, code, err, out.String(), errs.String())
		}
	}
	if err := h.driver.Signal(t.Context(), reconcile.ContainerID("u1"), "SIGKILL"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is restarted", func() bool {
		n := c.status("u1")
		return n.GetRestarts() == 1 && n.GetPhase() == redoubtv1.InstancePhase_INSTANCE_PHASE_RUNNING && n.GetPid() != s.GetPid()
	})
	if n := c.status("u1"); n.GetAddress() != s.GetAddress() {
		t.Errorf("its address moved from %s to %s", s.GetAddress(), n.GetAddress())
	}
	// What it wrote before and after is told apart.
	var earlier strings.Builder
	if err := logs.Read(t.Context(), filepath.Join(dir, "logs", "u1.log"), logs.Options{From: -1, Tail: -1, Previous: true}, func(c logs.Chunk) error { earlier.Write(c.Data); return nil }); err != nil || earlier.String() != "hello\n" {
		t.Errorf("the run before wrote %q, %v", earlier.String(), err)
	}

	// Its probes reach it from the host, and inside.
	inside := func(script string) {
		t.Helper()
		if code, err := h.driver.Exec(t.Context(), reconcile.ContainerID("u1"), driver.ExecSpec{Command: []string{"sh", "-c", script}}, driver.Streams{}); err != nil || code != 0 {
			t.Fatalf("%s: %d, %v", script, code, err)
		}
	}
	eventually(t, "it is ready again", func() bool { return c.status("u1").GetNotReady() == "" })
	inside("rm /ok")
	eventually(t, "it is not ready", func() bool { return c.status("u1").GetNotReady() == "readiness: GET :8080/ok: 404, 2 times" })
	inside("rm /alive")
	eventually(t, "it is restarted for its liveness, and ready", func() bool {
		n := c.status("u1")
		return n.GetRestarts() == 2 && n.GetPhase() == redoubtv1.InstancePhase_INSTANCE_PHASE_RUNNING && n.GetNotReady() == "" &&
			strings.HasPrefix(n.GetLastEnd(), "liveness: exec cat /alive: exit code 1: cat: ")
	})

	c.assign(func() { c.assigned = nil })
	eventually(t, "nothing is left of the instances", func() bool {
		list, err := h.driver.List(t.Context())
		return err == nil && len(list) == 0 && len(h.network.Attached()) == 0
	})
	stop()
	torn = true
	if err := h.Teardown(context.Background()); err != nil {
		t.Fatal(err)
	}
	if after := links(t); after != before {
		t.Errorf("links before:\n%s\nafter:\n%s", before, after)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), dir) {
		t.Errorf("mounts are left:\n%s", mounts)
	}
}

func links(t *testing.T) string {
	t.Helper()
	list, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, l := range list {
		if strings.HasPrefix(l.Attrs().Name, "rd") {
			continue // another test's node
		}
		names = append(names, l.Attrs().Name)
	}
	return strings.Join(names, " ")
}
