package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"redoubt.dev/redoubt/cmd/redoubt/workloadfile"
	"redoubt.dev/redoubt/integration/net/fleet"
	"redoubt.dev/redoubt/integration/net/topology"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// layout is a fleet to bring up.
type layout struct {
	servers []string
	nodes   []string          // SITE-NUMBER
	only    map[string]string // the one runtime that a node offers; without an entry, all
	// agent and server are further flags of all of them.
	agent, server []string
}

// withFleet has a real fleet up while do works: processes in network
// namespaces.
func withFleet(ctx context.Context, l layout, do func(*fleet.Fleet) error) (err error) {
	if os.Getuid() != 0 {
		return errors.New("it needs root: it makes network namespaces")
	}
	dir, err := os.MkdirTemp(".", ".demo-bench")
	if err != nil {
		return err
	}
	allow := map[string][]string{}
	for node, runtime := range l.only {
		allow[node] = []string{runtime}
	}
	var sites []topology.Site
	for _, n := range l.nodes {
		name, _, _ := strings.Cut(n, "-")
		if len(sites) == 0 || sites[len(sites)-1].Name != name {
			sites = append(sites, topology.Site{Name: name})
		}
		sites[len(sites)-1].Nodes = append(sites[len(sites)-1].Nodes, n)
	}
	f, err := fleet.New(fleet.Config{
		Clone: ".", Binary: filepath.Join("bin", "redoubt"), Dir: dir, SVIDTTL: time.Hour, Heartbeat: 5 * time.Second,
		Allow: allow, AgentArgs: l.agent, ServerArgs: l.server,
		Plan: topology.Plan{Prefix: "rd-bench", Net: 79, Servers: l.servers, Sites: sites},
	})
	if err != nil {
		return err
	}
	defer func() {
		_, downErr := f.Down(ctx)
		if err == nil {
			downErr = errors.Join(downErr, f.Clear()) // the logs are of use no more
		}
		err = errors.Join(err, downErr, f.Close())
	}()
	if err := f.Up(ctx); err != nil {
		return err
	}
	return do(f)
}

// toolbox is a workload that sleeps.
func toolbox(name string, replicas int) (*redoubtv1.Workload, error) {
	list, err := workloadfile.Parse(name, fmt.Appendf(nil, `kind: Service
name: %s
isolation: { floor: container }
placement: { sites: [bergen], replicas: %d }
terminationGracePeriodSeconds: 1
containers:
- image: toolbox
  command: [sleep, "3600"]
  resources: { requests: { cpu: 10m }, limits: { cpu: 500m, memory: 32Mi } }
`, name, replicas))
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

// pss is the share of memory that is a process's own, bytes: what is shared is
// divided among those who share it.
func pss(pid int) (int64, error) { return share(pid, "Pss") }

// share is a line of what the kernel says of a process's memory: Pss, or of it
// Pss_Anon, what the process has made, and Pss_File, its program's pages.
func share(pid int, of string) (int64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, of+":"); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("process %d: smaps_rollup has no %s", pid, of)
}

// cpuTime is what the threads that a process has now have used so far.
func cpuTime(pid int) (time.Duration, error) {
	var sum time.Duration
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		return 0, err
	}
	for _, t := range threads {
		if data, err := os.ReadFile(t); err == nil {
			if ns, err := strconv.ParseInt(strings.Fields(string(data))[0], 10, 64); err == nil {
				sum += time.Duration(ns)
			}
		}
	}
	return sum, nil
}

// wakeups is how often the threads that a process has now have slept until
// something came.
func wakeups(pid int) (sum int64) {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	for _, t := range threads {
		data, _ := os.ReadFile(t)
		for line := range strings.Lines(string(data)) {
			if n, ok := strings.CutPrefix(line, "voluntary_ctxt_switches:"); ok {
				v, _ := strconv.ParseInt(strings.TrimSpace(n), 10, 64)
				sum += v
			}
		}
	}
	return sum
}

// processesOf are those whose words have all the given ones in them.
func processesOf(has ...string) (pids []int) {
	for pid, words := range fleet.Processes() {
		line := strings.Join(words, " ")
		if !slices.ContainsFunc(has, func(h string) bool { return !strings.Contains(line, h) }) {
			pids = append(pids, pid)
		}
	}
	return pids
}
