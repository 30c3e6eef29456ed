package otlp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"

	"redoubt.dev/redoubt/proto/tracing"
)

// journal is a log that can be read meanwhile.
type journal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

func env(kv ...string) func(string) string {
	return func(name string) string {
		for i := 0; i+1 < len(kv); i += 2 {
			if kv[i] == name {
				return kv[i+1]
			}
		}
		return ""
	}
}

func counts(t *testing.T, e *Exporter) map[string]float64 {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(e.Metrics())
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, m := range families[0].GetMetric() {
		out[m.GetLabel()[0].GetValue()] = m.GetCounter().GetValue()
	}
	return out
}

// make makes n spans, and returns how long the slowest took its maker.
func makeSpans(p tracing.Provider, n int) (slowest time.Duration) {
	tr := tracing.New(p)
	for range n {
		began := time.Now()
		_, span := tr.Start(context.Background(), tracing.InstancePlace, tracing.Start{})
		span.End()
		slowest = max(slowest, time.Since(began))
	}
	return slowest
}

func TestSpansArriveWithWhatTheCollectorAsksToBeShown(t *testing.T) {
	type call struct {
		path, auth, service string
		spans               int
	}
	var mu sync.Mutex
	var calls []call
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var req coltrace.ExportTraceServiceRequest
		if err := proto.Unmarshal(body, &req); err != nil {
			t.Error(err)
		}
		c := call{path: r.URL.Path, auth: r.Header.Get("Authorization")}
		for _, rs := range req.GetResourceSpans() {
			for _, kv := range rs.GetResource().GetAttributes() {
				if kv.GetKey() == "service.name" {
					c.service = kv.GetValue().GetStringValue()
				}
			}
			for _, ss := range rs.GetScopeSpans() {
				c.spans += len(ss.GetSpans())
			}
		}
		mu.Lock()
		calls = append(calls, c)
		mu.Unlock()
	}))
	defer s.Close()
	file := filepath.Join(t.TempDir(), "headers")
	if err := os.WriteFile(file, []byte("# of the collector\nAuthorization: Bearer s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var log journal
	for _, cfg := range []Config{
		{Endpoint: s.URL, HeadersFile: file},
		{Getenv: env("OTEL_EXPORTER_OTLP_ENDPOINT", s.URL, "OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20s3cret")},
		{Getenv: env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", s.URL+"/v1/traces", "OTEL_EXPORTER_OTLP_TRACES_HEADERS", "authorization=Bearer s3cret", "OTEL_EXPORTER_OTLP_HEADERS", "authorization=other")},
		{Endpoint: s.URL + "/v1/traces", HeadersFile: file, Getenv: env("OTEL_EXPORTER_OTLP_ENDPOINT", "https://not-this-one.example", "OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")},
	} {
		cfg.Service, cfg.Log = "redoubt-test", slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		if cfg.Getenv == nil {
			cfg.Getenv = env()
		}
		e, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		calls = nil
		mu.Unlock()
		if err := e.Run(context.Background(), func(_ context.Context, p tracing.Provider) error { makeSpans(p, 3); return nil }); err != nil {
			t.Fatal(err)
		}
		want := call{"/v1/traces", "Bearer s3cret", "redoubt-test", 3}
		if len(calls) != 1 || calls[0] != want {
			t.Errorf("the collector saw %+v, not %+v", calls, want)
		}
		if got := counts(t, e); got[Exported] != 3 || got[Failed]+got[Dropped] != 0 {
			t.Errorf("counted: %v", got)
		}
	}
	if strings.Contains(log.String(), "s3cret") {
		t.Errorf("the log shows a header: %s", log.String())
	}
}

// TestADeadCollectorHurtsNobody: one that is not there, and one that takes a
// connection and says nothing. Who makes spans waits for nothing, what does not fit
// is counted, the end is in time, and the log is not flooded.
func TestADeadCollectorHurtsNobody(t *testing.T) {
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	mute, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	for name, at := range map[string]string{"dead": dead.Addr().String(), "mute": mute.Addr().String()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var log journal
			e, err := New(Config{Endpoint: "http://" + at, Service: "test", Every: 10 * time.Millisecond, Flush: 200 * time.Millisecond, Getenv: env(), Log: slog.New(slog.NewTextHandler(&log, nil))})
			if err != nil {
				t.Fatal(err)
			}
			const made = 3 * maxHeld
			var worked time.Time
			if err := e.Run(context.Background(), func(_ context.Context, p tracing.Provider) error {
				if d := makeSpans(p, made); d > 2*time.Second {
					t.Errorf("a span took its maker %s", d)
				}
				worked = time.Now()
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			if d := time.Since(worked); d > 10*time.Second {
				t.Errorf("the end took %s", d)
			}
			got := counts(t, e)
			if got[Exported] != 0 || got[Dropped]+got[Failed] < made-maxHeld || got[Dropped]+got[Failed] > made {
				t.Errorf("of %d spans: %v", made, got)
			}
			if got[Dropped] == 0 {
				t.Errorf("nothing was dropped: %v", got)
			}
			if n := strings.Count(log.String(), "\n"); n > 2 {
				t.Errorf("%d lines of log:\n%s", n, log.String())
			}
		})
	}
}

// TestAHostileCollectorLearnsNothing: it redirects to another host, answers
// without end, or says what a terminal would obey.
func TestAHostileCollectorLearnsNothing(t *testing.T) {
	var mu sync.Mutex
	elsewhere := 0
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { mu.Lock(); elsewhere++; mu.Unlock() }))
	defer other.Close()
	var answer func(http.ResponseWriter, *http.Request)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { answer(w, r) }))
	defer s.Close()
	file := filepath.Join(t.TempDir(), "headers")
	if err := os.WriteFile(file, []byte("X-Api-Key: s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, a := range map[string]func(http.ResponseWriter, *http.Request){
		"redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
		},
		"flood": func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(bytes.Repeat([]byte("x"), 1<<16)); err != nil {
					return
				}
			}
		},
		"words": func(w http.ResponseWriter, r *http.Request) {
			http.Error(w, "\x1b[2Jlevel=ERROR msg=owned\n"+strings.Repeat("y", 1<<14), http.StatusBadRequest)
		},
		"later": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", "86400")
			http.Error(w, "", http.StatusTooManyRequests)
		},
	} {
		answer = a
		var log journal
		e, err := New(Config{Endpoint: s.URL, HeadersFile: file, Service: "test", Flush: 5 * time.Second, Getenv: env(), Log: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := e.Run(context.Background(), func(_ context.Context, p tracing.Provider) error { makeSpans(p, 1); return nil }); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := counts(t, e); got[Failed] != 1 || time.Since(began) > 20*time.Second {
			t.Errorf("%s: %v after %s", name, got, time.Since(began))
		}
		if l := log.String(); strings.Count(l, "\n") > 1 || strings.Contains(l, "s3cret") || strings.Contains(l, "\x1b") || len(l) > 1200 {
			t.Errorf("%s: the log says %q", name, l)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if elsewhere != 0 {
		t.Errorf("a redirect was followed %d times", elsewhere)
	}
}

// TestWhereTracesMayGo: what is configured wrongly is an error that says what, where
// and what to do; what the environment says for others is told apart.
func TestWhereTracesMayGo(t *testing.T) {
	dir := t.TempDir()
	open := filepath.Join(dir, "open")
	bad := filepath.Join(dir, "bad")
	for path, mode := range map[string]os.FileMode{open: 0o644, bad: 0o600} {
		if err := os.WriteFile(path, []byte("Token s3cret\n"), mode); err != nil {
			t.Fatal(err)
		}
	}
	half := 0.5
	for name, tt := range map[string]struct {
		cfg     Config
		want    string // in the error; "": none
		off     bool
		fromEnv bool
	}{
		"off":             {off: true},
		"disabled":        {cfg: Config{Getenv: env("OTEL_EXPORTER_OTLP_ENDPOINT", "https://a.example", "OTEL_SDK_DISABLED", "true")}, off: true},
		"none":            {cfg: Config{Getenv: env("OTEL_EXPORTER_OTLP_ENDPOINT", "https://a.example", "OTEL_TRACES_EXPORTER", "none")}, off: true},
		"https":           {cfg: Config{Endpoint: "https://a.example:4318"}},
		"loopback":        {cfg: Config{Endpoint: "http://127.0.0.1:4318"}},
		"loopback v6":     {cfg: Config{Endpoint: "http://[::1]:4318"}},
		"localhost":       {cfg: Config{Endpoint: "http://localhost:4318"}},
		"plain":           {cfg: Config{Endpoint: "http://10.0.0.1:4318"}, want: "in plain text: use https://"},
		"plain by name":   {cfg: Config{Endpoint: "http://127.0.0.1.nip.example:4318"}, want: "in plain text"},
		"no scheme":       {cfg: Config{Endpoint: "a.example:4318"}, want: "it must be as https://"},
		"grpc scheme":     {cfg: Config{Endpoint: "grpc://a.example:4317"}, want: "neither http nor https"},
		"nothing":         {cfg: Config{Endpoint: "https://"}, want: "is no URL"},
		"password":        {cfg: Config{Endpoint: "https://me:s3cret@a.example"}, want: "--tracing-headers-file"},
		"query":           {cfg: Config{Endpoint: "https://a.example/?key=x"}, want: "query"},
		"open file":       {cfg: Config{Endpoint: "https://a.example", HeadersFile: open}, want: "chmod 600"},
		"bad file":        {cfg: Config{Endpoint: "https://a.example", HeadersFile: bad}, want: `line 1 is not as "Name: value"`},
		"no file":         {cfg: Config{Endpoint: "https://a.example", HeadersFile: dir + "/none"}, want: "no such file"},
		"a directory":     {cfg: Config{Endpoint: "https://a.example", HeadersFile: dir}, want: "no regular file"},
		"headers to none": {cfg: Config{HeadersFile: bad}, want: "--tracing-endpoint"},
		"share of none":   {cfg: Config{Sample: &half}, want: "--tracing-endpoint"},
		"env plain":       {cfg: Config{Getenv: env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://otel:4318")}, want: "OTEL_EXPORTER_OTLP_ENDPOINT", fromEnv: true},
		"env grpc":        {cfg: Config{Getenv: env("OTEL_EXPORTER_OTLP_ENDPOINT", "https://otel:4317", "OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")}, want: "port 4318", fromEnv: true},
		"env headers":     {cfg: Config{Getenv: env("OTEL_EXPORTER_OTLP_ENDPOINT", "https://otel", "OTEL_EXPORTER_OTLP_HEADERS", "a=b,s3cret")}, want: "header 2", fromEnv: true},
		"env escape":      {cfg: Config{Getenv: env("OTEL_EXPORTER_OTLP_ENDPOINT", "https://otel", "OTEL_EXPORTER_OTLP_HEADERS", "a=s3cret%zz")}, want: "header 1", fromEnv: true},
		"env timeout":     {cfg: Config{Getenv: env("OTEL_EXPORTER_OTLP_ENDPOINT", "https://otel", "OTEL_EXPORTER_OTLP_TIMEOUT", "10s")}, want: "milliseconds", fromEnv: true},
		"env roots":       {cfg: Config{Getenv: env("OTEL_EXPORTER_OTLP_ENDPOINT", "https://otel", "OTEL_EXPORTER_OTLP_CERTIFICATE", bad)}, want: "holds no certificate", fromEnv: true},
	} {
		if tt.cfg.Getenv == nil {
			tt.cfg.Getenv = env()
		}
		e, err := New(tt.cfg)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
		if err == nil && (e == nil) != tt.off {
			t.Errorf("%s: %v", name, e)
		}
		if errors.Is(err, ErrEnvironment) != tt.fromEnv {
			t.Errorf("%s: from the environment is %v: %v", name, !tt.fromEnv, err)
		}
		if strings.Contains(fmt.Sprint(err), "s3cret") {
			t.Errorf("%s: a secret is in the error: %v", name, err)
		}
	}
}

func TestOffRunsWithoutAProvider(t *testing.T) {
	var e *Exporter
	want := errors.New("what it ended with")
	if err := e.Run(context.Background(), func(_ context.Context, p tracing.Provider) error {
		if p != nil {
			t.Error("there is a provider")
		}
		return want
	}); err != want {
		t.Errorf("it ends with %v", err)
	}
}

func TestSecretsLeaveTheEnvironment(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=s3cret")
	t.Setenv("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "authorization=s3cret")
	t.Setenv("OTEL_SERVICE_NAME", "mine")
	ClearEnvironment()
	for _, entry := range os.Environ() {
		if strings.Contains(entry, "s3cret") {
			t.Errorf("what is started inherits %s", entry)
		}
	}
	if os.Getenv("OTEL_SERVICE_NAME") != "mine" {
		t.Error("more was taken than secrets")
	}
}
