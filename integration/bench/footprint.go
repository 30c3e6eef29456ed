package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"time"

	"redoubt.dev/redoubt/integration/net/fleet"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

const aboutFootprint = `
A fleet of three servers and one node, ten seconds after it stood and while nobody
asks anything. PSS is memory with what is shared divided among those who share it. CPU
is that of the process's threads over half a minute. How often those threads are woken
in that time depends less on what else the machine does.`

// benchFootprint measures what a server and an agent take at rest, and what an
// instance takes beside its sandbox.
func benchFootprint(ctx context.Context, set settings, out *result) error {
	const instances = 5
	watched := time.Duration(set.of(30, 10)) * time.Second
	return withFleet(ctx, layout{servers: []string{"s1", "s2", "s3"}, nodes: []string{"bergen-1"}}, func(f *fleet.Fleet) error {
		rest := func() error {
			select {
			case <-time.After(10 * time.Second):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err := rest(); err != nil {
			return err
		}
		daemon := processesOf("containerd --config", "bergen-1/containerd/config.toml")
		if len(daemon) != 1 {
			return fmt.Errorf("the node has %d containerds", len(daemon))
		}
		for _, name := range []string{"s1", "bergen-1"} {
			who, aim := "a server", 60.0
			if name == "bergen-1" {
				who, aim = "an agent", 40.0
			}
			pid := f.Daemon(name).Pid
			memory, err := pss(pid)
			if err != nil {
				return err
			}
			program, err := share(pid, "Pss_File")
			if err != nil {
				return err
			}
			before, err := cpuTime(pid)
			if err != nil {
				return err
			}
			woken, peerWoken := wakeups(pid), wakeups(daemon[0])
			begun := time.Now()
			select {
			case <-time.After(watched):
			case <-ctx.Done():
				return ctx.Err()
			}
			after, err := cpuTime(pid)
			if err != nil {
				return err
			}
			took := time.Since(begun).Seconds()
			woken, peerWoken = wakeups(pid)-woken, wakeups(daemon[0])-peerWoken
			out.add(
				against(who+" at rest, wakeups", float64(woken)/took, "a second", "the node's containerd at rest", float64(peerWoken)/took),
				against(who+" at rest, PSS", mb(memory), "MB", "the aim (a Nomad client has been seen at 84 MB)", aim),
				against("of that the pages of the program's file, "+who, mb(program), "MB", "the whole", mb(memory)),
				against(who+" at rest, CPU", 100*float64(after-before)/float64(time.Since(begun)), "% of a core", "the aim", 0.2))
		}
		agent := f.Daemon("bergen-1").Pid
		idle, err := pss(agent)
		if err != nil {
			return err
		}
		w, err := toolbox("many", instances)
		if err != nil {
			return err
		}
		if err := run(ctx, f, w); err != nil {
			return err
		}
		if err := rest(); err != nil {
			return err
		}
		busy, err := pss(agent)
		if err != nil {
			return err
		}
		var shims int64
		pids := processesOf("containerd-shim-runc-v2", "redoubt-bergen-1", "rd-")
		if len(pids) < instances {
			return fmt.Errorf("%d shims for %d instances", len(pids), instances)
		}
		for _, pid := range pids {
			m, err := pss(pid)
			if err != nil {
				return err
			}
			shims += m
		}
		used, err := cpuOf(ctx, pids, watched)
		if err != nil {
			return err
		}
		out.add(
			against("an instance's shim, PSS", mb(shims)/float64(len(pids)), "MB", "the aim", 8),
			against("an instance's shim, CPU a minute", used.Seconds()/float64(len(pids))/watched.Minutes(), "s", "a Nomad client's for each task, of another run", 0.075),
			against("an instance's share of the agent, PSS", mb(busy-idle)/instances, "MB", "a Nomad client, which runs itself again", 28))
		return nil
	})
}

// cpuOf is what processes use together in so long.
func cpuOf(ctx context.Context, pids []int, long time.Duration) (used time.Duration, err error) {
	for _, sign := range []time.Duration{-1, 1} {
		for _, pid := range pids {
			d, err := cpuTime(pid)
			if err != nil {
				return 0, err
			}
			used += sign * d
		}
		if sign < 0 {
			if err := pause(ctx, long); err != nil {
				return 0, err
			}
		}
	}
	return used, nil
}

func mb(n int64) float64 { return float64(n) / 1e6 }

// run applies a workload and waits until all of it runs and is ready.
func run(ctx context.Context, f *fleet.Fleet, w *redoubtv1.Workload) error {
	if err := f.Call(ctx, func(ctx context.Context, c redoubtv1.FleetServiceClient) error {
		_, err := c.ApplyWorkload(ctx, &redoubtv1.ApplyWorkloadRequest{Workload: w, CommandId: rand.Text()})
		return err
	}); err != nil {
		return err
	}
	return f.Until(ctx, 2*time.Minute, w.GetName()+" runs", func(ctx context.Context, c redoubtv1.FleetServiceClient) (string, error) {
		r, err := c.GetWorkload(ctx, &redoubtv1.GetWorkloadRequest{Namespace: "default", Name: w.GetName()})
		if err != nil {
			return "", err
		}
		var waiting []string
		for _, i := range r.GetWorkload().GetStatus().GetInstances() {
			if p := i.GetStatus().GetPhase(); p != redoubtv1.InstancePhase_INSTANCE_PHASE_RUNNING || !i.GetReady() {
				waiting = append(waiting, i.GetAssignment().GetInstance()+" is "+p.String()+" "+i.GetStatus().GetNotReady())
			}
		}
		if want := int(w.GetPlacement().GetReplicas()); len(r.GetWorkload().GetStatus().GetInstances()) < want {
			return fmt.Sprintf("%d of %d instances", len(r.GetWorkload().GetStatus().GetInstances()), want), nil
		}
		return strings.Join(waiting, "; "), nil
	})
}
