package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"redoubt.dev/redoubt/integration/net/fleet"
)

// fault is a blow that struck, and what came of it.
type fault struct {
	Cell     string        `json:"cell"`
	At       time.Time     `json:"at"`
	Node     string        `json:"node,omitempty"`
	Workload string        `json:"workload,omitempty"`
	Runtime  string        `json:"runtime,omitempty"`
	Struck   []struck      `json:"struck"`
	Before   string        `json:"before"` // what was seen of the instance right before
	After    string        `json:"after"`  // and right after
	Took     time.Duration `json:"took"`   // until all was as promised
	// Replaced is how long it took, of that, until a replacement was heard.
	Replaced time.Duration `json:"replaced,omitempty"`
	Failed   string        `json:"failed,omitempty"`

	over time.Time // when what was stopped went on
	blow *blow     // what the judge knows of it
}

// struck is the evidence that a process was hit: what was seen of it after.
type struck struct {
	Target target `json:"target"`
	Pid    int    `json:"pid,omitempty"` // 0: inside the sandbox
	Start  string `json:"start,omitempty"`
	Seen   string `json:"seen"`
}

// victim is a process that was found to be struck; pid 0 is an init, which only
// the sandbox can reach.
type victim struct {
	target target
	pid    int
	start  string
	node   *host
	uid    string
	name   string // of the daemon
}

func (c *chaos) find(ctx context.Context, t target, h *host, uid string) (victim, error) {
	v := victim{target: t, node: h, uid: uid}
	daemonOf := func(name string) (int, error) {
		d := c.Daemon(name)
		if d == nil {
			return 0, errNotThere
		}
		v.name = name
		if t == supervisor {
			return d.Pid, nil
		}
		if pid := child(d.Pid); pid != 0 {
			return pid, nil
		}
		return 0, fmt.Errorf("%s: %w", name, errNotThere)
	}
	var err error
	switch t {
	case leader, server:
		var id string
		if id, err = c.Leader(ctx); err != nil {
			return v, err
		}
		if t == server {
			others := slices.DeleteFunc(slices.Clone(c.Plan().Servers), func(s string) bool { return s == id })
			id = others[mathrand.N(len(others))]
		}
		v.pid, err = daemonOf(id)
	case agent, supervisor:
		v.pid, err = daemonOf(h.node)
	case daemon:
		v.pid, err = h.containerd()
	case shim:
		v.pid, err = h.shim(uid)
	case sentry:
		v.pid, err = h.sentry(uid)
	case initial:
		if h.runtime == gvisor {
			return v, nil
		}
		v.pid, err = h.init(uid)
	}
	if err != nil {
		return v, err
	}
	v.start, err = fleet.StartTime(v.pid)
	return v, err
}

func (v victim) strike(sig unix.Signal) error {
	if v.pid == 0 {
		return v.node.signalInit(v.uid, sig)
	}
	if now, err := fleet.StartTime(v.pid); err != nil || now != v.start {
		return errNotThere
	}
	return unix.Kill(v.pid, sig)
}

// feltWithin is how soon a signal that was sent has done its work.
const feltWithin = 2 * time.Second

// felt waits until the blow shows on the victim: a killed one has ended, a
// stopped one stands still. An init inside a sandbox is hit if the sandbox ended,
// or is silent; sandbox are the processes that it had, heard is when its
// workload was heard last.
func (v victim) felt(sig unix.Signal, sandbox []int, heard func() time.Time) (struck, error) {
	s := struck{Target: v.target, Pid: v.pid, Start: v.start}
	at := time.Now()
	until(feltWithin, 5*time.Millisecond, func() bool {
		switch {
		case v.pid == 0 && sig == unix.SIGKILL:
			if !slices.ContainsFunc(sandbox, func(pid int) bool { _, err := fleet.StartTime(pid); return err == nil }) {
				s.Seen = fmt.Sprintf("processes %v of its sandbox ended", sandbox)
			}
		case v.pid == 0:
			if last := heard(); time.Since(at) > time.Second && time.Since(last) > 700*time.Millisecond {
				s.Seen = "not heard since " + last.Format(clock)
			}
		case sig == unix.SIGKILL:
			if now, err := fleet.StartTime(v.pid); err != nil || now != v.start {
				s.Seen = "ended"
			}
		default:
			if state(v.pid) == "T" {
				s.Seen = "stopped"
			}
		}
		return s.Seen != ""
	})
	if s.Seen == "" {
		return s, fmt.Errorf("%s %d was signalled and shows nothing of it", v.target, v.pid)
	}
	return s, nil
}

