package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
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

const aboutLatency = `
A warm fleet of three voters and one node: from the call of apply, on an open connection, to the
first process of the instance, and to its being shown as running. One workload after
the other, each on its own. Under gVisor the process is the sentry, under runc the
workload's own. Nomad's figures are of another run on such a machine, with a client and
one server.

Stopping is that of ten instances by one call, undisturbed, and right after the agent
was killed and is back.`

// benchLatency measures a warm fleet of three voters: from the call of apply to
// the instance's process, and to its being shown as running; and what stopping
// costs after the agent was killed and started again.
func benchLatency(ctx context.Context, set settings, out *result) error {
	const stopped = 10
	shown := plot{Title: "from apply to shown as running", X: "ms", Y: "% of workloads that took at most so long"}
	defer func() { out.Plots = append(out.Plots, shown) }()
	for _, runtime := range []string{"runc", "gVisor"} {
		l := layout{servers: []string{"s1", "s2", "s3"}, nodes: []string{"bergen-1"}, agent: []string{"--metrics", metricsAt}}
		aimProcess, aimRunning, aim := float64(nomadProcess), float64(nomadRunning), "Nomad with raw_exec, of another run"
		if runtime == "runc" {
			l.only = map[string]string{"bergen-1": "runc"}
			aimProcess, aimRunning, aim = 100, 120, "the aim (Nomad with raw_exec, of another run: %d)"
		}
		say := func(nomad int) string {
			if runtime == "runc" {
				return fmt.Sprintf(aim, nomad)
			}
			return aim
		}
		if err := withFleet(ctx, l, func(f *fleet.Fleet) error {
			c, hangUp, err := f.Dial("s1")
			if err != nil {
				return err
			}
			defer hangUp()
			var acknowledged, process, running []time.Duration
			var sum, n float64
			for i := range set.of(40, 8) + 1 {
				l, err := applied(ctx, f, c, fmt.Sprintf("round-%d", i))
				if err != nil {
					return err
				}
				if i == 0 { // it warms
					if sum, n, err = startedBy(ctx, f, runtime); err != nil {
						return err
					}
					continue
				}
				acknowledged, process, running = append(acknowledged, l.acknowledged), append(process, l.process), append(running, l.running)
			}
			sumAfter, nAfter, err := startedBy(ctx, f, runtime)
			if err != nil {
				return err
			}
			if nAfter <= n {
				return fmt.Errorf("the agent counts %v starts under %s before and %v after", n, runtime, nAfter)
			}
			out.add(
				against("apply to a process under "+runtime+", p50", ms(median(process)), "ms", say(nomadProcess), aimProcess),
				against("apply to a process under "+runtime+", p95", ms(percentile(process, 95)), "ms", "its p50", ms(median(process))),
				against("apply to shown as running under "+runtime+", p50", ms(median(running)), "ms", say(nomadRunning), aimRunning),
				against("apply to shown as running under "+runtime+", p95", ms(percentile(running, 95)), "ms", "its p50", ms(median(running))),
				against("of that until the write is acknowledged, "+runtime+", p50", ms(median(acknowledged)), "ms", "the whole", ms(median(running))),
				against("of that the container's start by the driver, "+runtime+", mean", (sumAfter-sum)/(nAfter-n), "ms", "the whole", ms(median(running))))
			shown.Lines = append(shown.Lines, spread("under "+runtime, running))
			if runtime == "runc" {
				return nil
			}
			var ratios, calms, killeds []float64
			for i := range set.of(5, 1) {
				calm, err := stopAll(ctx, f, fmt.Sprintf("calm-%d", i), stopped, false)
				if err != nil {
					return err
				}
				killed, err := stopAll(ctx, f, fmt.Sprintf("killed-%d", i), stopped, true)
				if err != nil {
					return err
				}
				ratios = append(ratios, killed.Seconds()/calm.Seconds())
				calms, killeds = append(calms, calm.Seconds()), append(killeds, killed.Seconds())
			}
			stop := against(fmt.Sprintf("stopping %d instances after the agent was killed and is back", stopped), middle(killeds), "s", "the same undisturbed (aim: 1.2 times)", middle(calms))
			stop.Ratio, stop.Low, stop.High = middle(ratios), slices.Min(ratios), slices.Max(ratios)
			out.add(stop)
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// percentile is what so many of a hundred took at most.
func percentile(ds []time.Duration, p int) time.Duration {
	return sortedCopy(ds)[min(len(ds)-1, len(ds)*p/100)]
}

func middle(v []float64) float64 { return slices.Sorted(slices.Values(v))[len(v)/2] }

// lap is when, from the call on, an apply was acknowledged, the instance had a
// process, and it was shown as running.
type lap struct{ acknowledged, process, running time.Duration }

// startedBy is how long the agent's driver has taken for starts, all together,
// and how many there were: its own word, by its metrics.
func startedBy(ctx context.Context, f *fleet.Fleet, runtime string) (sum float64, n float64, err error) {
	m, err := metrics(ctx, f.Plan().Namespace("bergen-1"))
	labels := fmt.Sprintf("{outcome=%q,runtime=%q}", "started", strings.ToLower(runtime))
	return 1000 * m["redoubt_agent_start_seconds_sum"+labels], m["redoubt_agent_start_seconds_count"+labels], err
}

// applied is one workload from apply to its first process and to its phase.
func applied(ctx context.Context, f *fleet.Fleet, c redoubtv1.FleetServiceClient, name string) (l lap, err error) {
	w, err := toolbox(name, 1)
	if err != nil {
		return l, err
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
	if _, err := c.ApplyWorkload(look, &redoubtv1.ApplyWorkloadRequest{Workload: w, CommandId: name}); err != nil {
		return l, err
	}
	l.acknowledged = time.Since(begun)
	for l.running == 0 {
		r, err := c.GetWorkload(look, &redoubtv1.GetWorkloadRequest{Namespace: "default", Name: name})
		if err != nil {
			return l, fmt.Errorf("%s does not run: %w", name, err)
		}
		for _, i := range r.GetWorkload().GetStatus().GetInstances() {
			if i.GetStatus().GetPhase() == redoubtv1.InstancePhase_INSTANCE_PHASE_RUNNING {
				l.running = time.Since(begun)
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
	var ok bool
	if l.process, ok = <-seen; !ok {
		return l, fmt.Errorf("%s runs, and no process of it was seen", name)
	}
	return l, end(ctx, f, name)
}

// groupsWithProcesses are the control groups of a node's instances in which
// something runs.
func groupsWithProcesses(node string) (out []string) {
	for _, root := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup"} {
		groups, _ := filepath.Glob(filepath.Join(root, "redoubt", node, "rd-*"))
		for _, g := range groups {
			procs, _ := os.ReadFile(filepath.Join(g, "cgroup.procs"))
			for pid := range strings.FieldsSeq(string(procs)) {
				// runc's own first process waits there until it becomes the workload's.
				if comm, err := os.ReadFile(filepath.Join("/proc", pid, "comm")); err == nil && !strings.HasPrefix(string(comm), "runc") {
					out = append(out, g)
					break
				}
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
