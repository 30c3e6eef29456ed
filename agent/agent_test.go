package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/agent/driver/fake"
	"redoubt.dev/redoubt/agent/reconcile"
	"redoubt.dev/redoubt/agent/session"
	"redoubt.dev/redoubt/agent/store"
	"redoubt.dev/redoubt/identity"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

func enrol(t *testing.T, c *control, dir string) Member {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	m, err := Enroll(ctx, Enrolment{DataDir: dir, Token: c.tokenText(), Node: "n1", Site: "oslo", Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// launch runs an agent of dir on d until stop.
func launch(t *testing.T, dir string, d driver.Driver) (a *Agent, stop func()) {
	t.Helper()
	m, err := Enrolled(dir)
	if err != nil {
		t.Fatal(err)
	}
	src, err := identity.OpenDisk(IdentityDir(dir), quiet())
	if err != nil {
		t.Fatal(err)
	}
	a, err = New(Config{Member: m, DataDir: dir, Version: "test"}, Deps{Host: FakeHost(d), Identity: src, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	return a, func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		src.Close()
	}
}

func web(uid, script string) *redoubtv1.Assignment {
	a := fullAssignment()
	grace := int64(1)
	a.Uid, a.Spec = uid, &redoubtv1.Workload{Kind: "Service", TerminationGracePeriodSeconds: &grace, Containers: []*redoubtv1.Container{{Name: "web", Image: "carried.redoubt/toolbox:1", Command: []string{"sh", "-c", script}}}}
	return a
}

func TestEnrolRunExecLogsRestartStop(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	dir := t.TempDir()
	host := new(fake.Host)
	defer host.Close()
	d := host.NewDriver("n1")
	enrol(t, c, dir)
	agent, stop := launch(t, dir, d)
	c.assign(func() { c.assigned = []*redoubtv1.Assignment{web("u1", "echo hello; sleep 1000")} })
	running := func() bool {
		return c.status("u1").GetPhase() == redoubtv1.InstancePhase_INSTANCE_PHASE_RUNNING
	}
	eventually(t, "the instance runs", running)
	eventually(t, "the report arrives", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.report != nil })
	if c.hello.GetNode() != "n1" || c.hello.GetSite() != "oslo" || c.hello.GetBootId() == "" {
		t.Errorf("hello: %v", c.hello)
	}
	pid := c.status("u1").GetPid()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(agent.deps.Metrics)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`name:"redoubt_agent_session_up" help:"1 while a server answers this agent." type:GAUGE metric:{gauge:{value:1}}`,
		`label:{name:"phase" value:"running"} gauge:{value:1}`, `histogram:{sample_count:1 `,
		`label:{name:"state" value:"verified"}`, `redoubt_agent_log_bytes`, `redoubt_agent_svid_expiry_timestamp_seconds`,
	} {
		if text := strings.ReplaceAll(fmt.Sprint(families), "  ", " "); !strings.Contains(text, want) {
			t.Errorf("the metrics lack %s:\n%s", want, text)
		}
	}

	talk := func(open *redoubtv1.StreamOpen) (out string, code int32, problem *redoubtv1.AttachError) {
		done := make(chan struct{})
		var buf bytes.Buffer
		code = -1
		c.attach = func(s redoubtv1.AgentService_AttachServer) error {
			defer close(done)
			for {
				m, err := s.Recv()
				if err != nil {
					return nil
				}
				switch m := m.GetMessage().(type) {
				case *redoubtv1.AttachRequest_Logs:
					buf.Write(m.Logs)
				case *redoubtv1.AttachRequest_Error:
					problem = m.Error
				case *redoubtv1.AttachRequest_Exec:
					buf.Write(m.Exec.GetStdout())
					if e, ok := m.Exec.GetMessage().(*redoubtv1.ExecResponse_ExitCode); ok {
						code = e.ExitCode
					}
				}
			}
		}
		open.StreamId, open.ServerAddress, open.ServerId = "x", c.api, "s1"
		c.tell(&redoubtv1.SessionResponse{Message: &redoubtv1.SessionResponse_StreamOpen{StreamOpen: open}})
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Fatal("the agent did not attach")
		}
		return buf.String(), code, problem
	}
	exec := &redoubtv1.StreamOpen_Exec{Exec: &redoubtv1.ExecStart{Command: []string{"sh", "-c", "echo inside; exit 7"}}}
	if out, code, e := talk(&redoubtv1.StreamOpen{Uid: "u1", Request: exec}); out != "inside\n" || code != 7 || e != nil {
		t.Errorf("exec: %q, code %d, %v", out, code, e)
	}
	if _, _, e := talk(&redoubtv1.StreamOpen{Uid: "u9", Request: exec}); e == nil || !strings.Contains(e.GetMessage(), "not on this node") {
		t.Errorf("exec in what is not here: %v", e)
	}
	logs := &redoubtv1.StreamOpen_Logs{Logs: &redoubtv1.LogsRequest{Tail: -1}}
	if out, _, e := talk(&redoubtv1.StreamOpen{Uid: "u1", Request: logs}); out != "hello\n" || e != nil {
		t.Errorf("logs: %q, %v", out, e)
	}

	// The agent goes and comes: nothing happens to what runs, nor to its status.
	seq := c.status("u1").GetSequence()
	stop()
	if list, err := d.List(t.Context()); err != nil || len(list) != 1 || list[0].State != driver.StateRunning || int32(list[0].Pid) != pid {
		t.Fatalf("after the agent ended: %+v, %v", list, err)
	}
	_, stop = launch(t, dir, host.NewDriver("n1"))
	defer func() { stop() }()
	eventually(t, "a session again", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return len(c.sessions) > 0 })
	beats := c.beats.Load()
	eventually(t, "three heartbeats, which leave time for a wrong status", func() bool { return c.beats.Load() >= beats+3 })
	if s := c.status("u1"); s.GetPid() != pid || s.GetSequence() != seq {
		t.Errorf("status moved over a restart of the agent: %v", s)
	}

	// A spec that this node cannot run is rejected and says why.
	bad := web("u2", "true")
	bad.Instance, bad.Runtime, bad.Variant = "web-2", "kata-qemu", ""
	c.assign(func() { c.assigned = append(c.assigned, bad) })
	eventually(t, "the rejection", func() bool {
		s := c.status("u2")
		return s.GetPhase() == redoubtv1.InstancePhase_INSTANCE_PHASE_REJECTED && strings.Contains(s.GetMessage(), "kata-qemu is not on this node")
	})

	stopped := web("u1", "echo hello; sleep 1000")
	stopped.Stop = true
	c.assign(func() { c.assigned[0] = stopped })
	eventually(t, "the instance stops", func() bool {
		return c.status("u1").GetPhase() == redoubtv1.InstancePhase_INSTANCE_PHASE_STOPPED
	})
	c.assign(func() { c.assigned = nil })
	eventually(t, "nothing is left", func() bool {
		list, err := d.List(t.Context())
		left, _ := filepath.Glob(filepath.Join(dir, "logs", "*"))
		return err == nil && len(list) == 0 && len(left) == 0
	})
}

