package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"redoubt.dev/redoubt/cmd/redoubt/workloadfile"
	"redoubt.dev/redoubt/integration/net/fleet"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// churner is who lets the instances of one node come and go.
type churner struct {
	fleetClient   redoubtv1.FleetServiceClient
	f             *fleet.Fleet
	node          *node
	site, runtime string
	names, ports  []string // workloads of ten, and of one with a port
	starts, steps atomic.Int64
	threads       float64
}

// patience is how long a step may take, on a busy machine with hundreds of
// sandboxes.
const patience = 4 * time.Minute

// file is a workload of the churn. Changed is what a change changes.
func (ch *churner) file(name string, replicas int, changed string) (*redoubtv1.Workload, error) {
	text := fmt.Sprintf(`kind: Service
name: %s
isolation: { floor: container }
placement: { sites: [%s], replicas: %d }
terminationGracePeriodSeconds: 1
containers:
- image: toolbox
  command: [sleep, "36000"]
  env: [{ name: CHANGED, value: %q }]
  resources: { requests: { cpu: 1m, memory: 4Mi }, limits: { cpu: 500m, memory: 32Mi } }
`, name, ch.site, replicas, changed)
	_, number, _ := strings.Cut(strings.TrimPrefix(name, ch.site), "-")
	if port, ok := strings.CutPrefix(number, "port-"); ok {
		at, err := strconv.Atoi(port)
		if err != nil {
			return nil, err
		}
		text += fmt.Sprintf("  ports: [{ containerPort: 80, hostPort: %d }]\n", 20000+at)
	} else if n, err := strconv.Atoi(number); err == nil && n%2 == 1 {
		text += fmt.Sprintf("network: { allowFrom: [%s-0], egress: [{ cidr: 10.0.0.0/8, ports: [443] }] }\n", ch.site)
	}
	list, err := workloadfile.Parse(name, []byte(text))
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

func (ch *churner) size(name string) int {
	if strings.Contains(name, "-port-") {
		return 1
	}
	return churnOfGroup
}

// each does it for all workloads, three at a time.
func (ch *churner) each(ctx context.Context, do func(context.Context, string) error) error {
	var mu sync.Mutex
	var errs []error
	var all sync.WaitGroup
	turn := make(chan struct{}, 3)
	for _, name := range append(append([]string(nil), ch.names...), ch.ports...) {
		turn <- struct{}{}
		all.Go(func() {
			defer func() { <-turn }()
			if err := do(ctx, name); err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
		})
	}
	all.Wait()
	ch.threads = threadsOfAll()
	return errors.Join(errs...)
}

func threadsOfAll() float64 {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(text))
	_, all, _ := strings.Cut(fields[3], "/")
	n, _ := strconv.ParseFloat(all, 64)
	return n
}

func (ch *churner) up(ctx context.Context, name string) error {
	return ch.apply(ctx, name, ch.size(name), "", nil)
}

// apply makes a workload so, and waits until all that it is to have runs and
// none of the instances that are to go is left.
func (ch *churner) apply(ctx context.Context, name string, replicas int, changed string, gone map[string]bool) error {
	w, err := ch.file(name, replicas, changed)
	if err != nil {
		return err
	}
	if err := ch.call(ctx, func(ctx context.Context) error {
		_, err := ch.fleetClient.ApplyWorkload(ctx, &redoubtv1.ApplyWorkloadRequest{Workload: w, CommandId: rand.Text()})
		return err
	}); err != nil {
		return fmt.Errorf("apply %s: %w", name, err)
	}
	return ch.until(ctx, name+" runs", func(is []*redoubtv1.Instance) string {
		if len(is) != replicas {
			return fmt.Sprintf("%d instances of %d", len(is), replicas)
		}
		for _, i := range is {
			if p := i.GetStatus().GetPhase(); p != redoubtv1.InstancePhase_INSTANCE_PHASE_RUNNING {
				return i.GetAssignment().GetInstance() + " is " + p.String() + ": " + i.GetStatus().GetMessage()
			}
			if gone[i.GetAssignment().GetUid()] {
				return i.GetAssignment().GetInstance() + " is not replaced yet"
			}
		}
		return ""
	}, name)
}

// call repeats a call that a busy fleet has not answered; ids make that safe.
func (ch *churner) call(ctx context.Context, do func(context.Context) error) error {
	var err error
	for range 5 {
		once, cancel := context.WithTimeout(ctx, 20*time.Second)
		err = do(once)
		cancel()
		if c := status.Code(err); err == nil || c != codes.DeadlineExceeded && c != codes.Unavailable || ctx.Err() != nil {
			return err
		}
	}
	return err
}

func (ch *churner) instances(ctx context.Context, name string) (is []*redoubtv1.Instance, err error) {
	err = ch.call(ctx, func(ctx context.Context) error {
		r, err := ch.fleetClient.GetWorkload(ctx, &redoubtv1.GetWorkloadRequest{Namespace: "default", Name: name})
		is = r.GetWorkload().GetStatus().GetInstances()
		return err
	})
	if status.Code(err) == codes.NotFound {
		return nil, nil
	}
	return is, err
}

