package net

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"redoubt.dev/redoubt/integration/net/attack"
	"redoubt.dev/redoubt/integration/net/fleet"
	"redoubt.dev/redoubt/integration/net/topology"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// Addresses beyond the node, at its site's router.
const (
	beyond = "198.51.100.10"
	barred = "198.51.100.20"
)

// metadata are where clouds answer with credentials; the site's router does.
var metadata = []string{"169.254.169.254", "100.100.100.200", "168.63.129.16", "192.0.0.192"}

const metadata6 = "fd00:ec2::254"

// front is one node with one runtime, and what stands on it.
type front struct {
	*trial
	node, site, runtime string
	at                  map[string]instance // by role
	gateway             netip.Addr
	link                string // the host's end of the bridge
	gatewayMAC          string
	verdicts            []verdict
}

type instance struct {
	uid     string
	address netip.Addr
}

// mac is the hardware address that the node gives to the holder of an address.
func (i instance) mac() string {
	b := i.address.As4()
	return net.HardwareAddr{0x02, 0x52, b[0], b[1], b[2], b[3]}.String()
}

// verdict is what came of one thing that was tried. A control is what must get
// through, so that silence elsewhere means something.
type verdict struct {
	promise, what string
	held, control bool
	inside        bool // stopped by the system that the attacker runs on
	how           string
}

