package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"redoubt.dev/redoubt/integration/net/fleet"
	"redoubt.dev/redoubt/integration/net/topology"
)

// spare is the site that has two nodes, so that what one loses can go on at the
// other.
const spare = "narvik"

// waits is when the work of a lost node is replaced, by its rule.
var waits = map[string]string{
	"Eager": "{ replace: Eager, lostAfter: 5s }",
	// Longer than the servers need after what is done to them meanwhile: it
	// stops by itself when they are out of reach for that long.
	"Safe":  "{ replace: Safe, lostAfter: 13s, stopAfter: 12s }",
	"Never": "{ replace: Never }",
}

// enough faults of each kind are these, which hold up all those that strike
// servers.
const enough = 6

// stays is how long a node is away whose work waits for it.
const stays = 8 * time.Second

// loseNodes takes one node of the spare site away after the other, until over
// ends.
func (c *chaos) loseNodes(ctx, over context.Context) {
	for over.Err() == nil {
		// Of what could not be seen through soon after the end, nothing is begun.
		if end, ok := over.Deadline(); ok && time.Until(end) < 20*time.Second {
			return
		}
		k := c.pick(cell.lost)
		if c.struck(k) >= enough {
			c.leave(k)
			return
		}
		if err := c.lose(ctx, k); err != nil && ctx.Err() == nil {
			c.log.Warn("no fault", "cell", k.String(), "err", err)
			rest(over, time.Second)
		}
		c.leave(k)
	}
}

// lose starts a workload, takes its node away for as long as its rule asks for,
// gives it back, and stops the workload.
func (c *chaos) lose(ctx context.Context, k cell) error {
	c.mu.Lock()
	c.serial++
	name := fmt.Sprintf("lost-%d", c.serial)
	c.mu.Unlock()
	pair := c.pair()
	w, err := c.file(name, pair[0], waits[k.replace])
	if err != nil {
		return err
	}
	p := promise{workload: name, within: withinStart, stopWithin: withinStop, replace: k.replace}
	if p.from, err = c.apply(ctx, w); err != nil {
		return err
	}
	uid := ""
	if !until(withinStart, 50*time.Millisecond, func() bool { uid = c.newest(name); return uid != "" || ctx.Err() != nil }) {
		c.say("%s was not heard within %v", name, withinStart)
	}
	at := slices.IndexFunc(pair, func(h *host) bool { return slices.Contains(h.pins(), uid) })
	if uid == "" || at < 0 {
		_, err := c.stop(context.WithoutCancel(ctx), name)
		return errors.Join(err, fmt.Errorf("%s is on no node of %s", name, spare))
	}
	h := pair[at]

	// A new leader begins to count a node's silence anew. Until the replacement
	// runs, servers are left alone.
	servers := func() {}
	if k.replace != "Never" {
		c.servers.Lock()
		servers = sync.OnceFunc(c.servers.Unlock)
	}
	defer func() { servers() }()
	f := fault{At: time.Now(), Node: h.node, Runtime: h.runtime, Workload: name, Cell: k.String(), Before: h.look(uid, nil).String()}
	if f.Struck, err = c.take(k, h); err == nil {
		f.After = h.look(uid, nil).String()
		if k.has(machine) || k.replace == "Safe" {
			c.mu.Lock()
			f.blow = &blow{workload: name, site: spare, at: f.At, within: withinReplaced}
			c.blows = append(c.blows, f.blow)
			c.mu.Unlock()
		}
		now := uid
		if k.replace == "Never" {
			rest(ctx, stays)
		} else if until(withinReplaced, 50*time.Millisecond, func() bool { now = c.newest(name); return now != uid || ctx.Err() != nil }) {
			f.Replaced = time.Since(f.At)
		} else {
			c.say("%s on %s at %s: %s was not replaced within %v", f.Cell, h.node, f.At.Format(clock), name, withinReplaced)
		}
		servers()
		if err = c.give(k, h); err == nil {
			f.over = time.Now()
			c.mu.Lock()
			c.losses = append(c.losses, loss{workload: name, from: f.At, over: f.over.Add(withinBack)})
			c.mu.Unlock()
			c.settle(f, f.over.Sub(f.At)+withinBack, func(since time.Time) string {
				for _, l := range h.leftovers(uid) {
					if now != uid {
						return "it was replaced, and of " + uid + " there is still " + l
					}
				}
				if missing := c.alive(now, since, now == uid && k.has(machine)); missing != "" {
					return missing
				}
				for _, other := range pair {
					if missing := c.whole(ctx, k, other, since); missing != "" {
						return missing
					}
				}
				return ""
			})
		}
		uid = now
	}
	p.until = time.Now()
	var stop error
	if p.stopped, stop = c.stop(ctx, name); stop != nil {
		c.say("the stop of %s was not acknowledged: %v", name, stop)
		return errors.Join(err, stop)
	}
	last := ""
	if !until(withinStop, 50*time.Millisecond, func() bool {
		last = ""
		for _, h := range pair {
			for _, l := range h.leftovers(uid) {
				last = l + " on " + h.node
			}
		}
		return last == "" || ctx.Err() != nil
	}) {
		c.say("%s was stopped, and of %s there is still %s", name, uid, last)
	}
	c.mu.Lock()
	c.promises = append(c.promises, p)
	c.mu.Unlock()
	return err
}

