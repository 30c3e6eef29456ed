// Command redoubt-oci stands between containerd's runc shim and an OCI
// runtime, so that one shim, which is the best tested one, drives them all.
//
// The shim speaks to its runtime through a command line, exit codes and error
// texts that are runc's. This program is what the shim is told to run; it
// finds the real runtime in a JSON file named after itself with ".json"
// appended (argv[0] is the absolute path that the shim was given):
//
//	{"kind": "runsc", "path": "/…/runsc", "args": ["--platform=systrap"]}
//
// args go in front of the shim's own. Most commands are replaced in place by
// the runtime (no process is added, stdio and the process tree are as the shim
// expects). Only these differ, each for a fault that was seen:
//
//	kill    runsc says "sandbox is not running" where the shim waits for
//	        "container not running"; the container would never end.
//	kill    runsc refuses to signal a paused container: resume it, then kill.
//	delete  runsc refuses what has exited but was not waited for: --force.
//	exec    runsc tells the pid inside the sandbox only on request; without it
//	        nothing can be signalled in there (the host's pid is a waiter's).
//	ps      runc prints "null" for a container that ended; containerd, when it
//	        starts, takes that for a leaked shim and throws the exit code away.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// config is the file beside the program.
type config struct {
	Kind string   `json:"kind"` // "runsc" or "runc" (crun and others behave as runc)
	Path string   `json:"path"`
	Args []string `json:"args"`
}

func main() {
	c, err := load(os.Args[0])
	if err != nil {
		fmt.Fprintln(os.Stderr, "redoubt-oci:", err)
		os.Exit(1)
	}
	os.Exit(c.run(os.Args[1:], os.Stdout, os.Stderr))
}

func load(argv0 string) (config, error) {
	if !filepath.IsAbs(argv0) {
		self, err := os.Executable()
		if err != nil {
			return config{}, fmt.Errorf("find my own path: %w", err)
		}
		argv0 = self
	}
	data, err := os.ReadFile(argv0 + ".json")
	if err != nil {
		return config{}, fmt.Errorf("read which runtime to run: %w", err)
	}
	var c config
	if err := json.Unmarshal(data, &c); err != nil {
		return config{}, fmt.Errorf("read %s.json: %w", argv0, err)
	}
	if c.Kind != "runsc" && c.Kind != "runc" || !filepath.IsAbs(c.Path) {
		return config{}, fmt.Errorf("%s.json: kind %q must be runsc or runc, path %q absolute", argv0, c.Kind, c.Path)
	}
	return c, nil
}

// run does what the shim asked and returns the exit code. It does not return
// when the runtime takes this process's place.
func (c config) run(args []string, stdout, stderr io.Writer) int {
	global, command, rest := split(args)
	switch {
	case c.Kind == "runsc" && command == "kill":
		return c.kill(global, rest, stdout, stderr)
	case c.Kind == "runsc" && command == "delete":
		return c.delete(global, rest, stdout, stderr)
	case c.Kind == "runsc" && command == "exec":
		return c.replace(global, command, internalPid(rest), stderr)
	case c.Kind == "runc" && command == "ps":
		return c.ps(global, rest, stdout, stderr)
	}
	return c.replace(global, command, rest, stderr)
}

// split parts the shim's arguments into flags before the command, the command
// and what follows.
func split(args []string) (global []string, command string, rest []string) {
	for i := 0; i < len(args); i++ {
		switch a := args[i]; {
		case a == "--root" || a == "--log" || a == "--log-format" || a == "--criu":
			i++
		case strings.HasPrefix(a, "-"):
		default:
			return args[:i], a, args[i+1:]
		}
	}
	return args, "", nil
}

func (c config) argv(global []string, command string, rest ...string) []string {
	argv := append([]string{c.Path}, c.Args...)
	argv = append(argv, global...)
	if command != "" {
		argv = append(argv, command)
	}
	return append(argv, rest...)
}

func (c config) replace(global []string, command string, rest []string, stderr io.Writer) int {
	err := syscall.Exec(c.Path, c.argv(global, command, rest...), os.Environ())
	fmt.Fprintf(stderr, "redoubt-oci: run %s: %v\n", c.Path, err)
	return 127
}

// attempt runs the runtime as a child and keeps what it said.
func (c config) attempt(global []string, command string, rest ...string) (out, errout []byte, code int) {
	var o, e bytes.Buffer
	cmd := &exec.Cmd{
		Path: c.Path, Args: c.argv(global, command, rest...),
		Stdout: &o, Stderr: &e,
		// The shim kills what it started when it dies; so must this.
		SysProcAttr: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	}
	runtime.LockOSThread() // Pdeathsig follows the thread
	defer runtime.UnlockOSThread()
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		code = exit.ExitCode()
	default:
		fmt.Fprintf(&e, "redoubt-oci: run %s: %v\n", c.Path, err)
		code = 127
	}
	return o.Bytes(), e.Bytes(), code
}

func (c config) kill(global, rest []string, stdout, stderr io.Writer) int {
	out, errout, code := c.attempt(global, "kill", rest...)
	if code != 0 && bytes.Contains(errout, []byte("in state paused")) {
		if id := containerID(rest); id != "" {
			c.attempt(global, "resume", id)
			out, errout, code = c.attempt(global, "kill", rest...)
		}
	}
	if code != 0 && gone(errout) {
		errout = append([]byte("container not running\n"), errout...)
	}
	stdout.Write(out)
	stderr.Write(errout)
	return code
}

// gone tells whether runsc's refusal to signal means that there is nothing
// left to signal.
func gone(errout []byte) bool {
	for _, s := range []string{"sandbox is not running", "in state stopped", "no such process"} {
		if bytes.Contains(errout, []byte(s)) {
			return true
		}
	}
	return false
}

// containerID is the first argument of kill that is no flag.
func containerID(rest []string) string {
	for _, a := range rest {
		if !strings.HasPrefix(a, "-") {
			return a
		}
	}
	return ""
}

func (c config) delete(global, rest []string, stdout, stderr io.Writer) int {
	out, errout, code := c.attempt(global, "delete", rest...)
	if code != 0 && bytes.Contains(errout, []byte("not stopped without --force")) {
		out, errout, code = c.attempt(global, "delete", append([]string{"--force"}, rest...)...)
	}
	stdout.Write(out)
	stderr.Write(errout)
	return code
}

// internalPid asks for the pid inside the sandbox, in a file beside the one
// for the pid outside.
func internalPid(rest []string) []string {
	for i, a := range rest {
		if a == "--pid-file" && i+1 < len(rest) {
			return append([]string{"--internal-pid-file", rest[i+1] + ".internal"}, rest...)
		}
	}
	return rest
}

func (c config) ps(global, rest []string, stdout, stderr io.Writer) int {
	out, errout, code := c.attempt(global, "ps", rest...)
	if code == 0 && string(bytes.TrimSpace(out)) == "null" {
		fmt.Fprintln(stderr, "redoubt-oci: the container has ended; its exit is still to be collected")
		return 1
	}
	stdout.Write(out)
	stderr.Write(errout)
	return code
}