// TestPromisesOfTheNetworkFromInsideAnAttacker attacks each promise of a node's
// network from inside a container, once under gVisor and once under runc.
func TestPromisesOfTheNetworkFromInsideAnAttacker(t *testing.T) {
	t.Parallel()
	dir := needs(t, "redoubt")
	work := filepath.Join(dir, ".demo-inside")
	tools := filepath.Join(work, "tools")
	plan := topology.Plan{Prefix: "rd-in", Net: 82, Servers: []string{"s1"}, Sites: []topology.Site{
		{Name: "gv", Nodes: []string{"gv-1"}}, {Name: "rc", Nodes: []string{"rc-1"}},
	}}
	fl, err := fleet.New(fleet.Config{
		Clone: dir, Binary: filepath.Join(dir, "bin/redoubt"), Dir: work, SVIDTTL: time.Hour, Heartbeat: 2 * time.Second,
		Plan: plan, AgentArgs: []string{"--allow-host-path", tools},
		Allow: map[string][]string{"gv-1": {"gvisor"}, "rc-1": {"runc"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	build := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(tools, "attacker"), "./integration/net/attack/attacker")
	build.Dir = dir
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the attacker: %v\n%s", err, out)
	}
	f := raise(t, fl)
	begun := time.Now()
	fronts := []*front{{node: "gv-1", site: "gv", runtime: "gvisor"}, {node: "rc-1", site: "rc", runtime: "runc"}}
	t.Run("fronts", func(t *testing.T) {
		for _, fr := range fronts {
			t.Run(fr.runtime, func(t *testing.T) {
				t.Parallel()
				fr.trial = &trial{f.Fleet, t}
				fr.scenery()
				fr.deploy(tools)
				fr.reach()
				fr.forge()
				fr.flood()
				fr.flush()
			})
		}
	})
	t.Logf("attacked for %.1f s\n%s", time.Since(begun).Seconds(), table(fronts))
}

// table is what was promised, and what came of it on each front.
func table(fronts []*front) string {
	var promises []string
	for _, fr := range fronts {
		for _, v := range fr.verdicts {
			if !slices.Contains(promises, v.promise) {
				promises = append(promises, v.promise)
			}
		}
	}
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	head := []string{"PROMISE"}
	for _, fr := range fronts {
		head = append(head, strings.ToUpper(fr.runtime))
	}
	fmt.Fprintln(w, strings.Join(head, "\t"))
	for _, p := range promises {
		row := []string{p}
		for _, fr := range fronts {
			tried, controls, inside, broken, notes := 0, 0, 0, 0, []string{}
			for _, v := range fr.verdicts {
				if v.promise != p {
					continue
				}
				if v.control {
					controls++
				} else {
					tried++
				}
				if !v.held {
					broken++
				}
				if v.inside {
					inside++
				}
				if v.how != "" && v.held {
					notes = append(notes, v.how)
				}
			}
			cell := fmt.Sprintf("held: %d tried, %d let through", tried, controls)
			if broken > 0 {
				cell = fmt.Sprintf("BROKEN: %d of %d", broken, tried+controls)
			} else if inside > 0 {
				cell += fmt.Sprintf(", %d refused by the sandbox", inside)
			}
			if len(notes) > 0 {
				cell += "; " + strings.Join(notes, "; ")
			}
			row = append(row, cell)
		}
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	w.Flush()
	return b.String()
}

// judge notes a verdict, and fails the test where a promise is broken.
func (f *front) judge(v verdict) {
	f.t.Helper()
	f.verdicts = append(f.verdicts, v)
	if !v.held {
		f.t.Errorf("%s, %s: %s: %s", f.runtime, v.promise, v.what, v.how)
	}
}

func (f *front) router() string { return f.Plan().Namespace(f.site) }
func (f *front) host() string   { return f.Plan().Namespace(f.node) }
func (f *front) ip() string     { return f.Plan().Address(f.node) }

// must stops the test on an error.
func (f *front) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// scenery sets up what should not be reached: a cloud's metadata, ports of the
// host, and hosts beyond.
func (f *front) scenery() {
	f.t.Helper()
	router := append([]string{beyond, barred}, metadata...)
	f.must(topology.In(f.router(), func() error {
		for _, a := range router {
			if err := giveAddress("lo", a+"/32"); err != nil {
				return err
			}
		}
		return giveAddress6("br0", metadata6+"/64")
	}))
	f.must(topology.In(f.host(), func() error { return giveAddress6("eth0", "fd00:ec2::1/64") }))
	at := []string{"tcp:[" + metadata6 + "]:80"}
	for _, a := range router {
		at = append(at, "tcp:"+a+":80", "udp:"+a+":80", "udp:"+a+":53")
	}
	at = append(at, "tcp:"+beyond+":81", "tcp:"+beyond+":8001")
	f.serve(f.router(), "beyond", at)
	f.serve(f.host(), "host", []string{"tcp::2222", "udp:" + f.ip() + ":2222", "unix:@redoubt-attack-" + f.node})
}

// serve answers in a namespace until the test ends.
func (f *front) serve(namespace, name string, at []string) {
	f.t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- topology.In(namespace, func() error {
			return attack.Serve(ctx, name, at, func() { close(ready) })
		})
	}()
	f.t.Cleanup(func() {
		stop()
		<-done
	})
	select {
	case <-ready:
	case err := <-done:
		done <- nil
		f.t.Fatalf("serve in %s: %v", namespace, err)
	}
}

func giveAddress(link, prefix string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(prefix)
	if err != nil {
		return err
	}
	a.Flags = unix.IFA_F_NODAD
	return netlink.AddrAdd(l, a)
}

func giveAddress6(link, prefix string) error {
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+link+"/disable_ipv6", []byte("0"), 0); err != nil {
		return err
	}
	return giveAddress(link, prefix)
}

// deploy applies the workloads: who is attacked, who may be reached, and three
// who attack.
func (f *front) deploy(tools string) {
	f.t.Helper()
	f.at = map[string]instance{}
	serve := "tcp:0.0.0.0:8000, tcp:0.0.0.0:8001, udp:0.0.0.0:8000"
	caps := "securityContext: { capabilities: { add: [NET_RAW, NET_ADMIN] } }"
	roles := []struct{ role, network, more string }{
		{"victim", "", fmt.Sprintf("ports: [{ containerPort: 8000-8001, hostPort: 18000-18001, hostIP: %s }]", f.ip())},
		{"friend", "network: { allowFrom: [attacker-" + f.site + "] }", ""},
		{"attacker", "", caps},
		{"limited", fmt.Sprintf(`network:
  egress:
  - { cidr: %s/32, ports: [80, 8000-8010] }
  - { cidr: %s/32, ports: [53], protocol: UDP }
  - { cidr: %s/32 }`, beyond, barred, metadata[0]), caps},
		{"silent", "network: { egress: none }", caps},
	}
	for _, r := range roles {
		name := r.role + "-" + f.site
		text := fmt.Sprintf(`kind: Service
name: %s
isolation: { floor: container }
placement: { sites: [%s], replicas: 1 }
%s
containers:
- image: toolbox
  command: [/attack/attacker, serve, %s, %s]
  resources: { limits: { memory: 64Mi }, requests: { cpu: 50m } }
  volumeMounts: [{ name: attack, mountPath: /attack, readOnly: true }]
  %s
volumes:
- { name: attack, hostPath: { path: %s } }
`, name, f.site, r.network, r.role, quoted(serve), r.more, tools)
		f.must(os.WriteFile(f.File(name+".yml"), []byte(text), 0o600))
		f.run("apply", f.Path(name+".yml"))
	}
	for _, r := range roles {
		f.eventually(r.role+" runs", time.Minute, func() string {
			list, err := f.Instances(f.ctx(), r.role+"-"+f.site)
			if err != nil || len(list) != 1 || list[0].GetStatus().GetPhase() != redoubtv1.InstancePhase_INSTANCE_PHASE_RUNNING {
				return fmt.Sprintf("%v %v", list, err)
			}
			if got := list[0].GetStatus().GetRuntime(); got != f.runtime {
				f.t.Fatalf("%s runs under %s", r.role, got)
			}
			addr, err := netip.ParseAddr(list[0].GetStatus().GetAddress())
			if err != nil {
				return err.Error()
			}
			f.at[r.role] = instance{list[0].GetAssignment().GetUid(), addr}
			return ""
		})
	}
	f.gateway = netip.PrefixFrom(f.at["victim"].address, 24).Masked().Addr().Next()
	f.must(topology.In(f.host(), func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			if strings.HasPrefix(l.Attrs().Name, "rdn") {
				f.link, f.gatewayMAC = l.Attrs().Name, l.Attrs().HardwareAddr.String()
			}
		}
		return err
	}))
	// UDP answers from the address that was asked only if it is bound to it.
	f.serve(f.host(), "host", []string{"udp:" + f.gateway.String() + ":2222"})
	// The network around knows where the instances are.
	f.must(topology.In(f.router(), func() error {
		link, err := netlink.LinkByName("br0")
		if err != nil {
			return err
		}
		subnet := netip.PrefixFrom(f.gateway, 24).Masked()
		return netlink.RouteReplace(&netlink.Route{
			LinkIndex: link.Attrs().Index, Gw: net.ParseIP(f.ip()),
			Dst: &net.IPNet{IP: subnet.Addr().AsSlice(), Mask: net.CIDRMask(subnet.Bits(), 32)},
		})
	}))
	f.control(neighbours, "the neighbour, from the host", attack.Probe{Kind: attack.TCP, To: f.at["victim"].address.String() + ":8000"}, f.host())
}

