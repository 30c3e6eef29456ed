package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"redoubt.dev/redoubt/cmd/redoubt/workloadfile"
	"redoubt.dev/redoubt/integration/net/fleet"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// fault is a blow that struck, and what came of it.
type fault struct {
	Cell     string        `json:"cell"`
	At       time.Time     `json:"at"`
	Node     string        `json:"node,omitempty"`
	Workload string        `json:"workload,omitempty"`
	Pids     []int         `json:"pids"`
	Before   string        `json:"before"` // what was seen right before
	After    string        `json:"after"`  // and right after
	Took     time.Duration `json:"took"`   // until all was as promised
	Failed   string        `json:"failed,omitempty"`

	over time.Time // when what was stopped went on
}

// chaos is one run.
type chaos struct {
	*fleet.Fleet
	log   *slog.Logger
	rec   *recorder
	hosts map[string]*host
	cells []cell

	// servers is held while servers are struck, so that a majority is up, or
	// comes back, whatever the nodes' own faults do.
	servers sync.Mutex

	mu       sync.Mutex
	count    map[string]int
	going    map[string]int // cells that are being tried
	missed   map[string]int
	faults   []fault
	promises []promise
	blows    []blow
	verdicts []string
	serial   int
}

func (c *chaos) say(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.verdicts = append(c.verdicts, fmt.Sprintf(format, args...))
}

// pick takes the cell among those that fit which was struck least.
func (c *chaos) pick(fits func(cell) bool) cell {
	c.mu.Lock()
	defer c.mu.Unlock()
	var best []cell
	least := 0
	for _, k := range c.cells {
		if !fits(k) {
			continue
		}
		// A step that is missed again and again must not take all the time.
		n := c.count[k.String()] + c.going[k.String()] + c.missed[k.String()]/4
		if len(best) == 0 || n < least {
			best, least = nil, n
		}
		if n == least {
			best = append(best, k)
		}
	}
	k := best[mathrand.N(len(best))]
	c.going[k.String()]++
	return k
}

func (c *chaos) leave(k cell) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.going[k.String()]--
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
		return v, nil
	}
	if err != nil {
		return v, err
	}
	v.start, err = fleet.StartTime(v.pid)
	return v, err
}

func (v victim) strike(sig unix.Signal) error {
	if v.target == initial {
		return v.node.signalInit(v.uid, sig)
	}
	if now, err := fleet.StartTime(v.pid); err != nil || now != v.start {
		return errNotThere
	}
	return unix.Kill(v.pid, sig)
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
	return c.strike(k, victims, h, workload, look)
}

