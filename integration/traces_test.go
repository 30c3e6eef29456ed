package integration

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlptrace "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"redoubt.dev/redoubt/agent"
	"redoubt.dev/redoubt/agent/driver/fake"
	"redoubt.dev/redoubt/cmd/redoubt/cli"
	"redoubt.dev/redoubt/control"
	"redoubt.dev/redoubt/control/leader"
	"redoubt.dev/redoubt/deploy/otlp"
	"redoubt.dev/redoubt/identity"
	"redoubt.dev/redoubt/identity/attest"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
	"redoubt.dev/redoubt/proto/tracing"
)

// collector takes OTLP over HTTP, as an OpenTelemetry collector does.
type collector struct {
	url string

	mu    sync.Mutex
	raw   []byte
	spans []seenSpan
}

type seenSpan struct {
	*otlptrace.Span
	service string
}

func (s seenSpan) attr(key string) string {
	for _, kv := range s.Attributes {
		if kv.GetKey() == key {
			return cmp.Or(kv.GetValue().GetStringValue(), fmt.Sprint(kv.GetValue().GetIntValue()))
		}
	}
	return ""
}

func newCollector(t *testing.T) *collector {
	t.Helper()
	c := &collector{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var req coltrace.ExportTraceServiceRequest
		if err != nil || r.URL.Path != "/v1/traces" || proto.Unmarshal(body, &req) != nil {
			http.Error(w, "no", http.StatusBadRequest)
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.raw = append(c.raw, body...)
		for _, rs := range req.GetResourceSpans() {
			service := ""
			for _, kv := range rs.GetResource().GetAttributes() {
				if kv.GetKey() == "service.name" {
					service = kv.GetValue().GetStringValue()
				}
			}
			for _, ss := range rs.GetScopeSpans() {
				for _, sp := range ss.GetSpans() {
					c.spans = append(c.spans, seenSpan{sp, service})
				}
			}
		}
	}))
	t.Cleanup(s.Close)
	c.url = s.URL
	return c
}

// trace are the spans of one.
func (c *collector) trace(id string) []seenSpan {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []seenSpan
	for _, s := range c.spans {
		if hex.EncodeToString(s.TraceId) == id {
			out = append(out, s)
		}
	}
	return out
}

// traceOf is the id of the trace that an apply of the workload began.
func (c *collector) traceOf(workload string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.spans {
		if s.Name == tracing.APIApply && s.attr(tracing.KeyWorkload) == workload {
			return hex.EncodeToString(s.TraceId)
		}
	}
	return ""
}

// tracedFleet is two servers, of which s1 leads, and a node with the fake driver,
// all of which send their spans to one collector.
type tracedFleet struct {
	t         *testing.T
	c         *collector
	dir       string
	driver    *fake.Driver
	follower  string // a context that knows s2 alone
	stopAgent func()
	parts     sync.WaitGroup
	log       *slog.Logger
}

func (f *tracedFleet) traced(ctx context.Context, service string, run func(context.Context, tracing.Provider) error) {
	out, err := otlp.New(otlp.Config{Endpoint: f.c.url, Service: service, Every: 50 * time.Millisecond, Getenv: func(string) string { return "" }, Log: f.log})
	if err != nil {
		f.t.Error(err)
		return
	}
	if err := out.Run(ctx, run); err != nil && ctx.Err() == nil {
		f.t.Errorf("%s: %v", service, err)
	}
}

