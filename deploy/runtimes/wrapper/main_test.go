package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestSplit(t *testing.T) {
	for _, tt := range []struct {
		args, global, command, rest string
	}{
		{"--root /r/ns --log /b/log.json --log-format json kill --all id 9", "--root /r/ns --log /b/log.json --log-format json", "kill", "--all id 9"},
		{"--root /r --rootless=true --systemd-cgroup --debug state id", "--root /r --rootless=true --systemd-cgroup --debug", "state", "id"},
		{"features", "", "features", ""},
		{"--version", "--version", "", ""},
		// A root directory that is called like a command is not one.
		{"--root kill state id", "--root kill", "state", "id"},
	} {
		g, c, r := split(strings.Fields(tt.args))
		if strings.Join(g, " ") != tt.global || c != tt.command || strings.Join(r, " ") != tt.rest {
			t.Errorf("split(%s) = %q %q %q", tt.args, g, c, r)
		}
	}
}

func TestExecAsksForTheInternalPid(t *testing.T) {
	got := internalPid(strings.Fields("--process /tmp/p --detach --pid-file /b/e1.pid id"))
	want := strings.Fields("--internal-pid-file /b/e1.pid.internal --process /tmp/p --detach --pid-file /b/e1.pid id")
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

// script is a runtime whose behaviour a test writes as shell; it also notes
// how it was called.
func script(t *testing.T, kind, body string) (config, func() string) {
	t.Helper()
	dir := t.TempDir()
	calls, path := filepath.Join(dir, "calls"), filepath.Join(dir, "runtime")
	text := "#!/bin/sh\nD=" + dir + "\necho \"$@\" >> " + calls + "\n" + body
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return config{Kind: kind, Path: path, Args: []string{"--platform=x"}}, func() string {
		data, _ := os.ReadFile(calls)
		return strings.TrimSpace(string(data))
	}
}

func TestCommands(t *testing.T) {
	for _, tt := range []struct {
		name, kind, body, args string
		code                   int
		stderr, calls          string
	}{
		{
			name: "kill of what is gone is said in the shim's words", kind: "runsc",
			body: "echo 'sandbox is not running' >&2; exit 128", args: "kill id 9",
			code: 128, stderr: "container not running", calls: "--platform=x kill id 9",
		}, {
			name: "kill of what is paused resumes it", kind: "runsc",
			body: `case "$2" in resume) touch $D/resumed;; kill) [ -e $D/resumed ] || { echo 'cannot signal container "id" in state paused' >&2; exit 128; };; esac`,
			args: "kill id 15", calls: "--platform=x kill id 15\n--platform=x resume id\n--platform=x kill id 15",
		}, {
			name: "another failure of kill stays one", kind: "runsc",
			body: "echo 'connection refused' >&2; exit 128", args: "kill id 9",
			code: 128, stderr: "connection refused", calls: "--platform=x kill id 9",
		}, {
			name: "delete of what was not waited for is forced", kind: "runsc",
			body: `[ "$3" = --force ] || { echo 'cannot delete container that is not stopped without --force flag' >&2; exit 128; }`,
			args: "delete id", calls: "--platform=x delete id\n--platform=x delete --force id",
		}, {
			name: "ps of what ended fails", kind: "runc", body: "echo null", args: "ps --format json id",
			code: 1, stderr: "to be collected", calls: "--platform=x ps --format json id",
		}, {
			name: "ps of what lives passes", kind: "runc", body: "echo '[1]'", args: "ps --format json id",
			calls: "--platform=x ps --format json id",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, calls := script(t, tt.kind, tt.body)
			var out, errout bytes.Buffer
			if code := c.run(strings.Fields(tt.args), &out, &errout); code != tt.code {
				t.Errorf("code %d, want %d", code, tt.code)
			}
			if !strings.Contains(errout.String(), tt.stderr) || tt.stderr == "connection refused" && strings.Contains(errout.String(), "not running") {
				t.Errorf("stderr %q", errout.String())
			}
			if calls() != tt.calls {
				t.Errorf("calls %q, want %q", calls(), tt.calls)
			}
		})
	}
}

// The program as the shim runs it: found by argv[0], replaced by the runtime.
func TestReplacesItself(t *testing.T) {
	dir := t.TempDir()
	self := filepath.Join(dir, "gvisor-systrap")
	if out, err := exec.Command("go", "build", "-o", self, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	if out, err := exec.Command(self, "state").CombinedOutput(); err == nil || !strings.Contains(string(out), "gvisor-systrap.json") {
		t.Errorf("without a file: %v %s", err, out)
	}
	os.WriteFile(self+".json", []byte(`{"kind":"runsc","path":"/bin/echo","args":["--a"]}`), 0o600)
	out, err := exec.Command(self, "--root", "/r", "state", "id").CombinedOutput()
	if err != nil || string(out) != "--a --root /r state id\n" {
		t.Errorf("got %v %q", err, out)
	}
}