func quoted(list string) string {
	parts := strings.Split(list, ", ")
	for i, p := range parts {
		parts[i] = fmt.Sprintf("%q", p)
	}
	return strings.Join(parts, ", ")
}

// inside runs the attacker's program in an instance, with a plan as its file.
func inside[T any](f *front, role, verb string, plan any) T {
	f.t.Helper()
	file := fmt.Sprintf("%s-%s-%s.json", role, f.site, verb)
	data, err := json.Marshal(plan)
	f.must(err)
	f.must(os.WriteFile(f.File("tools/"+file), data, 0o600))
	out, err := execute[T](f, role, verb, "/attack/"+file)
	f.must(err)
	return out
}

// execute runs the attacker's program in an instance and reads what it says.
func execute[T any](f *front, role string, args ...string) (out T, err error) {
	got, err := f.Run(f.ctx(), "", append([]string{"exec", role + "-" + f.site, "--", "/attack/attacker"}, args...)...)
	if err == nil && got.Code != 0 {
		err = fmt.Errorf("%q in %s ended with %d: %s", args, role, got.Code, got.Stderr)
	}
	if err == nil {
		err = json.Unmarshal([]byte(got.Stdout), &out)
	}
	return out, err
}

// control makes a probe from a namespace of the host, which must succeed.
func (f *front) control(promise, what string, p attack.Probe, namespace string) {
	f.t.Helper()
	p.Patience = 15 * time.Second
	var r attack.Result
	f.must(topology.In(namespace, func() error {
		r = p.Try()
		return nil
	}))
	f.judge(verdict{promise: promise, what: what, held: r.Reached, control: true, how: r.Error})
}
