package cli_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"redoubt.dev/redoubt/cmd/redoubt/cli"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

var rewrite = flag.Bool("rewrite", false, "write what the commands printed into the scripts")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"redoubt": func() {
			env := cli.Process()
			env.DevContext = os.Getenv("TEST_DEV_CONTEXT")
			cli.Version = "v0-test"
			os.Exit(shaped(env))
		},
	})
}

type worldKey struct{}

// TestScripts runs every verb as a process of its own against a server of the
// test's making, over mutual TLS.
//
//	fleet load FILE        set the answers; {{ago 3m}} stands for a moment
//	fleet fail METHOD CODE TEXT [N]   refuse a method, N times
//	fleet seen N           every command id was seen at most N times, one N times
//	fleet tidy FILE        take what varies out of a file that was printed
func TestScripts(t *testing.T) {
	shapes := filepath.Join(t.TempDir(), "shapes")
	t.Cleanup(func() {
		if text, err := os.ReadFile(shapes); err == nil {
			t.Errorf("errors that are not of the one shape:\n%s", text)
		}
	})
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		UpdateScripts:       *rewrite,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			dir, err := os.MkdirTemp("", "redoubt-cli-")
			if err != nil {
				return err
			}
			env.Defer(func() { os.RemoveAll(dir) })
			w := newWorld(env.T().(interface {
				Helper()
				Fatal(...any)
			}), dir)
			address, stop, err := w.serve("s1")
			if err != nil {
				return err
			}
			env.Defer(stop)
			env.Values[worldKey{}] = w
			env.Setenv("HOME", filepath.Join(env.WorkDir, "home"))
			env.Setenv("SERVER", address)
			env.Setenv(shapeFile, shapes)
			state, err := filepath.Abs("testdata/state.json")
			if err != nil {
				return err
			}
			env.Setenv("STATE", state)
			env.Setenv("CONTEXT", filepath.Join(env.WorkDir, "ann.context"))
			env.Setenv("REDOUBT_CONTEXT", filepath.Join(env.WorkDir, "ann.context"))
			env.Setenv("TEST_DEV_CONTEXT", filepath.Join(env.WorkDir, "dev", "context"))
			w.addresses = []string{address}
			return w.context(filepath.Join(env.WorkDir, "ann.context"), time.Hour, address)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"fleet": fleetCommand},
	})
}

func fleetCommand(ts *testscript.TestScript, neg bool, args []string) {
	w := ts.Value(worldKey{}).(*world)
	if neg || len(args) == 0 {
		ts.Fatalf("usage: fleet load|fail|seen|tidy …")
	}
	switch args[0] {
	case "load":
		ts.Check(w.load(ts.ReadFile(args[1])))
	case "fail":
		var code codes.Code
		ts.Check(code.UnmarshalJSON([]byte(`"` + args[2] + `"`)))
		left := -1
		if len(args) > 4 {
			fmt.Sscan(args[4], &left)
		}
		w.change(func() {
			w.fail = func(method string) error {
				w.mu.Lock()
				defer w.mu.Unlock()
				if method != args[1] || left == 0 {
					return nil
				}
				left--
				return status.Error(code, args[3])
			}
		})
	case "seen":
		most := 0
		w.mu.Lock()
		for _, n := range w.commands {
			most = max(most, n)
		}
		w.mu.Unlock()
		if fmt.Sprint(most) != args[1] {
			ts.Fatalf("the most that a command id was seen is %d times, not %s", most, args[1])
		}
	case "tidy":
		path := ts.MkAbs(args[1])
		b, err := os.ReadFile(path)
		ts.Check(err)
		ts.Check(os.WriteFile(path, []byte(tidy(string(b))), 0o600))
	default:
		ts.Fatalf("fleet has no %q", args[0])
	}
}

var moments = regexp.MustCompile(`"20\d\d-[-0-9T:.]+Z"`)

// tidy takes moments out.
func tidy(s string) string { return moments.ReplaceAllString(s, `"MOMENT"`) }

var ago = regexp.MustCompile(`\{\{ago ([0-9a-z]+)\}\}`)

// load sets what the world answers.
func (w *world) load(text string) error {
	text = ago.ReplaceAllStringFunc(text, func(m string) string {
		d, err := time.ParseDuration(ago.FindStringSubmatch(m)[1])
		if err != nil {
			panic(err)
		}
		return time.Now().Add(-d).UTC().Format(time.RFC3339)
	})
	var in struct {
		Workloads    []json.RawMessage
		Explanations map[string]json.RawMessage
		Plans        map[string]json.RawMessage
		Nodes        json.RawMessage
		Sites        json.RawMessage
		Servers      json.RawMessage
		Events       json.RawMessage
		Logs         map[string]string
	}
	if err := json.Unmarshal([]byte(text), &in); err != nil {
		return err
	}
	var failed error
	w.change(func() {
		read := func(raw json.RawMessage, m proto.Message) {
			if raw == nil || failed != nil {
				return
			}
			if err := protojson.Unmarshal(raw, m); err != nil {
				failed = fmt.Errorf("%s: %w", m.ProtoReflect().Descriptor().Name(), err)
			}
		}
		for _, raw := range in.Workloads {
			m := &redoubtv1.StoredWorkload{}
			read(raw, m)
			w.workloads[key(m.GetSpec().GetNamespace(), m.GetSpec().GetName())] = m
		}
		for name, raw := range in.Explanations {
			m := &redoubtv1.Explanation{}
			read(raw, m)
			w.explained[key("", name)] = m
		}
		for name, raw := range in.Plans {
			m := &redoubtv1.PlanWorkloadResponse{}
			read(raw, m)
			w.planned[key("", name)] = m
		}
		read(in.Nodes, &w.nodes)
		read(in.Sites, &w.sites)
		read(in.Servers, &w.servers)
		read(in.Events, &w.events)
		for i, text := range in.Logs {
			w.logs[i] = text
		}
	})
	return failed
}
