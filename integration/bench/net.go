package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"redoubt.dev/redoubt/cmd/redoubt/workloadfile"
	"redoubt.dev/redoubt/integration/net/fleet"
	"redoubt.dev/redoubt/integration/net/topology"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

const aboutNet = `
The same small server, asked from the site's router over a veth pair that ends at it, as
a plain process, and through a published port of an instance under runc and under gVisor.
The way to the instance is the site's bridge and a veth pair to the node, the node's
rules (destination translated, forwarded), a veth pair to the node's switch, its bridge
and a veth pair to the instance. Rounds of one second are taken in turn. A ping is 64
bytes there and back on one connection; a connection is opened, used for one ping and
closed; requests are HTTP over 16 connections that are kept. Who asks shares the cores
with who answers.`

const requestsAt = 16

// benchNet measures a published port against a bare veth pair.
func benchNet(ctx context.Context, set settings, out *result) error {
	dir, err := os.MkdirTemp(".", ".demo-echo")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	build := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(dir, "echo"), "./integration/bench/echo")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the server: %w: %s", err, text)
	}
	l := layout{
		servers: []string{"s1"}, nodes: []string{"bergen-1", "voss-1"}, only: map[string]string{"bergen-1": "runc", "voss-1": "gvisor"},
		agent: []string{"--allow-host-path", dir},
	}
	return withFleet(ctx, l, func(f *fleet.Fleet) error {
		end, err := bareVeth(f.Plan().Namespace("bergen"), filepath.Join(dir, "echo"))
		if err != nil {
			return err
		}
		defer end()
		targets := []target{{name: "a bare veth pair", from: f.Plan().Namespace("bergen"), echo: bareServer + ":7000", http: bareServer + ":8080"}}
		for _, n := range []struct{ node, site, runtime string }{{"bergen-1", "bergen", "runc"}, {"voss-1", "voss", "gVisor"}} {
			w, err := echoes(n.site, dir)
			if err != nil {
				return err
			}
			if err := run(ctx, f, w); err != nil {
				return err
			}
			a := f.Plan().Address(n.node)
			targets = append(targets, target{name: "a published port, " + n.runtime, from: f.Plan().Namespace(n.site), echo: a + ":17000", http: a + ":18080"})
		}
		return throughPorts(ctx, set, targets, out)
	})
}

// throughPorts measures all targets in turn; the first is the peer.
func throughPorts(ctx context.Context, set settings, targets []target, out *result) error {
	rounds, long := set.of(8, 2), time.Second
	ways := []struct {
		name string
		at   int
		do   func(target) ([]time.Duration, error)
	}{
		{"a ping", 1, func(t target) ([]time.Duration, error) { return t.pings(ctx, long) }},
		{"a connection", 1, func(t target) ([]time.Duration, error) { return t.connects(ctx, long) }},
		{"a request", requestsAt, func(t target) ([]time.Duration, error) { return t.requests(ctx, requestsAt, long) }},
	}
	for _, way := range ways {
		all := make([][]time.Duration, len(targets)) // of all rounds
		p50, p95, p99, rate := make([][]float64, len(targets)), make([][]float64, len(targets)), make([][]float64, len(targets)), make([][]float64, len(targets))
		for round := range rounds + 1 {
			for i, t := range targets {
				begun := time.Now()
				took, err := way.do(t)
				if err != nil {
					return fmt.Errorf("%s: %w", t.name, err)
				}
				if len(took) < 10 {
					return fmt.Errorf("%s answered only %d times", t.name, len(took))
				}
				if round == 0 {
					continue // it warms
				}
				rate[i] = append(rate[i], float64(len(took))/time.Since(begun).Seconds())
				all[i] = append(all[i], took...)
				for p, into := range map[int]*[]float64{50: &p50[i], 95: &p95[i], 99: &p99[i]} {
					*into = append(*into, us(percentile(took, p)))
				}
			}
		}
		shape := plot{Title: "round trip of " + way.name, X: "µs, up to the 99th percentile", Y: "% that took at most so long"}
		for i, t := range targets {
			shape.Lines = append(shape.Lines, within99(t.name, all[i]))
			if i == 0 {
				continue
			}
			of := fmt.Sprintf("%s through %s", way.name, t.name)
			peer := "through " + targets[0].name
			out.add(ratioed(of+", p50", "µs", p50[i], p50[0], peer), ratioed(of+", p95", "µs", p95[i], p95[0], peer),
				ratioed(of+", p99", "µs", p99[i], p99[0], peer))
			if way.at > 1 {
				out.add(ratioed(fmt.Sprintf("requests a second through %s", t.name), "1/s", rate[i], rate[0], peer+" "+moreIsBetter))
			}
		}
		out.Plots = append(out.Plots, shape)
	}
	return nil
}

func us(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// within99 is the distribution up to its 99th percentile: what lies beyond
// would flatten the rest.
func within99(name string, took []time.Duration) curve {
	sorted := sortedCopy(took)
	c := curve{Name: name}
	for p := range 100 {
		c.Points = append(c.Points, [2]float64{us(sorted[len(sorted)*p/100]), float64(p)})
	}
	return c
}

// echoes is the server as a workload of a site, at published ports.
func echoes(site, dir string) (*redoubtv1.Workload, error) {
	name := "echo-" + site
	list, err := workloadfile.Parse(name, fmt.Appendf(nil, `kind: Service
name: %s
isolation: { floor: container }
placement: { sites: [%s], replicas: 1 }
terminationGracePeriodSeconds: 1
containers:
- image: toolbox
  command: [/echo/echo]
  ports: [{ containerPort: 7000, hostPort: 17000 }, { containerPort: 8080, hostPort: 18080 }]
  resources: { requests: { cpu: 100m }, limits: { memory: 256Mi } }
  readinessProbe: { tcpSocket: { port: 8080 }, periodSeconds: 1 }
  volumeMounts: [{ name: echo, mountPath: /echo, readOnly: true }]
volumes: [{ name: echo, hostPath: { path: %s } }]
`, name, site, dir))
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

const (
	bareServer = "198.18.255.2"
	bareAsker  = "198.18.255.1"
)

// bareVeth runs the server in a network namespace that only its process holds,
// with one veth pair from the namespace of who asks. All of it goes with end.
func bareVeth(from, program string) (end func(), err error) {
	cmd := exec.Command(program)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	end = func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
	defer func() {
		if err != nil {
			end()
		}
	}()
	return end, topology.In(from, func() error {
		pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "bare0"}, PeerName: "bare1"}
		if err := netlink.LinkAdd(pair); err != nil {
			return fmt.Errorf("make a veth pair: %w", err)
		}
		far, err := netlink.LinkByName("bare1")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetNsPid(far, cmd.Process.Pid); err != nil {
			return err
		}
		if err := ready("bare0", bareAsker); err != nil {
			return err
		}
		ns, err := unix.Open(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(ns)
		if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil { // In throws the thread away
			return err
		}
		return ready("bare1", bareServer)
	})
}

// ready gives a link its address and takes it up, in the thread's namespace.
func ready(name, address string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return errors.Join(netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(address).To4(), Mask: net.CIDRMask(30, 32)}}), netlink.LinkSetUp(link))
}