// A container's log of an instance that ended stays readable until the control
// plane forgets it; following it ends by itself.
func TestFollowedLogsEndWithTheInstance(t *testing.T) {
	dir := t.TempDir()
	st := openStore(t, dir)
	defer st.Close()
	b := &bulk{store: st, logs: dir}
	if _, err := st.PutFacts(store.Facts{UID: "u", Phase: store.Running}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(b.logPath("u"), []byte("one\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	done, first := make(chan error, 1), make(chan struct{}, 1)
	go func() {
		done <- b.Logs(t.Context(), "u", session.LogOptions{From: -1, Tail: -1, Follow: true}, func(c session.LogChunk) error {
			_, err := out.Write(c.Data)
			select {
			case first <- struct{}{}:
			default:
			}
			return err
		})
	}()
	<-first // it follows
	f, err := os.OpenFile(b.logPath("u"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("two\n"); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if _, err := st.PutFacts(store.Facts{UID: "u", Phase: store.Succeeded}); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if err != nil || out.String() != "one\ntwo\n" {
			t.Errorf("%q, %v", out.String(), err)
		}
	case <-time.After(time.Minute):
		t.Fatal("following did not end")
	}
}

func TestCutOffItWorksOnAndComesBack(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	dir := t.TempDir()
	host := new(fake.Host)
	defer host.Close()
	d := host.NewDriver("n1")
	enrol(t, c, dir)
	a, stop := launch(t, dir, d)
	c.assign(func() { c.assigned = []*redoubtv1.Assignment{web("u1", "sleep 1000")} })
	eventually(t, "it runs", func() bool { return c.status("u1").GetPhase() == redoubtv1.InstancePhase_INSTANCE_PHASE_RUNNING })
	first := c.status("u1").GetPid()
	c.refuse.Store(true)
	eventually(t, "the agent notices", func() bool { return !a.Connected() })
	stop()
	// Offline, the agent restarts and so does what crashes meanwhile.
	a, stop = launch(t, dir, host.NewDriver("n1"))
	defer func() { stop() }()
	if err := d.Signal(t.Context(), reconcile.ContainerID("u1"), "SIGKILL"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is restarted offline", func() bool {
		list, err := d.List(t.Context())
		return err == nil && len(list) == 1 && list[0].State == driver.StateRunning && int32(list[0].Pid) != first
	})
	c.refuse.Store(false)
	eventually(t, "the news arrives", func() bool { s := c.status("u1"); return s.GetRestarts() == 1 && s.GetPid() != first })
	_ = a
}

func TestEnrolmentSurvivesADroppedLink(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	c.drop.Store(1)
	dir := t.TempDir()
	m := enrol(t, c, dir)
	if m != (Member{Node: "n1", Site: "oslo", Cluster: "c1"}) {
		t.Errorf("enrolled as %+v", m)
	}
	// Again, with the token or without, changes nothing.
	if again := enrol(t, c, dir); again != m {
		t.Errorf("enrolled again as %+v", again)
	}
	key, err := os.Stat(filepath.Join(IdentityDir(dir), "key.pem"))
	if err != nil || key.Mode().Perm() != 0o600 {
		t.Errorf("the key's mode is %v, %v", key.Mode(), err)
	}
}

func TestEnrolmentThatIsRefusedSaysWhy(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	enrol(t, c, t.TempDir())
	other := newControl(t)
	foreign := other.token
	foreign.Addresses = []string{c.join}
	foreignText, err := foreign.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		e    Enrolment
		want string
	}{
		"a second key":   {Enrolment{Token: c.tokenText(), Node: "n1"}, "bound to another key"},
		"another site":   {Enrolment{Token: c.tokenText(), Node: "n1", Site: "rome"}, "the token is for site oslo"},
		"the host's":     {Enrolment{Token: c.tokenText()}, "bound to another key"},
		"a bad name":     {Enrolment{Token: c.tokenText(), Node: "N 1"}, "node"},
		"not a token":    {Enrolment{Token: "hello", Node: "n1"}, "not a join token"},
		"a cut token":    {Enrolment{Token: c.tokenText()[:40], Node: "n1"}, "join the fleet"},
		"not the server": {Enrolment{Token: foreignText, Node: "n1"}, "not one of the fleet that made the join token"},
	} {
		t.Run(name, func(t *testing.T) {
			tc.e.DataDir, tc.e.Log = t.TempDir(), quiet()
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			_, err := Enroll(ctx, tc.e)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
			if _, err := Enrolled(tc.e.DataDir); !errors.Is(err, ErrNotEnrolled) {
				t.Errorf("it counts as enrolled: %v", err)
			}
		})
	}
}

func TestIdentityIsRenewedInUseAndAfterExpiry(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	c.nodeTTL = 4 * time.Second
	dir := t.TempDir()
	host := new(fake.Host)
	defer host.Close()
	enrol(t, c, dir)
	a, stop := launch(t, dir, host.NewDriver("n1"))
	eventually(t, "a renewal at half life", func() bool { return c.renewed.Load() >= 2 })
	eventually(t, "a session", a.Connected)
	stop()
	// At rest for longer than its certificate lives.
	resting, err := identity.OpenDisk(IdentityDir(dir), quiet())
	if err != nil {
		t.Fatal(err)
	}
	if svid, err := resting.GetX509SVID(); err == nil {
		time.Sleep(time.Until(svid.Certificates[0].NotAfter) + 10*time.Millisecond)
	}
	a, stop = launch(t, dir, host.NewDriver("n1"))
	defer func() { stop() }()
	eventually(t, "the enrolled key renews what has expired", func() bool { return c.rescued.Load() == 1 })
	eventually(t, "a session again", a.Connected)
}

func TestADirectoryInUseOrOfAnotherFleetIsRefused(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	dir := t.TempDir()
	host := new(fake.Host)
	defer host.Close()
	m := enrol(t, c, dir)
	src, err := identity.OpenDisk(IdentityDir(dir), quiet())
	if err != nil {
		t.Fatal(err)
	}
	a, err := New(Config{Member: m, DataDir: dir}, Deps{Host: FakeHost(host.NewDriver("n1")), Identity: src, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(Config{Member: m, DataDir: dir}, Deps{Host: FakeHost(host.NewDriver("n1")), Identity: src, Log: quiet()}); !errors.Is(err, store.ErrInUse) {
		t.Errorf("a second agent: %v", err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	m.Cluster = "c2"
	if _, err := New(Config{Member: m, DataDir: dir}, Deps{Host: FakeHost(host.NewDriver("n1")), Identity: src, Log: quiet()}); !errors.Is(err, store.ErrCluster) {
		t.Errorf("another fleet's data: %v", err)
	}
}

// TestAssignmentsOfManyMegabytesArrive: a complete set is one message, larger
// than gRPC takes by default.
func TestAssignmentsOfManyMegabytesArrive(t *testing.T) {
	t.Parallel()
	c := newControl(t)
	dir := t.TempDir()
	host := new(fake.Host)
	defer host.Close()
	enrol(t, c, dir)
	c.assign(func() {
		for i := range 30 {
			a := web(fmt.Sprintf("u%d", i), "sleep 1000")
			a.Instance = fmt.Sprintf("web-%d", i)
			for range 8 {
				a.Spec.Containers[0].Env = append(a.Spec.Containers[0].Env, &redoubtv1.EnvVar{Name: fmt.Sprintf("V%d", len(a.Spec.Containers[0].Env)), Value: strings.Repeat("x", 30_000)})
			}
			c.assigned = append(c.assigned, a)
		}
	})
	_, stop := launch(t, dir, host.NewDriver("n1"))
	defer stop()
	eventually(t, "all thirty run", func() bool {
		for i := range 30 {
			if c.status(fmt.Sprintf("u%d", i)).GetPhase() != redoubtv1.InstancePhase_INSTANCE_PHASE_RUNNING {
				return false
			}
		}
		return true
	})
}
