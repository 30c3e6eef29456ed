package script

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"redoubt.dev/redoubt/cmd/redoubt/cli"
)

var rewrite = flag.Bool("rewrite", false, "write what the commands printed into the scripts")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"redoubt": func() {
			env := cli.Process()
			env.DevContext = filepath.Join(os.Getenv("WORK"), "no-dev")
			os.Exit(cli.Run(context.Background(), env))
		},
	})
}

// TestScripts runs each script in a directory of its own. $P1 to $P9 are free
// ports; `until TEXT COMMAND…` repeats a command until it prints TEXT.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata", UpdateScripts: *rewrite, RequireExplicitExec: true, RequireUniqueNames: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("HOME", filepath.Join(env.WorkDir, "home"))
			var listeners []net.Listener
			for n := 1; n <= 9; n++ {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					return err
				}
				listeners = append(listeners, l)
				env.Setenv(fmt.Sprintf("P%d", n), fmt.Sprint(l.Addr().(*net.TCPAddr).Port))
			}
			for _, l := range listeners {
				l.Close()
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"until": until},
	})
}

// until runs a command again and again until its output, of both kinds, holds
// a text; with "!" before it, until it no longer does.
func until(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: until TEXT COMMAND…")
	}
	var seen string
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		_ = ts.Exec(args[1], args[2:]...) // an error is an answer too
		seen = ts.ReadFile("stdout") + ts.ReadFile("stderr")
		if strings.Contains(seen, args[0]) != neg {
			return
		}
	}
	ts.Fatalf("after 30 s %q prints still:\n%s", strings.Join(args[1:], " "), seen)
}