func newTracedFleet(t *testing.T) *tracedFleet {
	t.Helper()
	f := &tracedFleet{t: t, c: newCollector(t), dir: t.TempDir(), driver: fake.New(), log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	if os.Getenv("REDOUBT_TEST_LOG") != "" {
		f.log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { cancel(); f.parts.Wait(); f.driver.Close() })
	timing := leader.DefaultTiming()
	timing.Heartbeat = time.Second
	serve := func(id string) {
		ready := make(chan struct{})
		f.parts.Go(func() {
			f.traced(ctx, "server-"+id, func(ctx context.Context, p tracing.Provider) error {
				return control.Run(ctx, control.Config{Dir: f.dir + "/" + id, Version: "test", Timing: timing, Log: f.log, Traces: p, Ready: func() { close(ready) }})
			})
		})
		select {
		case <-ready:
		case <-time.After(time.Minute):
			t.Fatalf("server %s is not ready after a minute", id)
		}
	}
	at := func() control.Addresses {
		return control.Addresses{API: freeAddress(t), Raft: freeAddress(t), Enroll: freeAddress(t)}
	}
	admin := filepath.Join(f.dir, "admin.context")
	if err := control.Init(control.InitConfig{Dir: f.dir + "/s1", ID: "s1", TrustDomain: "test.fleet", Addresses: at(), AdminContext: admin, Log: f.log}); err != nil {
		t.Fatal(err)
	}
	serve("s1")
	file, err := identity.LoadFile(admin)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := identity.NewConn("passthrough:///"+file.Addresses[0], file.Source(), identity.AuthorizeServers(file.SVID.ID.TrustDomain()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	client := redoubtv1.NewFleetServiceClient(conn)
	token := func(req *redoubtv1.CreateJoinTokenRequest) string {
		r, err := client.CreateJoinToken(ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		return r.GetToken()
	}
	second := at()
	if err := control.Join(ctx, control.JoinConfig{Dir: f.dir + "/s2", ID: "s2", Addresses: second, Token: token(&redoubtv1.CreateJoinTokenRequest{Role: "server"}), Version: "test", Log: f.log}); err != nil {
		t.Fatal(err)
	}
	serve("s2")
	f.trustAll(ctx, client, file)
	f.follower = filepath.Join(f.dir, "follower.context")
	file.Addresses = []string{second.API}
	if err := identity.SaveFile(f.follower, file); err != nil {
		t.Fatal(err)
	}
	if _, err := agent.Enroll(ctx, agent.Enrolment{DataDir: f.dir + "/n1", Token: token(&redoubtv1.CreateJoinTokenRequest{Node: "n1", Site: "oslo"}), Node: "n1", Site: "oslo", Log: f.log}); err != nil {
		t.Fatal(err)
	}
	f.startAgent(ctx)
	t.Cleanup(func() { f.stopAgent() })
	return f
}

// trustAll adds the authorities of both servers to the bundle of file.
func (f *tracedFleet) trustAll(ctx context.Context, client redoubtv1.FleetServiceClient, file identity.File) {
	f.t.Helper()
	key, err := identity.NewKey()
	if err != nil {
		f.t.Fatal(err)
	}
	csr, err := attest.NewCSR(key)
	if err != nil {
		f.t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		r, err := client.RenewIdentity(ctx, &redoubtv1.RenewIdentityRequest{Csr: csr})
		if err != nil {
			f.t.Fatal(err)
		}
		for _, der := range r.GetBundle() {
			cert, err := x509.ParseCertificate(der)
			if err != nil {
				f.t.Fatal(err)
			}
			file.Bundle.AddX509Authority(cert)
		}
		if len(r.GetBundle()) == 2 {
			return
		}
		if time.Now().After(end) {
			f.t.Fatal("after a minute the trust bundle holds one authority")
		}
	}
}

// startAgent begins a life of the node's agent.
func (f *tracedFleet) startAgent(ctx context.Context) {
	f.t.Helper()
	member, err := agent.Enrolled(f.dir + "/n1")
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	f.stopAgent = func() { cancel(); <-done }
	f.parts.Go(func() {
		defer close(done)
		f.traced(ctx, "agent", func(ctx context.Context, p tracing.Provider) error {
			disk, err := identity.OpenDisk(agent.IdentityDir(f.dir+"/n1"), f.log)
			if err != nil {
				return err
			}
			defer disk.Close()
			a, err := agent.New(agent.Config{Member: member, DataDir: f.dir + "/n1", Version: "test"}, agent.Deps{Host: agent.FakeHost(f.driver), Identity: disk, Log: f.log, Traces: p})
			if err != nil {
				return err
			}
			return a.Run(ctx)
		})
	})
}

// apply does so as a person would, at the follower, and waits until it is ready.
func (f *tracedFleet) apply(file string, flags ...string) error {
	f.t.Helper()
	path := filepath.Join(f.t.TempDir(), "w.yml")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var out, complaints strings.Builder
	code := cli.Run(ctx, cli.Env{Args: append([]string{"--context", f.follower, "apply", path}, flags...), Stdin: strings.NewReader(""), Stdout: &out, Stderr: &complaints,
		Getenv: func(name string) string {
			return map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": f.c.url}[name]
		}})
	if code != 0 {
		return fmt.Errorf("apply ends with %d: %s%s", code, out.String(), complaints.String())
	}
	return nil
}

// await polls until the spans of a trace satisfy ok.
func (f *tracedFleet) await(workload, what string, ok func([]seenSpan) bool) []seenSpan {
	f.t.Helper()
	var spans []seenSpan
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if id := f.c.traceOf(workload); id != "" {
			if spans = f.c.trace(id); ok(spans) {
				return spans
			}
		}
	}
	f.t.Fatalf("%s: after a minute there is no %s; there is\n%s", workload, what, outline(spans))
	return nil
}

func named1(spans []seenSpan, name, service string) *seenSpan {
	for _, s := range spans {
		if s.Name == name && (service == "" || s.service == service) {
			return &s
		}
	}
	return nil
}

// outline draws a trace as a tree.
func outline(spans []seenSpan) string {
	var b strings.Builder
	var draw func(parent []byte, depth int)
	draw = func(parent []byte, depth int) {
		for _, s := range spans {
			if string(s.ParentSpanId) == string(parent) {
				fmt.Fprintf(&b, "%s%s (%s) %s %s\n", strings.Repeat("  ", depth), s.Name, s.service, s.attr(tracing.KeyInstance), s.GetStatus().GetMessage())
				draw(s.SpanId, depth+1)
			}
		}
	}
	slices.SortStableFunc(spans, func(a, b seenSpan) int { return cmp.Compare(a.StartTimeUnixNano, b.StartTimeUnixNano) })
	draw(nil, 0)
	return b.String()
}

// TestAPlacementIsOneTrace: from the command over a follower, the leader and the
// log to the agent and back, everything is in one trace, below what caused it; a
// start that fails says why; an agent that ends midway breaks nothing; and no value
// of a variable is in it.
func TestAPlacementIsOneTrace(t *testing.T) {
	f := newTracedFleet(t)
	const secret = "hunter2-is-nobodys-business"
	var begun, release = make(chan struct{}), make(chan struct{})
	var slow, broken atomic.Int32
	f.driver.OnEnsureImage = func(ref string) error {
		switch {
		case strings.Contains(ref, "broken") && broken.Add(1) == 1:
			return errors.New("the registry is on fire")
		case strings.Contains(ref, "slow") && slow.Add(1) == 1:
			close(begun)
			<-release
			return errors.New("interrupted")
		}
		return nil
	}
	workload := func(name, image string) string {
		return fmt.Sprintf(`kind: Service
name: %s
isolation: { floor: container }
containers:
- name: main
  image: %s
  command: [sh, -c, "while true; do sleep 1; done"]
  env: [{ name: PASSWORD, value: %s }]
`, name, image, secret)
	}
	if err := f.apply(workload("web", "registry.example/web:1"), "--wait"); err != nil {
		t.Fatal(err)
	}
	all := []struct{ name, service, below, belowService string }{
		{"redoubt apply", "redoubt", "", ""},
		{tracing.APIApply, "server-s2", "redoubt apply", "redoubt"},
		{tracing.APIForward, "server-s2", tracing.APIApply, "server-s2"},
		{tracing.APIApply, "server-s1", tracing.APIForward, "server-s2"},
		{tracing.RaftPropose, "server-s1", tracing.APIApply, "server-s1"},
		{tracing.InstancePlace, "server-s1", tracing.APIApply, "server-s1"},
		{tracing.AssignmentStore, "agent", tracing.InstancePlace, "server-s1"},
		{tracing.InstanceStart, "agent", tracing.InstancePlace, "server-s1"},
		{tracing.ImageFetch, "agent", tracing.InstanceStart, "agent"},
		{tracing.NetworkAttach, "agent", tracing.InstanceStart, "agent"},
		{tracing.ContainerStart, "agent", tracing.InstanceStart, "agent"},
		{tracing.InstanceRunning, "server-s1", tracing.InstancePlace, "server-s1"},
		{tracing.InstanceReady, "agent", tracing.InstancePlace, "server-s1"},
		{tracing.StatusReport, "agent", tracing.InstancePlace, "server-s1"},
	}
	complete := func(spans []seenSpan) bool {
		for _, w := range all {
			if named1(spans, w.name, w.service) == nil {
				return false
			}
		}
		return true
	}
	spans := f.await("default/web", "complete trace", complete)
	t.Logf("the trace:\n%s", outline(spans))
	for _, w := range all {
		s := named1(spans, w.name, w.service)
		if w.below == "" {
			if len(s.ParentSpanId) != 0 {
				t.Errorf("%s has a parent", w.name)
			}
			continue
		}
		above := named1(spans, w.below, w.belowService)
		if string(s.ParentSpanId) != string(above.SpanId) {
			t.Errorf("%s of %s is not below %s of %s:\n%s", w.name, w.service, w.below, w.belowService, outline(spans))
		}
		// All run on one clock here. A kernel counts the begin of a process in
		// hundredths of a second.
		if w.name != tracing.InstanceReady && s.StartTimeUnixNano < above.StartTimeUnixNano {
			t.Errorf("%s begins before %s", w.name, w.below)
		}
		if s.GetStatus().GetMessage() != "" {
			t.Errorf("%s failed: %s", w.name, s.GetStatus().GetMessage())
		}
	}
	for _, name := range []string{tracing.InstancePlace, tracing.InstanceStart, tracing.InstanceRunning, tracing.InstanceReady, tracing.StatusReport, tracing.AssignmentStore} {
		s := named1(spans, name, "")
		for key, want := range map[string]string{tracing.KeyNode: "n1", tracing.KeySite: "oslo", tracing.KeyWorkload: "default/web", tracing.KeyInstance: "web-1", tracing.KeyRuntime: s.attr(tracing.KeyRuntime)} {
			if got := s.attr(key); got != want || got == "" {
				t.Errorf("%s: %s is %q, not %q", name, key, got, want)
			}
		}
	}

	// A start that fails says why, and the next is in the same trace.
	if err := f.apply(workload("late", "registry.example/broken:1"), "--wait"); err != nil {
		t.Fatal(err)
	}
	spans = f.await("default/late", "report after a failed start", func(s []seenSpan) bool { return named1(s, tracing.StatusReport, "") != nil })
	failed := 0
	for _, s := range spans {
		if (s.Name == tracing.InstanceStart || s.Name == tracing.ImageFetch) && s.GetStatus().GetCode() == otlptrace.Status_STATUS_CODE_ERROR {
			failed++
			if !strings.Contains(s.GetStatus().GetMessage(), "the registry is on fire") {
				t.Errorf("%s failed, and says %q", s.Name, s.GetStatus().GetMessage())
			}
		}
	}
	if failed != 2 {
		t.Errorf("a start failed once, and %d spans say so:\n%s", failed, outline(spans))
	}

	// The agent ends in the middle of a start; the next one goes on with it.
	if err := f.apply(workload("torn", "registry.example/slow:1")); err != nil {
		t.Fatal(err)
	}
	select {
	case <-begun:
	case <-time.After(time.Minute):
		t.Fatal("no start after a minute")
	}
	ended := make(chan struct{})
	go func() { defer close(ended); f.stopAgent() }()
	close(release)
	<-ended
	f.startAgent(context.Background())
	f.await("default/torn", "whole trace after a restart of the agent", complete)

	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	if strings.Contains(string(f.c.raw), secret) {
		t.Error("the value of a variable was sent to the collector")
	}
	for _, s := range f.c.spans {
		if name, _, _ := strings.Cut(s.Name, " "); !slices.Contains(tracing.Names, name) {
			t.Errorf("a span is called %q, which is not listed", s.Name)
		}
		for _, kv := range s.Attributes {
			if !slices.Contains(tracing.Keys, kv.GetKey()) {
				t.Errorf("%s has the attribute %q, which is not listed", s.Name, kv.GetKey())
			}
		}
		for _, e := range s.Events {
			if !slices.Contains(tracing.Events, e.GetName()) {
				t.Errorf("%s has the event %q, which is not listed", s.Name, e.GetName())
			}
		}
	}
}
