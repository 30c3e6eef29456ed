package health

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	grpchealth "google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"redoubt.dev/redoubt/agent/driver"
)

var quiet = slog.New(slog.DiscardHandler)

func run(t *testing.T, m *Monitor) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// A command that hangs is killed at its time-out, never runs beside another, and
// counts as failed.
func TestAHangingCommandNeverPilesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var inside, most, ran atomic.Int32
		m := New(Deps{Log: quiet, Exec: func(ctx context.Context, _ driver.ID, _ driver.ExecSpec, _ driver.Streams) (int, error) {
			ran.Add(1)
			most.Store(max(most.Load(), inside.Add(1)))
			defer inside.Add(-1)
			<-ctx.Done()
			time.Sleep(30 * time.Second) // it is killed, which takes its time
			return 0, ctx.Err()
		}})
		stop := run(t, m)
		hang := func(failure int) *Probe {
			return &Probe{Exec: []string{"hang"}, Period: time.Second, Timeout: 5 * time.Second, Success: 1, Failure: failure}
		}
		m.Set([]Target{{UID: "a", Attempt: 1, Probes: Probes{Liveness: hang(3), Readiness: hang(1)}}})
		time.Sleep(10 * time.Minute)
		stop()
		if most.Load() != 1 {
			t.Errorf("%d commands ran at once", most.Load())
		}
		if inside.Load() != 0 {
			t.Error("a command outlives Run")
		}
		want := "liveness: exec hang: no answer within 5s, 3 times"
		if r := m.Reports()["a"]; r.Dead != want || r.NotReady == "" || r.Attempt != 1 {
			t.Errorf("got %+v, want %q", r, want)
		}
		if n := ran.Load(); n < 4 || n > 8 {
			t.Errorf("%d commands ran, and none should once it is condemned", n)
		}
	})
}

func TestOnlyTheAttemptThatRunsIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var code atomic.Int32
		code.Store(1)
		m := New(Deps{Log: quiet, Exec: func(_ context.Context, _ driver.ID, _ driver.ExecSpec, s driver.Streams) (int, error) {
			fmt.Fprintln(s.Stderr, "no luck\x1b[2J")
			return int(code.Load()), nil
		}})
		stop := run(t, m)
		defer stop()
		p := Probes{Liveness: &Probe{Exec: []string{"x"}, Period: time.Second, Timeout: time.Second, Success: 1, Failure: 2}}
		m.Set([]Target{{UID: "a", Attempt: 1, Probes: p}})
		time.Sleep(time.Minute)
		if r := m.Reports()["a"]; r.Dead != "liveness: exec x: exit code 1: no luck[2J, 2 times" {
			t.Fatalf("got %+v", r)
		}
		code.Store(0)
		m.Set([]Target{{UID: "a", Attempt: 2, Probes: p}})
		if r, ok := m.Reports()["a"]; ok {
			t.Errorf("the next attempt begins with %+v", r)
		}
		time.Sleep(time.Minute)
		if r := m.Reports()["a"]; r.Dead != "" {
			t.Errorf("the next attempt is %+v", r)
		}
		m.Set(nil)
		time.Sleep(time.Second)
		if len(m.Reports()) != 0 {
			t.Errorf("what is not watched has a verdict: %+v", m.Reports())
		}
	})
}

// The node's own trouble restarts nothing: a runtime that refuses, and one that
// hangs, of which no command ever ends.
func TestARuntimeThatDoesNotAnswerCondemnsNobody(t *testing.T) {
	for name, exec := range map[string]Exec{
		"refuses": func(context.Context, driver.ID, driver.ExecSpec, driver.Streams) (int, error) {
			return 0, fmt.Errorf("exec: %w", driver.ErrUnavailable)
		},
		"hangs": func(ctx context.Context, _ driver.ID, _ driver.ExecSpec, _ driver.Streams) (int, error) {
			<-ctx.Done()
			return 0, ctx.Err()
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			var works atomic.Bool
			m := New(Deps{Log: quiet, Exec: exec, Answers: func(ctx context.Context, id driver.ID) bool {
				if !works.Load() {
					<-ctx.Done()
				}
				return works.Load() && id == "rd-a"
			}})
			stop := run(t, m)
			defer stop()
			m.Set([]Target{{UID: "a", ID: "rd-a", Attempt: 1, Probes: Probes{Liveness: &Probe{Exec: []string{"x"}, Period: time.Second, Timeout: time.Second, Success: 1, Failure: 1}}}})
			time.Sleep(time.Hour)
			if r := m.Reports()["a"]; r.Dead != "" {
				t.Errorf("%s, and condemned: %s", name, r.Dead)
			}
			works.Store(true)
			time.Sleep(time.Minute)
			if r := m.Reports()["a"]; (r.Dead != "") != (name == "hangs") {
				t.Errorf("it works again and %s: %q", name, r.Dead)
			}
		})
	}
}

// asker is a monitor whose dial goes to one listener, whatever the address.
func asker(t *testing.T, to string) (*Monitor, *[]netip.AddrPort) {
	var mu sync.Mutex
	dialled := &[]netip.AddrPort{}
	return New(Deps{Log: quiet, Dial: func(ctx context.Context, a netip.AddrPort) (net.Conn, error) {
		mu.Lock()
		*dialled = append(*dialled, a)
		mu.Unlock()
		if a.Port() != 80 {
			return nil, &net.OpError{Op: "dial", Err: errors.New("another port")}
		}
		return new(net.Dialer).DialContext(ctx, "tcp", to)
	}}), dialled
}

