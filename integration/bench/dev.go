package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"redoubt.dev/redoubt/cmd/redoubt/workloadfile"
	"redoubt.dev/redoubt/deploy/dev"
	"redoubt.dev/redoubt/deploy/runtimes"
	"redoubt.dev/redoubt/identity"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

const aboutDev = `
From the start of the process of ` + "`redoubt dev`" + `, with nothing there, to its first
instance shown as running. The workload is applied as soon as the server takes it, which
is before the node has proven anything. Each run ends ` + "`dev`" + ` in the orderly way, which
takes everything away. Nomad's agent in its dev mode has been seen at 2.2 to 3.2 s, and
at 27 to 30 s in 3 of 15 runs, for a registration that came before the leader.`

// benchDev measures a whole fleet of one machine, from nothing to its first
// instance.
func benchDev(ctx context.Context, set settings, out *result) error {
	if _, err := os.Stat(dev.DefaultContext); err == nil {
		return fmt.Errorf("%s is there: a dev fleet runs on this machine; end it first", dev.DefaultContext)
	}
	dir, err := os.MkdirTemp(".", ".demo-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	var up, ready, running []time.Duration
	for range set.of(50, 5) {
		u, p, r, err := devOnce(ctx, dir)
		if err != nil {
			return err
		}
		up, ready, running = append(up, u), append(ready, p), append(running, r)
	}
	unpack, answers, err := firstSteps(ctx, set.of(10, 2))
	if err != nil {
		return err
	}
	const aim = 2000.0
	out.add(
		against("dev to its first instance running, p50", ms(median(running)), "ms", "the aim", aim),
		against("dev to its first instance running, p95", ms(percentile(running, 95)), "ms", "the aim", aim),
		against("dev to its first instance running, slowest", ms(percentile(running, 100)), "ms", "the aim for all", 5000),
		against("unpacking what the program carries, median", ms(unpack), "ms", "the whole", ms(median(running))),
		against("a private containerd until it answers, median", ms(answers), "ms", "the whole", ms(median(running))),
		against("of that until its server answers, p50", ms(median(up)), "ms", "the whole", ms(median(running))),
		against("of that until the node has proven its runtimes, p50", ms(median(ready)), "ms", "the whole", ms(median(running))))
	out.Plots = append(out.Plots, plot{
		Title: "redoubt dev", X: "ms from its start", Y: "% of runs that took at most so long",
		Lines: []curve{spread("until its server answers", up), spread("until the node has proven its runtimes", ready), spread("until an instance runs", running)},
	})
	return nil
}

// devOnce is one run: until its server takes a workload, until its node is
// ready, until the workload runs.
func devOnce(ctx context.Context, dir string) (up, ready, running time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return 0, 0, 0, err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join("bin", "redoubt"), "dev", "--data-dir", filepath.Join(dir, "data"))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, 0, 0, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	over := errors.New("")
	defer func() {
		if err == over {
			text, _ := os.ReadFile(log.Name())
			err = fmt.Errorf("redoubt dev ended: %s", text)
			return
		}
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case e := <-ended:
			if err == nil && e != nil {
				text, _ := os.ReadFile(log.Name())
				err = fmt.Errorf("end redoubt dev: %w: %s", e, text)
			}
		case <-time.After(time.Minute):
			err = errors.Join(err, errors.New("redoubt dev does not end"), cmd.Process.Kill())
			<-ended
		}
	}()
	// again asks until it is answered with yes.
	again := func(every time.Duration, what string, ask func() bool) (time.Duration, error) {
		for !ask() {
			select {
			case <-time.After(every):
			case <-ended:
				return 0, over
			case <-ctx.Done():
				return 0, fmt.Errorf("redoubt dev: %s: %w", what, ctx.Err())
			}
		}
		return time.Since(begun), nil
	}
	var file identity.File
	if _, err = again(2*time.Millisecond, "its context is there", func() bool {
		file, err = identity.LoadFile(dev.DefaultContext)
		return err == nil
	}); err != nil {
		return 0, 0, 0, err
	}
	src := file.Source()
	defer src.Close()
	list, err := workloadfile.Parse("first", []byte("kind: Service\nname: first\nterminationGracePeriodSeconds: 1\ncontainers:\n- image: toolbox\n  command: [sleep, \"3600\"]\n"))
	if err != nil {
		return 0, 0, 0, err
	}
	ask := func(do func(redoubtv1.FleetServiceClient) error) bool {
		conn, err := identity.NewConn("passthrough:///"+file.Addresses[0], src, identity.AuthorizeServers(file.Bundle.TrustDomain()))
		if err != nil {
			return false
		}
		defer conn.Close()
		return do(redoubtv1.NewFleetServiceClient(conn)) == nil
	}
	if up, err = again(5*time.Millisecond, "its server takes a workload", func() bool {
		return ask(func(c redoubtv1.FleetServiceClient) error {
			_, err := c.ApplyWorkload(ctx, &redoubtv1.ApplyWorkloadRequest{Workload: list[0], CommandId: "first"})
			return err
		})
	}); err != nil {
		return 0, 0, 0, err
	}
	conn, err := identity.NewConn("passthrough:///"+file.Addresses[0], src, identity.AuthorizeServers(file.Bundle.TrustDomain()))
	if err != nil {
		return 0, 0, 0, err
	}
	defer conn.Close()
	c := redoubtv1.NewFleetServiceClient(conn)
	running, err = again(10*time.Millisecond, "an instance runs", func() bool {
		if ready == 0 {
			if r, err := c.ListNodes(ctx, &redoubtv1.ListNodesRequest{}); err == nil && len(r.GetNodes()) == 1 && r.GetNodes()[0].GetState() == redoubtv1.NodeState_NODE_STATE_READY {
				ready = time.Since(begun)
			}
		}
		r, err := c.GetWorkload(ctx, &redoubtv1.GetWorkloadRequest{Namespace: "default", Name: "first"})
		if err != nil {
			return false
		}
		i := r.GetWorkload().GetStatus().GetInstances()
		return len(i) == 1 && i[0].GetStatus().GetPhase() == redoubtv1.InstancePhase_INSTANCE_PHASE_RUNNING
	})
	return up, ready, running, err
}

// firstSteps are two things that a first start has to do before it can prove
// anything, each on its own: to unpack the runtimes, and to start containerd.
func firstSteps(ctx context.Context, rounds int) (unpack, answers time.Duration, err error) {
	bundle, err := runtimes.Embedded()
	if err != nil {
		return 0, 0, err
	}
	var unpacks, starts []time.Duration
	for range rounds {
		dir, err := os.MkdirTemp(".", ".demo-bench")
		if err != nil {
			return 0, 0, err
		}
		begun := time.Now()
		_, err = bundle.Unpack(ctx, filepath.Join(dir, "parts"))
		unpacks = append(unpacks, time.Since(begun))
		if err := errors.Join(err, os.RemoveAll(dir)); err != nil {
			return 0, 0, err
		}
		if err := withDriver(ctx, func(p *pairs) error {
			starts = append(starts, p.began)
			return nil
		}); err != nil {
			return 0, 0, err
		}
	}
	return median(unpacks), median(starts), nil
}
