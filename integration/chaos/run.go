package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"redoubt.dev/redoubt/cmd/redoubt/workloadfile"
	"redoubt.dev/redoubt/integration/net/fleet"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// chaos is one run.
type chaos struct {
	*fleet.Fleet
	log   *slog.Logger
	rec   *recorder
	hosts map[string]*host
	cells []cell

	// servers is held while servers are struck, so that a majority is up, or
	// comes back, whatever the nodes' own faults do; and while a lost node's
	// silence is counted.
	servers sync.Mutex

	mu       sync.Mutex
	count    map[string]int
	going    map[string]int // cells that are being tried
	missed   map[string]int
	faults   []fault
	promises []promise
	blows    []*blow
	losses   []loss
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

// struck is how often a cell was.
func (c *chaos) struck(k cell) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.count[k.String()]
}

// fewest is how often the cell was struck that was struck least.
func (c *chaos) fewest() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(c.faults)
	for _, k := range c.cells {
		n = min(n, c.count[k.String()])
	}
	return n
}

func (c *chaos) leave(k cell) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.going[k.String()]--
}

// settle waits until all is as promised again, and keeps the fault.
func (c *chaos) settle(f fault, within time.Duration, done func(since time.Time) string) {
	last := "nothing was looked at"
	if !until(within-time.Since(f.At), 50*time.Millisecond, func() bool {
		last = done(f.over)
		return last == ""
	}) {
		f.Failed = last
		c.say("%s on %s %s at %s (%v): not as promised within %v: %s", f.Cell, f.Node, f.Workload, f.At.Format(clock), f.Struck, within, last)
	}
	f.Took = time.Since(f.At)
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.blow != nil {
		f.blow.over = time.Now()
	}
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
	for _, missing := range fleet.Unproven([]string{node}, []*redoubtv1.Node{n}, c.hosts[node].proves...) {
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
func (c *chaos) file(name string, h *host, disconnect string) (*redoubtv1.Workload, error) {
	floor := "sandbox"
	if h.runtime == runc {
		floor = "container"
	}
	text := fmt.Sprintf(`kind: Service
name: %s
isolation: { floor: %s }
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
`, name, floor, h.site, disconnect, c.File("beacon"), h.runs)
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

// open makes the folder of a node's site and says what its host looks like.
func (c *chaos) open(node string, offers []string) (*host, error) {
	site := c.Plan().SiteOf(node)
	h := &host{node: node, site: site, runtime: gvisor, proves: offers, dir: c.File(node), runs: filepath.Join(c.File("heard"), site), runtimes: c.File("runtimes")}
	if len(offers) > 0 {
		h.runtime = offers[0]
	}
	return h, os.MkdirAll(h.runs, 0o755)
}