// pair are the nodes of the spare site.
func (c *chaos) pair() (out []*host) {
	for _, n := range c.Plan().Nodes() {
		if h := c.hosts[n]; h.site == spare {
			out = append(out, h)
		}
	}
	return out
}

// newest is the uid of the instance of a workload whose fence is the newest of
// all that were heard.
func (c *chaos) newest(workload string) (uid string) {
	var fence uint64
	for _, s := range c.rec.look("") {
		if strings.HasPrefix(s.instance, workload+"-") && s.fence > fence {
			fence, uid = s.fence, s.uid
		}
	}
	return uid
}

// take takes a node away, and give gives it back.
func (c *chaos) take(k cell, h *host) ([]struck, error) {
	if k.has(link) {
		if err := c.World().Unplug(h.node); err != nil {
			return nil, err
		}
		up := true
		// The kernel tells of it after a while.
		err := topology.In(c.Plan().Namespace(h.node), func() error {
			var err error
			until(feltWithin, 10*time.Millisecond, func() bool {
				var eth0 *net.Interface
				if eth0, err = net.InterfaceByName("eth0"); err == nil {
					up = eth0.Flags&net.FlagRunning != 0
				}
				return err != nil || !up
			})
			return err
		})
		if err == nil && up {
			err = fmt.Errorf("the link of %s was cut and is up", h.node)
		}
		if err != nil {
			return nil, errors.Join(err, c.World().Plug(h.node))
		}
		return []struck{{Target: link, Seen: "down"}}, nil
	}
	d := c.Daemon(h.node)
	if err := c.Kill(context.Background(), h.node); err != nil { // the supervisor
		return nil, err
	}
	out := []struck{{Target: supervisor, Pid: d.Pid, Start: d.Start, Seen: "ended"}}
	var left []int
	if !until(10*time.Second, 10*time.Millisecond, func() bool {
		left = c.processes(h)
		for _, pid := range left {
			start, err := fleet.StartTime(pid)
			if err != nil || unix.Kill(pid, unix.SIGKILL) != nil {
				continue
			}
			if !slices.ContainsFunc(out, func(s struck) bool { return s.Pid == pid && s.Start == start }) {
				out = append(out, struck{Target: machine, Pid: pid, Start: start, Seen: "ended"})
			}
		}
		return len(left) == 0
	}) {
		_, err := c.Start(h.node)
		return nil, errors.Join(fmt.Errorf("processes %v of %s do not die", left, h.node), err)
	}
	return out, nil
}

func (c *chaos) give(k cell, h *host) error {
	if k.has(link) {
		return c.World().Plug(h.node)
	}
	_, err := c.Start(h.node)
	return err
}

// processes are all of a node's, its agent among them.
func (c *chaos) processes(h *host) (out []int) {
	add := func(pid int) {
		if _, err := fleet.StartTime(pid); err == nil && !slices.Contains(out, pid) {
			out = append(out, pid)
		}
	}
	run := h.runDir()
	for pid, words := range fleet.Processes() {
		line := strings.Join(words, " ")
		if strings.Contains(line, h.dir+"/") || run != "" && strings.Contains(line, run+"/") ||
			filepath.Base(words[0]) == "redoubt" && slices.Contains(words, c.Path(h.node)) {
			add(pid)
		}
	}
	groups, _ := filepath.Glob("/sys/fs/cgroup/pids/redoubt/" + h.node + "/*/cgroup.procs")
	if len(groups) == 0 {
		groups, _ = filepath.Glob("/sys/fs/cgroup/redoubt/" + h.node + "/*/cgroup.procs")
	}
	for _, g := range groups {
		for _, word := range strings.Fields(read(g)) {
			if pid, err := strconv.Atoi(word); err == nil {
				add(pid)
			}
		}
	}
	return out
}