// state is a process's, as the kernel writes it: T is stopped.
func state(pid int) string {
	stat, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])); len(f) > 0 {
		return f[0]
	}
	return ""
}

// blow strikes a cell's targets. It returns once what was stopped goes on
// again. look sees the instance; it is asked right before and right after.
func (c *chaos) blow(ctx context.Context, k cell, h *host, workload, uid string, look func() sight) (fault, error) {
	var victims []victim
	for _, t := range k.targets {
		v, err := c.find(ctx, t, h, uid)
		if err != nil {
			return fault{}, err
		}
		victims = append(victims, v)
	}
	return c.strike(k, victims, h, workload, uid, look)
}

func (c *chaos) strike(k cell, victims []victim, h *host, workload, uid string, look func() sight) (fault, error) {
	f := fault{At: time.Now(), Workload: workload}
	if h != nil {
		f.Node, f.Runtime = h.node, h.runtime
	}
	before := look()
	var errs []error
	for _, v := range victims {
		errs = append(errs, v.strike(k.signal))
	}
	after := look()
	f.Before, f.After = before.String(), after.String()
	if h != nil {
		// Whatever it hit, it may have silenced something.
		c.mu.Lock()
		f.blow = &blow{workload: workload, site: h.site, at: f.At, within: k.within}
		c.blows = append(c.blows, f.blow)
		c.mu.Unlock()
	}
	for i, v := range victims {
		if errs[i] != nil {
			continue
		}
		var s struck
		s, errs[i] = v.felt(k.signal, before.procs, func() time.Time { return c.heard(uid) })
		f.Struck = append(f.Struck, s)
	}
	if k.signal == unix.SIGSTOP {
		time.Sleep(held - time.Since(f.At))
		for _, v := range victims {
			_ = v.strike(unix.SIGCONT)
		}
	}
	f.over = time.Now()
	for _, v := range victims {
		if v.target == supervisor && k.signal == unix.SIGKILL {
			if err := c.succeed(v.name); err != nil {
				return f, err
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return f, err
	}
	if h != nil {
		k.step = struckIn(k, before, after)
	}
	f.Cell = k.String()
	return f, nil
}

// struckIn is the step in which a blow struck, by what was seen right before
// and right after. Steps follow each other, so what is seen after it was not
// passed at the blow. A blow that itself ends the sandbox leaves the sight of
// another step; then nothing may have been added. What runs, and was not told to
// end, runs until it is struck.
func struckIn(k cell, before, after sight) string {
	b := before.step(k.stopping())
	if k.step == running || b == k.step && k.silences() && after.within(before) {
		return b
	}
	return after.step(k.stopping())
}

// heard is when an instance was heard last.
func (c *chaos) heard(uid string) (last time.Time) {
	for _, s := range c.rec.look(uid) {
		if s.last().After(last) {
			last = s.last()
		}
	}
	return last
}

// succeed starts another supervisor. What the dead one had started has to end
// before the new one's can take its place.
func (c *chaos) succeed(name string) error {
	if _, err := c.Start(name); err != nil {
		return err
	}
	until(5*time.Second, 10*time.Millisecond, func() bool { return child(c.Daemon(name).Pid) != 0 })
	for pid, words := range fleet.Processes() {
		if len(words) > 3 && filepath.Base(words[0]) == "redoubt" && slices.Contains(words, c.Path(name)) && pid != child(c.Daemon(name).Pid) {
			if err := unix.Kill(pid, unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
	}
	return nil
}
