package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"redoubt.dev/redoubt/integration/net/fleet"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// Nomad's client and server, measured on a machine of this kind with raw_exec
// and not in the same run: milliseconds from submit.
const (
	nomadProcess = 128
	nomadRunning = 446
)

// benchLatency measures a warm fleet of three voters: from the call of apply to
// the instance's process, and to its being shown as running; and what stopping
// costs after the agent was killed and started again.
func benchLatency(ctx context.Context) (out []figure, err error) {
	const rounds, stopped = 20, 10
	err = withFleet(ctx, []string{"s1", "s2", "s3"}, []string{"bergen-1"}, 5*time.Second, func(f *fleet.Fleet) error {
		var process, running []time.Duration
		for i := range rounds + 1 {
			p, r, err := applied(ctx, f, fmt.Sprintf("round-%d", i))
			if err != nil {
				return err
			}
			if i > 0 { // the first one warms
				process, running = append(process, p), append(running, r)
			}
		}
		p95 := func(d []time.Duration) float64 { slices.Sort(d); return ms(d[len(d)*95/100]) }
		out = append(out,
			against("apply to a process under gVisor, p50", ms(median(process)), "ms", "Nomad with raw_exec, of another run", nomadProcess),
			against("apply to a process under gVisor, p95", p95(process), "ms", "its p50", ms(median(process))),
			against("apply to shown as running under gVisor, p50", ms(median(running)), "ms", "Nomad with raw_exec, of another run", nomadRunning),
			against("apply to shown as running under gVisor, p95", p95(running), "ms", "its p50", ms(median(running))))

		calm, err := stopAll(ctx, f, "calm", stopped, false)
		if err != nil {
			return err
		}
		killed, err := stopAll(ctx, f, "killed", stopped, true)
		if err != nil {
			return err
		}
		out = append(out, against(fmt.Sprintf("stopping %d instances after the agent was killed and is back", stopped), killed.Seconds(), "s", "the same undisturbed", calm.Seconds()))
		return nil
	})
	return out, err
}

// applied is one workload from apply to its first process and to its phase.
func applied(ctx context.Context, f *fleet.Fleet, name string) (process, running time.Duration, err error) {
	w, err := toolbox(name, 1)
	if err != nil {
		return 0, 0, err
	}
	known := groupsWithProcesses("bergen-1")
	begun := time.Now()
	seen := make(chan time.Duration, 1)
	look, stop := context.WithTimeout(ctx, 30*time.Second)
	defer stop()
	go func() {
		for look.Err() == nil {
			for _, g := range groupsWithProcesses("bergen-1") {
				if !slices.Contains(known, g) {
					seen <- time.Since(begun)
					return
				}
			}
			time.Sleep(time.Millisecond)
		}
		close(seen)
	}()
	err = f.Call(ctx, func(ctx context.Context, c redoubtv1.FleetServiceClient) error {
		if _, err := c.ApplyWorkload(ctx, &redoubtv1.ApplyWorkloadRequest{Workload: w, CommandId: name}); err != nil {
			return err
		}
		for {
			r, err := c.GetWorkload(ctx, &redoubtv1.GetWorkloadRequest{Namespace: "default", Name: name})
			if err != nil {
				return err
			}
			for _, i := range r.GetWorkload().GetStatus().GetInstances() {
				if i.GetStatus().GetPhase() == redoubtv1.InstancePhase_INSTANCE_PHASE_RUNNING {
					running = time.Since(begun)
					return nil
				}
			}
			time.Sleep(2 * time.Millisecond)
		}
	})
	if err != nil {
		return 0, 0, err
	}
	process, ok := <-seen
	if !ok {
		return 0, 0, fmt.Errorf("%s runs, and no process of it was seen", name)
	}
	return process, running, end(ctx, f, name)
}

// groupsWithProcesses are the control groups of a node's instances in which
// something runs.
func groupsWithProcesses(node string) (out []string) {
	for _, root := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup"} {
		groups, _ := filepath.Glob(filepath.Join(root, "redoubt", node, "rd-*"))
		for _, g := range groups {
			if procs, _ := os.ReadFile(filepath.Join(g, "cgroup.procs")); len(procs) > 0 {
				out = append(out, g)
			}
		}
	}
	return out
}

// end stops a workload and waits until nothing of the node's runs.
func end(ctx context.Context, f *fleet.Fleet, name string) error {
	if err := f.Call(ctx, func(ctx context.Context, c redoubtv1.FleetServiceClient) error {
		_, err := c.StopWorkload(ctx, &redoubtv1.StopWorkloadRequest{Namespace: "default", Name: name, CommandId: "end-" + name})
		return err
	}); err != nil {
		return err
	}
	for deadline := time.Now().Add(2 * time.Minute); len(groupsWithProcesses("bergen-1")) > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("%s runs on two minutes after it was stopped", name)
		}
	}
	return nil
}

// stopAll is how long it takes until n instances have ended.
func stopAll(ctx context.Context, f *fleet.Fleet, name string, n int, kill bool) (time.Duration, error) {
	w, err := toolbox(name, n)
	if err != nil {
		return 0, err
	}
	if err := run(ctx, f, w); err != nil {
		return 0, err
	}
	if kill {
		if err := f.Kill(ctx, "bergen-1"); err != nil {
			return 0, err
		}
		if _, err := f.Start("bergen-1"); err != nil {
			return 0, err
		}
		if err := f.Until(ctx, time.Minute, "the agent is back", func(ctx context.Context, c redoubtv1.FleetServiceClient) (string, error) {
			r, err := c.ListNodes(ctx, &redoubtv1.ListNodesRequest{})
			if err != nil {
				return "", err
			}
			for _, missing := range fleet.Unproven([]string{"bergen-1"}, r.GetNodes()) {
				return missing, nil
			}
			if s := r.GetNodes()[0].GetSilent().AsDuration(); s > 2*time.Second {
				return fmt.Sprintf("it was last heard %v ago", s), nil
			}
			return "", nil
		}); err != nil {
			return 0, err
		}
	}
	begun := time.Now()
	if err := end(ctx, f, name); err != nil {
		return 0, err
	}
	return time.Since(begun), nil
}
