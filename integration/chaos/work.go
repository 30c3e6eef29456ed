package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// within which a workload that nothing touches starts and stops here.
const (
	withinStart = 30 * time.Second
	withinStop  = 30 * time.Second
)

// disconnects are taken in turn, so that all rules of replacement are met.
var disconnects = []string{"{ replace: Eager, lostAfter: 5m }", "{ replace: Never }", "{ replace: Safe, lostAfter: 5m, stopAfter: 2m }"}

// harmServers strikes servers until over ends. What was begun by then is seen
// through, under ctx.
func (c *chaos) harmServers(ctx, over context.Context) {
	for over.Err() == nil {
		k := c.pick(func(k cell) bool { return !k.onNode() })
		c.servers.Lock()
		f, err := c.blow(ctx, k, nil, "", "", func() sight { return sight{} })
		if err == nil {
			c.settle(f, k.within, func(time.Time) string { return c.led(ctx) })
		}
		c.servers.Unlock()
		c.leave(k)
		rest(over, 2*time.Second)
	}
}

func rest(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// harmNode does the same with one node. steady is the uid of what runs there
// all along.
func (c *chaos) harmNode(ctx, over context.Context, h *host, steady string) {
	for over.Err() == nil {
		k := c.pick(func(k cell) bool { return k.runtime == h.runtime && !k.stopping() && !k.lost() })
		var err error
		if k.starting() || k.silences() {
			err = c.harmInstance(ctx, k, h, steady)
		} else {
			err = c.harmAtRest(ctx, k, h, steady)
		}
		c.leave(k)
		if err != nil && ctx.Err() == nil && !errors.Is(err, errMissed) {
			c.log.Warn("no fault", "cell", k.String(), "node", h.node, "err", err)
			rest(over, time.Second)
		}
	}
}

// guard holds the servers' lock while a cell that strikes them is worked on.
func (c *chaos) guard(k cell) (release func()) {
	if !k.has(server, leader) {
		return func() {}
	}
	c.servers.Lock()
	return c.servers.Unlock
}

// whole says what keeps a node, what runs there and the servers from being as
// promised, by what was seen after since.
func (c *chaos) whole(ctx context.Context, k cell, h *host, since time.Time, uids ...string) string {
	if k.has(server, leader) {
		if missing := c.led(ctx); missing != "" {
			return missing
		}
	}
	for _, uid := range uids {
		if missing := c.alive(uid, since, false); missing != "" {
			return missing
		}
	}
	if _, err := h.containerd(); err != nil {
		return err.Error()
	}
	return c.ready(ctx, h.node, since)
}

func (c *chaos) harmAtRest(ctx context.Context, k cell, h *host, steady string) error {
	defer c.guard(k)()
	f, err := c.blow(ctx, k, h, "", steady, func() sight { return h.look(steady, nil) })
	if err != nil {
		return err
	}
	c.settle(f, k.within, func(since time.Time) string { return c.whole(ctx, k, h, since, steady) })
	return nil
}

var errMissed = errors.New("the step was over before it was seen")

// harmInstance starts a workload, strikes it in the start or at rest, stops it,
// and strikes it in the stop.
func (c *chaos) harmInstance(ctx context.Context, k cell, h *host, steady string) error {
	c.mu.Lock()
	c.serial++
	serial := c.serial
	c.mu.Unlock()
	name := fmt.Sprintf("churn-%d", serial)
	w, err := c.file(name, h, disconnects[serial%len(disconnects)])
	if err != nil {
		return err
	}
	before := h.pins()
	type answer struct {
		at  time.Time
		err error
	}
	acknowledged := make(chan answer, 1)
	go func() {
		at, err := c.apply(ctx, w)
		acknowledged <- answer{at, err}
	}()
	uid := ""
	if !until(withinStart+k.within, 500*time.Microsecond, func() bool {
		uid = fresh(h.pins(), before)
		return uid != "" || ctx.Err() != nil
	}) {
		return fmt.Errorf("%s is not brought up on %s", name, h.node)
	}
	if uid == "" { // the run's time is over; it is still to be stopped
		<-acknowledged
		_, err := c.stop(context.WithoutCancel(ctx), name)
		return err
	}
	p := promise{workload: name, within: withinStart + k.within, stopWithin: withinStop}
	missed := error(nil)
	if k.starting() {
		var f fault
		if f, missed = c.inStep(ctx, k, h, name, uid, nil); missed == nil {
			c.settle(f, k.within, func(since time.Time) string { return c.whole(ctx, k, h, since, uid, steady) })
		}
	}
	a := <-acknowledged
	if a.err != nil {
		return a.err
	}
	p.from = a.at
	if !until(p.within, 50*time.Millisecond, func() bool { return c.alive(uid, a.at.Add(-p.within), false) == "" || ctx.Err() != nil }) {
		c.say("%s on %s: %s", name, h.node, c.alive(uid, time.Time{}, false))
	}
	if k.silences() && !k.starting() && ctx.Err() == nil {
		var f fault
		if f, missed = c.blow(ctx, k, h, name, uid, func() sight { return h.look(uid, nil) }); missed == nil {
			// Each of these ends the sandbox when it kills.
			c.settle(f, k.within, func(since time.Time) string {
				return cmp.Or(c.alive(uid, since, k.signal == unix.SIGKILL), c.whole(ctx, k, h, since, uid, steady))
			})
		}
	}
	return errors.Join(missed, c.harmStop(ctx, h, p, uid, steady))
}

// fresh is the pin that is in after only, and is an instance's.
func fresh(after, before []string) string {
	for _, p := range after {
		if !slices.Contains(before, p) && len(p) > 8 {
			return p
		}
	}
	return ""
}

// harmStop stops a workload, strikes in a step of it, and looks that nothing
// is left.
func (c *chaos) harmStop(ctx context.Context, h *host, p promise, uid, steady string) error {
	k := c.pick(func(k cell) bool { return k.runtime == h.runtime && k.stopping() })
	defer c.leave(k)
	p.until = time.Now()
	p.stopWithin += k.within
	acknowledged := make(chan error, 1)
	go func() {
		at, err := c.stop(ctx, p.workload)
		p.stopped = at
		acknowledged <- err
	}()
	f, missed := c.inStep(ctx, k, h, p.workload, uid, h.nonces(uid))
	if err := <-acknowledged; err != nil {
		c.say("the stop of %s was not acknowledged: %v", p.workload, err)
		return err
	}
	gone := func(since time.Time) string {
		for _, l := range h.leftovers(uid) {
			return "of " + uid + " there is still " + l
		}
		return c.whole(ctx, k, h, since, steady)
	}
	if missed == nil {
		c.settle(f, withinStop+k.within, gone)
	} else if last := ""; !until(withinStop, 50*time.Millisecond, func() bool { last = gone(p.until); return last == "" }) {
		c.say("%s on %s was stopped: %s", p.workload, h.node, last)
	}
	c.mu.Lock()
	c.promises = append(c.promises, p)
	c.mu.Unlock()
	return missed
}

// inStep strikes as soon as an instance is seen in the cell's step.
func (c *chaos) inStep(ctx context.Context, k cell, h *host, workload, uid string, heard []string) (fault, error) {
	defer c.guard(k)()
	look := func() sight { return h.look(uid, nil) }
	var victims []victim
	for _, t := range k.targets {
		if t == shim || t == sentry || t == initial {
			continue // not there yet
		}
		v, err := c.find(ctx, t, h, uid)
		if err != nil {
			return fault{}, err
		}
		victims = append(victims, v)
	}
	over := map[string]int{nothing: 0, network: 1, create: 2, launch: 3, running: 4}
	if k.stopping() {
		over = map[string]int{running: 0, grace: 1, reap: 2, clear: 3, nothing: 4}
	}
	for deadline := time.Now().Add(withinStart); time.Now().Before(deadline) && ctx.Err() == nil; time.Sleep(200 * time.Microsecond) {
		at := look().step(k.stopping())
		if at == k.step {
			for _, t := range k.targets {
				if t != shim && t != sentry && t != initial {
					continue
				}
				v, err := c.find(ctx, t, h, uid)
				if err != nil {
					return fault{}, c.miss(k)
				}
				victims = append(victims, v)
			}
			f, err := c.strike(k, victims, h, workload, uid, look)
			if err != nil || !c.known(f.Cell) {
				// It struck nothing, or in a step for which there is no such cell.
				return f, c.miss(k)
			}
			return f, nil
		}
		if over[at] > over[k.step] {
			return fault{}, c.miss(k)
		}
	}
	return fault{}, c.miss(k)
}

func (c *chaos) known(name string) bool {
	return slices.ContainsFunc(c.cells, func(k cell) bool { return k.String() == name })
}

func (c *chaos) miss(k cell) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.missed[k.String()]++
	return errMissed
}
