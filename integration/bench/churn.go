package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"redoubt.dev/redoubt/integration/net/fleet"
)

const aboutChurn = `
A server and two nodes, one that runs everything under gVisor and one that offers runc
only, with 200 instances each: 19 workloads of ten, half of them with network rules, and
ten that publish a port. While instances come and go, one step after the other on each
node: a workload's processes are killed; an exec and its logs; it is changed, which
replaces its instances; it shrinks to half and grows again; it is stopped, and applied
anew. What there is is counted with nothing running (after a first few came and went)
and with 200 running, before and after; what is not as it was when all is stopped again has
a line of its own. What a daemon holds by itself (goroutines, open files, memory) moves a
little by its nature: what counts is that it does not grow with the number of starts.`

const (
	churnOfGroup = 10
	churnPorts   = 10 // instances of workloads of their own
)

// benchChurn lets instances of two nodes come and go for a while and tells what
// leaked.
func benchChurn(ctx context.Context, set settings, out *result) error {
	l := layout{
		servers: []string{"s1"}, nodes: []string{"bergen-1", "voss-1"}, only: map[string]string{"bergen-1": "gvisor", "voss-1": "runc"},
		agent: []string{"--metrics", metricsAt}, server: []string{"--metrics", metricsAt},
	}
	return withFleet(ctx, l, func(f *fleet.Fleet) error {
		c, hangUp, err := f.Dial("s1")
		if err != nil {
			return err
		}
		defer hangUp()
		var all []*churner
		for _, n := range []struct{ node, site, runtime string }{{"bergen-1", "bergen", "gVisor"}, {"voss-1", "voss", "runc"}} {
			at, err := openNode(f, n.node, "s1")
			if err != nil {
				return err
			}
			defer at.bare.Close()
			ch := &churner{fleetClient: c, f: f, node: at, site: n.site, runtime: n.runtime}
			for i := range (set.instances - churnPorts) / churnOfGroup {
				ch.names = append(ch.names, fmt.Sprintf("%s-%d", n.site, i))
			}
			for i := range churnPorts {
				ch.ports = append(ch.ports, fmt.Sprintf("%s-port-%d", n.site, i))
			}
			all = append(all, ch)
		}
		return churnAll(ctx, set, all, out)
	})
}

func churnAll(ctx context.Context, set settings, all []*churner, out *result) error {
	each := func(do func(*churner) error) error {
		errs := make([]error, len(all))
		var g sync.WaitGroup
		for i, ch := range all {
			g.Go(func() {
				if err := do(ch); err != nil {
					errs[i] = fmt.Errorf("%s: %w", ch.node.name, err)
				}
			})
		}
		g.Wait()
		return errors.Join(errs...)
	}
	settle := time.Duration(set.of(30, 10)) * time.Second
	// A first few, so that what is made once is there.
	if err := each(func(ch *churner) error {
		if err := ch.up(ctx, ch.names[0]); err != nil {
			return err
		}
		return ch.down(ctx, ch.names[0])
	}); err != nil {
		return err
	}
	var empty, full, churned, again []census
	for _, step := range []struct {
		into *[]census
		do   func(*churner) error
	}{
		{&empty, func(*churner) error { return nil }},
		{&full, func(ch *churner) error { return ch.each(ctx, ch.up) }},
		{&churned, nil},
		{&again, func(ch *churner) error { return ch.each(ctx, ch.down) }},
	} {
		do := step.do
		if do == nil {
			over, cancel := context.WithTimeout(ctx, set.churn)
			curves := watchMemory(over, all)
			err := each(func(ch *churner) error { return ch.churn(ctx, over) })
			cancel()
			out.Plots = append(out.Plots, plot{Title: "memory of the daemons while instances come and go, PSS", X: "seconds", Y: "MB", Lines: <-curves})
			if err != nil {
				return err
			}
		} else if err := each(do); err != nil {
			return err
		}
		if err := pause(ctx, settle); err != nil {
			return err
		}
		for _, ch := range all {
			c, err := ch.node.count(ctx)
			if err != nil {
				return err
			}
			*step.into = append(*step.into, c)
		}
	}
	for i, ch := range all {
		tellChurn(ch, empty[i], full[i], churned[i], again[i], out, i == 0)
	}
	return nil
}

// tellChurn makes the figures of one node; those of the server once.
func tellChurn(ch *churner, empty, full, churned, again census, out *result, server bool) {
	starts, left := float64(ch.starts.Load()), 0.0
	out.add(
		figure{Name: "instances on the node, " + ch.runtime, Value: full["shims"]},
		figure{Name: "starts in the churn, " + ch.runtime, Value: starts},
		figure{Name: "steps of the churn, " + ch.runtime, Value: float64(ch.steps.Load())},
		figure{Name: "threads of the machine with all running", Value: ch.threads})
	for _, name := range things {
		if strings.HasSuffix(name, "the server") && !server {
			continue
		}
		label := name + ", " + ch.runtime
		if strings.HasSuffix(name, "the server") {
			label = name
		}
		out.add(against(label+", after the churn", churned[name], "", "before it, all running", full[name]))
		if again[name] != empty[name] {
			out.add(against(label+", all stopped", again[name], "", "before, nothing running", empty[name]))
		}
		if !strings.Contains(name, " of ") {
			left += max(0, again[name]-empty[name])
		}
	}
	out.add(against(fmt.Sprintf("shims, groups, mounts, rules and so on left by %s, all stopped", ch.runtime), left, "", "the aim", 0))
	for _, name := range weights {
		if name == "the server" && !server {
			continue
		}
		label := name + "'s memory, " + ch.runtime
		if name == "the server" {
			label = name + "'s memory"
		}
		out.add(
			against(label+", after the churn, PSS", churned[name], "MB", "before it, all running", full[name]),
			against(label+", all stopped, PSS", again[name], "MB", "before, nothing running", empty[name]),
			figure{Name: label + ", growth a start", Value: 1000 * (churned[name] - full[name]) / max(1, starts), Unit: "kB"})
	}
}

// watchMemory samples the daemons' memory until over ends.
func watchMemory(over context.Context, all []*churner) <-chan []curve {
	done := make(chan []curve, 1)
	begun := time.Now()
	go func() {
		var lines []curve
		index := map[string]int{}
		sample := func(name string, pid int) {
			m, err := pss(pid)
			if err != nil {
				return
			}
			if _, ok := index[name]; !ok {
				index[name] = len(lines)
				lines = append(lines, curve{Name: name})
			}
			l := &lines[index[name]]
			l.Points = append(l.Points, [2]float64{float64(int(time.Since(begun).Seconds())), mb(m)})
		}
		for {
			for i, ch := range all {
				if i == 0 {
					sample("the server", ch.f.Daemon(ch.node.server).Pid)
				}
				sample("the agent, "+ch.runtime, ch.f.Daemon(ch.node.name).Pid)
				sample("containerd, "+ch.runtime, ch.node.pid)
			}
			if pause(over, 5*time.Second) != nil {
				done <- lines
				return
			}
		}
	}()
	return done
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
