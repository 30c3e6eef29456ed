package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"redoubt.dev/redoubt/integration/net/fleet"
	"redoubt.dev/redoubt/isolation"
)

const aboutDensity = `
Containers that sleep are started, ten at a time, by the driver and then by containerd's
own client with the same specification, until what they take has reached a bound: that
many MB of PSS of their shims and of all processes in their control groups. The bound is
a share of the machine's memory, so that the machine is not hurt; nothing is starved.
"Cgroup" is what the sandbox's control group counts, the kernel's own memory for it
and its files' pages too; a shim is in no such group.`

// benchDensity starts sandboxes until they have taken so much memory, by the
// driver and by containerd's client.
func benchDensity(ctx context.Context, set settings, out *result) error {
	return withDriver(ctx, func(p *pairs) error {
		grows := plot{Title: "memory of sandboxes and their shims, PSS", X: "sandboxes", Y: "MB"}
		defer func() { out.Plots = append(out.Plots, grows) }()
		for _, rt := range []isolation.Name{"runc", "gvisor"} {
			m, err := p.model(ctx, rt)
			if err != nil {
				return err
			}
			ours, err := p.fill(ctx, set.memory, func(ctx context.Context, id string) (func() error, error) { return p.driver(ctx, rt, id) })
			if err != nil {
				return fmt.Errorf("%s by the driver: %w", rt, err)
			}
			theirs, err := p.fill(ctx, set.memory, func(ctx context.Context, id string) (func() error, error) { return p.client(ctx, m, id) })
			if err != nil {
				return fmt.Errorf("%s by containerd's client: %w", rt, err)
			}
			peer := "containerd's client with the same specification"
			of := func(name string, unit string, v func(weight) float64) figure {
				return against(fmt.Sprintf(name, rt), v(ours), unit, peer, v(theirs))
			}
			out.add(
				of(fmt.Sprintf("%%s sandboxes in %d MB, by the driver", set.memory>>20), "", func(l weight) float64 { return float64(l.n) }),
				of("memory of a %s sandbox with its shim, PSS", "MB", func(l weight) float64 { return mb(l.sandbox+l.shim) / float64(l.n) }),
				of("of that the shim of %s, PSS", "MB", func(l weight) float64 { return mb(l.shim) / float64(l.n) }),
				of("memory of a %s sandbox, cgroup", "MB", func(l weight) float64 { return mb(l.group) / float64(l.n) }),
				of("processes of a %s sandbox with its shim", "", func(l weight) float64 { return float64(l.processes) / float64(l.n) }),
				of("threads of a %s sandbox with its shim", "", func(l weight) float64 { return float64(l.threads) / float64(l.n) }),
				// What the client's containers add comes into what the driver's left.
				figure{Name: fmt.Sprintf("containerd's own growth a %s sandbox, PSS", rt), Value: mb(ours.daemon) / float64(ours.n), Unit: "MB"})
			grows.Lines = append(grows.Lines, curve{string(rt) + " by the driver", ours.points}, curve{string(rt) + " by containerd's client", theirs.points})
		}
		return nil
	})
}

// weight is what n sandboxes take, bytes.
type weight struct {
	n                            int
	shim, sandbox, group, daemon int64
	processes, threads           int
	points                       [][2]float64
}

// mostSandboxes ends a fill that a bound in memory does not end: pids are
// bounded too, and belong to the whole machine.
const mostSandboxes = 600