func TestHTTP(t *testing.T) {
	stuck := make(chan struct{})
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/ok":
			if r.Header.Get("X-Probe") != "1" || r.Host != "inner.test" {
				w.WriteHeader(400)
			}
		case "/away":
			http.Redirect(w, r, "http://169.254.169.254/latest/meta-data", http.StatusFound)
		case "/500":
			w.WriteHeader(500)
		case "/endless":
			for {
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					return
				}
			}
		case "/headers":
			for i := range 1000 {
				w.Header().Set(fmt.Sprintf("X-%d", i), strings.Repeat("x", 100))
			}
		case "/silent":
			<-stuck
		case "/torn":
			c, _, _ := http.NewResponseController(w).Hijack()
			c.Close()
		case "/rubbish":
			c, _, _ := http.NewResponseController(w).Hijack()
			io.WriteString(c, "\x1b[2J\x00\xff rubbish\r\n\r\n")
			c.Close()
		}
	})
	plain, secure := httptest.NewServer(h), httptest.NewUnstartedServer(h)
	secure.Config.ErrorLog, secure.TLS = slog.NewLogLogger(slog.DiscardHandler, 0), &tls.Config{}
	secure.StartTLS()
	defer plain.Close()
	defer secure.Close()
	defer close(stuck)
	for path, want := range map[string]string{
		"/ok": "", "/away": "", "/500": "500", "/endless": "", "/headers": "server response headers exceeded",
		"/silent": "no answer within 300ms", "/torn": "without an answer", "/rubbish": "malformed HTTP status code",
	} {
		for _, s := range []*httptest.Server{plain, secure} {
			m, dialled := asker(t, s.Listener.Addr().String())
			p := &Probe{Timeout: 300 * time.Millisecond, HTTP: &HTTP{Port: 80, Path: path, TLS: s == secure,
				Headers: []Header{{"X-Probe", "1"}, {"Host", "inner.test"}}}}
			if path != "/silent" {
				p.Timeout = 10 * time.Second
			}
			ctx, cancel := context.WithTimeout(t.Context(), p.Timeout)
			o := m.ask(ctx, Target{Address: "10.88.0.2"}, p)
			cancel()
			if (want == "") != o.Good() || !strings.Contains(o.Why, want) || strings.ContainsAny(o.Why, "\x1b\x00\n") || len(o.Why) > 620 {
				t.Errorf("%s: %q, want %q", path, o.Why, want)
			}
			for _, a := range *dialled {
				if a != netip.MustParseAddrPort("10.88.0.2:80") {
					t.Errorf("%s: it was led to %s", path, a)
				}
			}
		}
	}
	m, _ := asker(t, "127.0.0.1:1")
	if o := m.ask(t.Context(), Target{Address: "10.88.0.2"}, tcp(0, 1, 1)); o.Why != "connection refused" {
		t.Errorf("a closed port: %q", o.Why)
	}
	if o := m.ask(t.Context(), Target{}, tcp(0, 1, 1)); !o.Void {
		t.Errorf("no address: %+v", o)
	}
}

func TestGRPC(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, hs := grpc.NewServer(), grpchealth.NewServer()
	healthpb.RegisterHealthServer(s, hs)
	hs.SetServingStatus("down", healthpb.HealthCheckResponse_NOT_SERVING)
	go func() { _ = s.Serve(l) }()
	defer s.Stop()
	bare, _ := net.Listen("tcp", "127.0.0.1:0")
	none := grpc.NewServer()
	go func() { _ = none.Serve(bare) }()
	defer none.Stop()
	for _, tc := range []struct {
		at            net.Listener
		service, want string
	}{
		{l, "", ""}, {l, "down", "NOT_SERVING"}, {l, "other", "it does not know that service"}, {bare, "", "it does not offer grpc.health.v1"},
	} {
		m, _ := asker(t, tc.at.Addr().String())
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		o := m.ask(ctx, Target{Address: "10.88.0.2"}, &Probe{Timeout: 10 * time.Second, GRPC: &GRPC{Port: 80, Service: tc.service}})
		cancel()
		if o.Why != tc.want {
			t.Errorf("%q: %q, want %q", tc.service, o.Why, tc.want)
		}
	}
	m, _ := asker(t, "127.0.0.1:1")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if o := m.ask(ctx, Target{Address: "10.88.0.2"}, &Probe{Timeout: 10 * time.Second, GRPC: &GRPC{Port: 80}}); !strings.Contains(o.Why, "connection refused") {
		t.Errorf("nobody listens: %q", o.Why)
	}
}

// An attempt that gets its address late, or another one, is asked there; until
// then nobody is condemned, and the node's log says once that nothing is known.
func TestAQuestionGoesToTheAddressOfNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		var at atomic.Value
		m := New(Deps{Log: slog.New(slog.NewTextHandler(&log, nil)), Dial: func(_ context.Context, a netip.AddrPort) (net.Conn, error) {
			at.Store(a.Addr().String())
			here, there := net.Pipe()
			there.Close()
			return here, nil
		}})
		stop := run(t, m)
		target := Target{UID: "a", Attempt: 1, Probes: Probes{Readiness: &Probe{TCP: 80, Period: time.Second, Timeout: time.Second, Success: 1, Failure: 1}}}
		m.Set([]Target{target})
		time.Sleep(time.Minute)
		if r, ok := m.Reports()["a"]; ok {
			t.Errorf("without an address it is %+v", r)
		}
		for _, address := range []string{"10.88.0.2", "10.88.0.3"} {
			target.Address = address
			m.Set([]Target{target})
			time.Sleep(3 * time.Second)
			if at.Load() != address {
				t.Errorf("asked at %v, and it has %s", at.Load(), address)
			}
		}
		if r := m.Reports()["a"]; r.NotReady != "" {
			t.Errorf("it answers and is %+v", r)
		}
		stop()
		if n := strings.Count(log.String(), "level=WARN"); n != 1 {
			t.Errorf("%d warnings:\n%s", n, log.String())
		}
	})
}
