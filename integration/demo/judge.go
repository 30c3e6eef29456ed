package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	neturl "net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"redoubt.dev/redoubt/integration/net/fleet"
)

// demo is one performance.
type demo struct {
	*show
	fleet     *fleet.Fleet
	begun     time.Time
	lostAfter time.Duration
	cut       time.Duration
	examples  string
	proven    []fact
	tasks     []task
}

// fact is a line of the table at the end.
type fact struct{ what, measured string }

func (d *demo) prove(what, format string, args ...any) {
	d.proven = append(d.proven, fact{what, fmt.Sprintf(format, args...)})
}

// verdict is a step that did not come out as promised.
type verdict struct{ expected, seen string }

func (v verdict) Error() string { return "expected: " + v.expected + "\n    seen: " + v.seen }

// judge returns nil where seen is empty.
func (d *demo) judge(expected string, seen []string) error {
	if len(seen) == 0 {
		return nil
	}
	return verdict{expected, strings.Join(seen, "\n          ")}
}

// redoubt runs a command in the user's namespace, shows it with its output, and
// demands that it ends with code 0.
func (d *demo) redoubt(ctx context.Context, args ...string) (string, error) {
	return d.redoubtCode(ctx, 0, args...)
}

func (d *demo) redoubtCode(ctx context.Context, code int, args ...string) (string, error) {
	d.command(append([]string{d.fleet.Program()}, quoted(args)...)...)
	out, err := d.fleet.Run(ctx, "", args...)
	d.output(out.Stderr)
	d.output(out.Stdout)
	if err != nil {
		return "", err
	}
	if out.Code != code {
		return "", verdict{fmt.Sprintf("`redoubt %s` ends with %d", strings.Join(args, " "), code), fmt.Sprintf("it ended with %d", out.Code)}
	}
	return out.Stdout, nil
}

// quietly runs a command in a namespace without showing it.
func (d *demo) quietly(ctx context.Context, in string, args ...string) error {
	out, err := d.fleet.Run(ctx, in, args...)
	if err != nil {
		return err
	}
	if out.Code != 0 {
		return verdict{fmt.Sprintf("`redoubt %s` ends with 0", strings.Join(args, " ")),
			fmt.Sprintf("it ended with %d: %s", out.Code, strings.TrimSpace(out.Stderr+out.Stdout))}
	}
	return nil
}

// fetch gets a page over plain HTTP, on a connection of its own.
func fetch(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	tr := &http.Transport{DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s answers %s", url, resp.Status)
	}
	return string(body), nil
}

// fetchHere is fetch from the network namespace of the calling thread: the
// connection is dialled on this goroutine and no other.
func fetchHere(ctx context.Context, url string) error {
	u, err := neturl.Parse(url)
	if err != nil {
		return err
	}
	conn, err := net.DialTimeout("tcp", u.Host, 3*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Close = true
	if err := req.Write(conn); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, resp.Status)
	}
	return nil
}

// task is the boundary process of one instance: the same pid with the same
// start time is the same process.
type task struct {
	instance, node string
	pid            int
	start          string
}

// taskOf reads the tasks of a workload from the fleet and from /proc.
func (d *demo) tasksOf(ctx context.Context, workload string) ([]task, error) {
	list, err := d.fleet.Instances(ctx, workload)
	if err != nil {
		return nil, err
	}
	var out []task
	for _, i := range list {
		pid := int(i.GetStatus().GetPid())
		t := task{instance: i.GetAssignment().GetInstance(), node: i.GetAssignment().GetNode(), pid: pid}
		if t.start, err = fleet.StartTime(pid); err != nil {
			return nil, fmt.Errorf("instance %s on %s: %w", t.instance, t.node, err)
		}
		out = append(out, t)
	}
	return out, nil
}

// same judges that every task of the beginning is still the one that runs.
func (d *demo) same(ctx context.Context) error {
	now, err := d.tasksOf(ctx, "web")
	if err != nil {
		return err
	}
	var seen []string
	for _, old := range d.tasks {
		found := false
		for _, t := range now {
			found = found || t == old
		}
		if start, err := fleet.StartTime(old.pid); err != nil || start != old.start {
			seen = append(seen, fmt.Sprintf("%s on %s: process %d, started at tick %s, is gone", old.instance, old.node, old.pid, old.start))
		} else if !found {
			seen = append(seen, fmt.Sprintf("%s on %s: process %d runs, but the fleet reports %v", old.instance, old.node, old.pid, now))
		}
	}
	if len(now) != len(d.tasks) {
		seen = append(seen, fmt.Sprintf("%d instances instead of %d", len(now), len(d.tasks)))
	}
	return d.judge("the same task pids and start times as before", seen)
}

// failure shows an error with the ends of the logs.
func (d *demo) failure(err error) {
	d.line("")
	for i, l := range strings.Split(err.Error(), "\n") {
		mark := "  "
		if i == 0 {
			mark = d.paint(red, "✗ ")
		}
		d.line(mark + l)
	}
	logs, _ := filepath.Glob(d.fleet.File("logs/*.log"))
	for _, l := range logs {
		text, err := os.ReadFile(l)
		if err != nil {
			continue
		}
		lines := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
		// What was out of the ordinary, then how it ended.
		end := max(0, len(lines)-4)
		odd := slices.DeleteFunc(slices.Clone(lines[:end]), func(l string) bool {
			return strings.Contains(l, "level=INFO") || strings.Contains(l, "level=DEBUG")
		})
		d.line("")
		d.line(d.paint(dim, "from "+d.fleet.Path("logs/"+filepath.Base(l))))
		for _, line := range append(odd[max(0, len(odd)-6):], lines[end:]...) {
			d.line("  " + line)
		}
	}
}

// host answers what this host's own uname says.
func host(args ...string) string {
	out, err := exec.Command("uname", args...).Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

var errNoInstance = errors.New("the workload has no running instance")