// fill starts sandboxes until they take so much, measures, and removes them.
func (p *pairs) fill(ctx context.Context, most int64, start func(context.Context, string) (func() error, error)) (l weight, err error) {
	var ends []func() error
	var ids []string
	defer func() {
		var mu sync.Mutex
		var all sync.WaitGroup
		turn := make(chan struct{}, together)
		for _, end := range ends {
			turn <- struct{}{}
			all.Go(func() {
				defer func() { <-turn }()
				if e := end(); e != nil {
					mu.Lock()
					err = errors.Join(err, e)
					mu.Unlock()
				}
			})
		}
		all.Wait()
	}()
	daemon, err := p.daemon()
	if err != nil {
		return l, err
	}
	before, err := pss(daemon)
	if err != nil {
		return l, err
	}
	for l.shim+l.sandbox < most && l.n < mostSandboxes {
		began, errs := make([]func() error, together), make([]error, together)
		var all sync.WaitGroup
		for i := range together {
			p.n++
			id := fmt.Sprintf("pair-%d", p.n)
			ids = append(ids, id)
			all.Go(func() { began[i], errs[i] = start(ctx, id) })
		}
		all.Wait()
		for _, e := range began {
			if e != nil {
				ends = append(ends, e)
			}
		}
		if err := errors.Join(errs...); err != nil {
			return l, fmt.Errorf("with %d running: %w", l.n, err)
		}
		points := l.points
		if l, err = p.weigh(ids); err != nil {
			return l, err
		}
		l.points = append(points, [2]float64{float64(l.n), mb(l.shim + l.sandbox)})
	}
	runtime.GC()
	after, err := pss(daemon)
	l.daemon = after - before
	return l, err
}

// daemon is the process of containerd.
func (p *pairs) daemon() (int, error) {
	pids := processesOf("containerd", "--config", p.dir)
	if len(pids) != 1 {
		return 0, fmt.Errorf("%d processes look like the daemon", len(pids))
	}
	return pids[0], nil
}

// weigh measures what these sandboxes take now.
func (p *pairs) weigh(ids []string) (weight, error) {
	l := weight{n: len(ids)}
	count := func(pid int, into *int64) error {
		m, err := pss(pid)
		if err != nil {
			return err
		}
		*into += m
		l.processes++
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		l.threads += len(tasks)
		return err
	}
	shims := map[string]int{}
	for pid, words := range fleet.Processes() {
		if id := idOfShim(words, p.namespace); id != "" {
			shims[id] = pid
		}
	}
	for _, id := range ids {
		pid, ok := shims[id]
		if !ok {
			return l, fmt.Errorf("%s has no shim", id)
		}
		if err := count(pid, &l.shim); err != nil {
			return l, err
		}
		group, used, err := memoryGroup(p.node, id)
		if err != nil {
			return l, err
		}
		l.group += used
		procs, err := os.ReadFile(filepath.Join(group, "cgroup.procs"))
		if err != nil {
			return l, err
		}
		for word := range strings.FieldsSeq(string(procs)) {
			pid, err := strconv.Atoi(word)
			if err != nil {
				return l, err
			}
			// A process of systrap may end between two looks.
			if err := count(pid, &l.sandbox); err != nil && !errors.Is(err, os.ErrNotExist) {
				return l, err
			}
		}
	}
	return l, nil
}

// idOfShim is the container that a process is the shim of, "" for any other.
func idOfShim(words []string, namespace string) string {
	if len(words) == 0 || !strings.Contains(filepath.Base(words[0]), "containerd-shim-runc-v2") {
		return ""
	}
	id, ours := "", false
	for i := range len(words) - 1 {
		switch words[i] {
		case "-id":
			id = words[i+1]
		case "-namespace":
			ours = words[i+1] == namespace
		}
	}
	if !ours {
		return ""
	}
	return id
}

// memoryGroup is the control group of an instance that counts memory, and what
// it counts; on either version of control groups.
func memoryGroup(node string, id string) (group string, used int64, err error) {
	for root, file := range map[string]string{"/sys/fs/cgroup/memory": "memory.usage_in_bytes", "/sys/fs/cgroup": "memory.current"} {
		group = filepath.Join(root, "redoubt", node, id)
		text, e := os.ReadFile(filepath.Join(group, file))
		if e == nil {
			used, err = strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
			return group, used, err
		}
		err = errors.Join(err, e)
	}
	return "", 0, err
}
