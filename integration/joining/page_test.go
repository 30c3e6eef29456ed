package joining

import (
	"bufio"
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

var (
	show     = flag.Bool("show", false, "print what the commands of the page print")
	patience = flag.Duration("patience", time.Minute, "how long a command may take to show what the page shows")
)

// step is a command of a page, with what the page shows of its output.
type step struct {
	line          int
	host, command string
	code          int
	shown         []string
}

var (
	prompt = regexp.MustCompile(`^(alpha|beta)# (.*)$`)
	ends   = regexp.MustCompile(`^\[ends with (\d+)\]$`)
)

// readPage takes a page's console blocks as steps, and its other fenced blocks
// as the files whose names stand before them.
func readPage(t *testing.T, path string) (steps []step, files map[string]string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	files = map[string]string{}
	named := regexp.MustCompile("^`([a-z.-]+)`:$")
	var block, file string
	var number int
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		number++
		line := s.Text()
		switch {
		case strings.HasPrefix(line, "```"):
			block = strings.TrimPrefix(line, "```")
		case block == "" && named.MatchString(line):
			file = named.FindStringSubmatch(line)[1]
		case block == "yaml":
			files[file] += line + "\n"
		case block != "console":
		case prompt.MatchString(line):
			m := prompt.FindStringSubmatch(line)
			steps = append(steps, step{line: number, host: m[1], command: m[2]})
		case ends.MatchString(line):
			steps[len(steps)-1].code, _ = strconv.Atoi(ends.FindStringSubmatch(line)[1])
		case strings.TrimSpace(line) != "":
			last := &steps[len(steps)-1]
			last.shown = append(last.shown, line)
		}
	}
	return steps, files
}

// shows tells the first line of the page that the output lacks. Spaces count as
// one, and … as anything.
func shows(out string, lines []string) string {
	spaces := regexp.MustCompile(`\s+`)
	for _, line := range lines {
		var parts []string
		for part := range strings.SplitSeq(strings.TrimSpace(spaces.ReplaceAllString(line, " ")), "…") {
			parts = append(parts, regexp.QuoteMeta(part))
		}
		found := false
		want := regexp.MustCompile("^" + strings.Join(parts, ".*") + "$")
		for have := range strings.Lines(out) {
			found = found || want.MatchString(strings.TrimSpace(spaces.ReplaceAllString(have, " ")))
		}
		if !found {
			return line
		}
	}
	return ""
}

func TestShowsIsStrict(t *testing.T) {
	out := "ID  ROLE\ns1  leader  ready\n"
	if missing := shows(out, []string{"s1 leader ready", "s1 … ready", "ID ROLE"}); missing != "" {
		t.Errorf("%q is there", missing)
	}
	for _, line := range []string{"s1 leader", "s2 … ready", "s1 leader ready and more"} {
		if shows(out, []string{line}) == "" {
			t.Errorf("%q is not there", line)
		}
	}
}

// TestTheFirstFleetPage types docs/first-fleet.md on two hosts and sees what it
// shows.
func TestTheFirstFleetPage(t *testing.T) {
	built := builtProgram(t)
	hosts := map[string]*host{"alpha": newHost(t, "alpha"), "beta": newHost(t, "beta")}
	join(t, hosts["alpha"], hosts["beta"])
	steps, files := readPage(t, "../../docs/first-fleet.md")
	if len(steps) < 15 {
		t.Fatalf("the page has %d commands", len(steps))
	}
	for _, h := range hosts {
		h.do("cp", built, filepath.Join(h.dir, "redoubt"))
		h.do("sh", "-c", "command -v wget >/dev/null || ln -s /usr/bin/busybox /usr/local/bin/wget")
		for file, text := range files {
			h.write(file, text)
		}
	}
	daemons := map[string]*supervised{}
	for _, s := range steps {
		h := hosts[s.host]
		words := strings.Fields(s.command)
		daemon := ""
		if len(words) > 2 {
			daemon = s.host + " " + words[1]
		}
		if d := daemons[daemon]; d != nil && words[2] == "uninstall" {
			d.stop() // as the unit would be
		}
		out, took := h.see(t, s)
		if *show {
			t.Logf("%d: %s# %s (%s)\n%s", s.line, s.host, s.command, took.Round(10*time.Millisecond), out)
		}
		if strings.HasPrefix(s.command, "./redoubt ") && words[2] == "install" {
			daemons[daemon] = h.supervise(words[1], startLine(t, out))
		}
		if strings.Contains(s.command, "--out beta.token") { // scp
			hosts["beta"].write("beta.token", h.do("cat", "beta.token"))
		}
	}
	for name, h := range hosts {
		if left := h.files(); left != "" {
			t.Errorf("on %s is left:\n%s", name, left)
		}
	}
}

// see types a command until it shows what the page shows: people look twice
// too, at what takes a moment.
func (h *host) see(t *testing.T, s step) (out string, took time.Duration) {
	t.Helper()
	begun := time.Now()
	looking := !regexp.MustCompile(`install|uninstall|apply|stop|join-token|run`).MatchString(s.command)
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
		raw, err := h.command(ctx, "bash", "-c", s.command).CombinedOutput()
		cancel()
		code := 0
		if err != nil {
			code = -1
			if e, ok := err.(*exec.ExitError); ok {
				code = e.ExitCode()
			}
		}
		out, took = string(raw), time.Since(begun)
		missing := shows(out, s.shown)
		if code == s.code && missing == "" {
			return out, took
		}
		if !looking || took > *patience {
			t.Fatalf("docs/first-fleet.md:%d: %s# %s\nends with %d and not %d, or lacks %q:\n%s", s.line, s.host, s.command, code, s.code, missing, out)
		}
		time.Sleep(300 * time.Millisecond)
	}
}

// write puts a file into the directory where commands are typed.
func (h *host) write(name, text string) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 10*time.Second)
	defer cancel()
	cmd := h.command(ctx, "sh", "-c", "umask 077 && cat >"+name)
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		h.t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// join makes the two hosts 10.0.0.1 and 10.0.0.2 of one network.
func join(t *testing.T, alpha, beta *host) {
	t.Helper()
	alpha.do("ip", "link", "add", "net0", "type", "veth", "peer", "name", "net0", "netns", strconv.Itoa(beta.pid))
	for i, h := range []*host{alpha, beta} {
		h.do("ip", "addr", "add", fmt.Sprintf("10.0.0.%d/24", i+1), "dev", "net0")
		h.do("ip", "link", "set", "net0", "up")
	}
}