func (c *chaos) strike(k cell, victims []victim, h *host, workload string, look func() sight) (fault, error) {
	f := fault{At: time.Now(), Workload: workload}
	if h != nil {
		f.Node = h.node
	}
	before := look()
	var errs []error
	for _, v := range victims {
		errs = append(errs, v.strike(k.signal))
		f.Pids = append(f.Pids, v.pid)
	}
	after := look()
	f.Before, f.After = before.String(), after.String()
	if err := errors.Join(errs...); err != nil {
		return f, err
	}
	if h != nil && k.step != running {
		k.step = after.step(k.stopping())
	}
	f.Cell = k.String()
	if h != nil {
		c.mu.Lock()
		c.blows = append(c.blows, blow{workload: workload, node: h.node, at: f.At, within: k.within})
		c.mu.Unlock()
	}
	if k.signal == unix.SIGSTOP {
		time.Sleep(held)
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
	return f, nil
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

// settle waits until all is as promised again, and keeps the fault.
func (c *chaos) settle(f fault, within time.Duration, done func(since time.Time) string) {
	last := "nothing was looked at"
	if !until(within-time.Since(f.At), 50*time.Millisecond, func() bool {
		last = done(f.over)
		return last == ""
	}) {
		f.Failed = last
		c.say("%s on %s %s at %s (pids %v): not as promised within %v: %s", f.Cell, f.Node, f.Workload, f.At.Format(clock), f.Pids, within, last)
	}
	f.Took = time.Since(f.At)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count[f.Cell]++
	c.faults = append(c.faults, f)
	c.log.Info("fault", "cell", f.Cell, "node", f.Node, "workload", f.Workload, "took", f.Took.Round(time.Millisecond), "failed", f.Failed)
}

// alive says what keeps an instance from being heard now, after since, one
// start of it; anew: a start that began after since.
func (c *chaos) alive(uid string, since time.Time, anew bool) string {
	now := time.Now()
	n := 0
	for _, s := range c.rec.look(uid) {
		if now.Sub(s.last()) < 700*time.Millisecond && s.last().After(since) && (!anew || s.first().After(since)) {
			n++
		}
	}
	switch n {
	case 0:
		return uid + " is not heard"
	case 1:
		return ""
	}
	return fmt.Sprintf("%d starts of %s are heard at once", n, uid)
}

// ready says what keeps a node from being ready, by a word of its own that came
// after since.
func (c *chaos) ready(ctx context.Context, node string, since time.Time) string {
	all, err := c.Nodes(ctx)
	if err != nil {
		return err.Error()
	}
	n := all[node]
	for _, missing := range fleet.Unproven([]string{node}, []*redoubtv1.Node{n}) {
		return missing
	}
	if heard := time.Now().Add(-n.GetSilent().AsDuration()); heard.Before(since) {
		return node + " was last heard before it was struck"
	}
	return ""
}

// led says what keeps the servers from being whole.
func (c *chaos) led(ctx context.Context) string {
	missing := ""
	err := c.Call(ctx, func(ctx context.Context, cl redoubtv1.FleetServiceClient) error {
		r, err := cl.ListServers(ctx, &redoubtv1.ListServersRequest{})
		leads := false
		for _, s := range r.GetServers() {
			if !s.GetReachable() {
				missing = s.GetId() + " is not reached"
			}
			leads = leads || s.GetLeader()
		}
		if err == nil && !leads {
			missing = "no server leads"
		}
		return err
	})
	if err != nil {
		return err.Error()
	}
	return missing
}

// file is a beacon that runs in one site.
func (c *chaos) file(name, node, disconnect string) (*redoubtv1.Workload, error) {
	text := fmt.Sprintf(`kind: Service
name: %s
isolation: { floor: sandbox }
placement: { sites: [%s], replicas: 1 }
disconnect: %s
terminationGracePeriodSeconds: 5
containers:
- image: toolbox
  command: [/beacon/beacon, /heard]
  resources: { limits: { cpu: 100m, memory: 64Mi } }
  volumeMounts:
  - { name: beacon, mountPath: /beacon, readOnly: true }
  - { name: heard, mountPath: /heard }
volumes:
- { name: beacon, hostPath: { path: %s } }
- { name: heard, hostPath: { path: %s } }
`, name, c.Plan().SiteOf(node), disconnect, c.File("beacon"), c.hosts[node].runs)
	list, err := workloadfile.Parse(name, []byte(text))
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

// write repeats a write under one command id until it is acknowledged.
func (c *chaos) write(ctx context.Context, do func(ctx context.Context, cl redoubtv1.FleetServiceClient, id string) error) (acknowledged time.Time, err error) {
	var raw [12]byte
	_, _ = rand.Read(raw[:])
	id := hex.EncodeToString(raw[:])
	for deadline := time.Now().Add(40 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		err := c.Call(ctx, func(ctx context.Context, cl redoubtv1.FleetServiceClient) error { return do(ctx, cl, id) })
		if err == nil || ctx.Err() != nil || time.Now().After(deadline) {
			return time.Now(), err
		}
	}
}

func (c *chaos) apply(ctx context.Context, w *redoubtv1.Workload) (time.Time, error) {
	return c.write(ctx, func(ctx context.Context, cl redoubtv1.FleetServiceClient, id string) error {
		_, err := cl.ApplyWorkload(ctx, &redoubtv1.ApplyWorkloadRequest{Workload: w, CommandId: id})
		return err
	})
}

func (c *chaos) stop(ctx context.Context, name string) (time.Time, error) {
	return c.write(ctx, func(ctx context.Context, cl redoubtv1.FleetServiceClient, id string) error {
		_, err := cl.StopWorkload(ctx, &redoubtv1.StopWorkloadRequest{Namespace: "default", Name: name, CommandId: id})
		return err
	})
}

// open makes a node's folder and says what its host looks like.
func (c *chaos) open(node string) (*host, error) {
	h := &host{node: node, dir: c.File(node), runs: filepath.Join(c.File("heard"), node), runtimes: c.File("runtimes")}
	return h, os.MkdirAll(h.runs, 0o755)
}