// until waits for a workload's instances to be as missing wants them.
func (ch *churner) until(ctx context.Context, what string, missing func([]*redoubtv1.Instance) string, name string) error {
	for deadline := time.Now().Add(patience); ; {
		is, err := ch.instances(ctx, name)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		m := missing(is)
		if m == "" {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not within %v: %s", what, patience, m)
		}
		if err := pause(ctx, 250*time.Millisecond); err != nil {
			return err
		}
	}
}

// down stops a workload and waits until nothing of it is left.
func (ch *churner) down(ctx context.Context, name string) error {
	id := rand.Text()
	if err := ch.call(ctx, func(ctx context.Context) error {
		_, err := ch.fleetClient.StopWorkload(ctx, &redoubtv1.StopWorkloadRequest{Namespace: "default", Name: name, CommandId: id})
		return err
	}); err != nil {
		return fmt.Errorf("stop %s: %w", name, err)
	}
	return ch.until(ctx, name+" has ended", func(is []*redoubtv1.Instance) string {
		if len(is) > 0 {
			return fmt.Sprintf("%d instances are left, one is %s", len(is), is[0].GetStatus().GetPhase())
		}
		return ""
	}, name)
}

// churn lets instances come and go until over ends, one workload after the
// other; what was begun is ended, so that all run at the end.
func (ch *churner) churn(ctx, over context.Context) error {
	all := append(append([]string(nil), ch.ports...), ch.names...)
	for i := 0; over.Err() == nil; i++ {
		// Three ports to a workload of ten: both get their turn.
		name := all[(i*7)%len(all)]
		for _, step := range []func(context.Context, string) error{ch.killed, ch.asked, ch.changed, ch.shrunk, ch.again} {
			if err := step(ctx, name); err != nil {
				return err
			}
			ch.steps.Add(1)
			if over.Err() != nil {
				break
			}
		}
	}
	return nil
}

// killed kills a workload's processes, one each second instance, and waits for
// their restarts.
func (ch *churner) killed(ctx context.Context, name string) error {
	is, err := ch.instances(ctx, name)
	if err != nil {
		return err
	}
	before := map[string]uint32{}
	for n, i := range is {
		if pid := int(i.GetStatus().GetPid()); n%2 == 0 && pid > 1 && inGroupOf(pid, ch.node.name) {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill %s: %w", i.GetAssignment().GetInstance(), err)
			}
			before[i.GetAssignment().GetUid()] = i.GetStatus().GetRestarts()
		}
	}
	if len(before) == 0 {
		return fmt.Errorf("%s has no process to kill", name)
	}
	ch.starts.Add(int64(len(before)))
	return ch.until(ctx, name+" runs again", func(is []*redoubtv1.Instance) string {
		for _, i := range is {
			was, killed := before[i.GetAssignment().GetUid()]
			if killed && (i.GetStatus().GetRestarts() <= was || i.GetStatus().GetPhase() != redoubtv1.InstancePhase_INSTANCE_PHASE_RUNNING) {
				return i.GetAssignment().GetInstance() + " is " + i.GetStatus().GetPhase().String()
			}
		}
		return ""
	}, name)
}

// inGroupOf tells whether a process is in a control group of a node: a pid may
// be another's by now.
func inGroupOf(pid int, node string) bool {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cgroup"))
	return err == nil && strings.Contains(string(text), "/redoubt/"+node+"/")
}

// asked runs a command in an instance, and reads the workload's logs.
func (ch *churner) asked(ctx context.Context, name string) error {
	for _, args := range [][]string{{"exec", name, "--", "true"}, {"logs", name}} {
		r, err := ch.f.Run(ctx, "", args...)
		if err != nil {
			return err
		}
		if r.Code != 0 {
			return fmt.Errorf("redoubt %s ended with %d: %s", strings.Join(args, " "), r.Code, r.Stderr)
		}
	}
	return nil
}

// changed changes a workload, which replaces its instances.
func (ch *churner) changed(ctx context.Context, name string) error {
	is, err := ch.instances(ctx, name)
	if err != nil {
		return err
	}
	gone := map[string]bool{}
	for _, i := range is {
		gone[i.GetAssignment().GetUid()] = true
	}
	ch.starts.Add(int64(ch.size(name)))
	return ch.apply(ctx, name, ch.size(name), rand.Text(), gone)
}

// shrunk lets a workload shrink to half and grow again.
func (ch *churner) shrunk(ctx context.Context, name string) error {
	w, err := ch.instances(ctx, name)
	if err != nil || len(w) < 2 {
		return err
	}
	if err := ch.apply(ctx, name, ch.size(name)/2, "shrunk", nil); err != nil {
		return err
	}
	ch.starts.Add(int64(ch.size(name) + ch.size(name)/2))
	return ch.apply(ctx, name, ch.size(name), "shrunk", nil)
}

// again stops a workload and applies it anew.
func (ch *churner) again(ctx context.Context, name string) error {
	if err := ch.down(ctx, name); err != nil {
		return err
	}
	ch.starts.Add(int64(ch.size(name)))
	return ch.up(ctx, name)
}
