package network

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// footprint is all that a network could leave on a host.
type footprint struct {
	Links, Addresses, Routes, Tables, Mounts, Files []string
	Sysctls                                         []setting
}

func (w *world) footprint() (f footprint) {
	w.t.Helper()
	h := must(handleAt(w.node, unix.NETLINK_ROUTE))
	defer h.Close()
	for _, l := range must(h.LinkList()) {
		f.Links = append(f.Links, fmt.Sprint(l.Attrs().Name, " ", l.Attrs().Alias, " up=", l.Attrs().Flags&net.FlagUp != 0))
	}
	for _, a := range must(h.AddrList(nil, netlink.FAMILY_ALL)) {
		f.Addresses = append(f.Addresses, a.IPNet.String())
	}
	all := &netlink.Route{Table: unix.RT_TABLE_UNSPEC}
	for _, r := range must(h.RouteListFiltered(netlink.FAMILY_V4, all, netlink.RT_FILTER_TABLE)) {
		f.Routes = append(f.Routes, r.String())
	}
	for _, t := range must(must(connAt(w.node)).ListTables()) {
		f.Tables = append(f.Tables, t.Name)
	}
	f.Mounts = mountsBelow(w.dir)
	filepath.WalkDir(w.dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && path != w.dir && filepath.Base(path) != "lock" {
			f.Files = append(f.Files, path)
		}
		return nil
	})
	w.ok(w.node.do(func() (err error) {
		f.Sysctls, err = forwardingSettings()
		return err
	}))
	return f
}

func TestTeardownLeavesNothing(t *testing.T) {
	for _, before := range []string{"0", "1"} {
		t.Run("forwarding "+before, func(t *testing.T) {

			w := newWorld(t)
			w.ok(w.node.do(func() error {
				// Settings that a change of ip_forward overwrites.
				return setPresent([]setting{{forwarding, before}, {"net/ipv4/conf/all/accept_redirects", "0"}, {"net/ipv4/conf/up0/forwarding", "1"}})
			}))
			want := w.footprint()
			n := w.open()
			w.attach(n, Spec{Instance: "web-1", Ports: somePorts(1)})
			w.attach(n, Spec{Instance: "alone", None: true})
			if cmp.Equal(w.footprint(), want) {
				t.Fatal("a network in use leaves no trace: this test sees nothing")
			}
			w.ok(n.Teardown(context.Background()))
			if diff := cmp.Diff(want, w.footprint()); diff != "" {
				t.Errorf("left behind (-before +after):\n%s", diff)
			}
		})
	}
}

func TestRemoveCleansUpAfterAKilledAgent(t *testing.T) {
	w := newWorld(t)
	want := w.footprint()
	n := w.open()
	w.attach(n, Spec{Instance: "web-1", Ports: somePorts(1)})
	w.ok(n.Close())
	for range 2 { // again, when there is nothing
		w.ok(w.node.do(func() error { return Remove(context.Background(), w.config()) }))
		if diff := cmp.Diff(want, w.footprint()); diff != "" {
			t.Errorf("left behind (-before +after):\n%s", diff)
		}
	}
}

func TestRemoveWorksWhenTheNodesNamespaceIsGone(t *testing.T) {
	w := newWorld(t)
	n := w.open()
	w.attach(n, Spec{Instance: "web-1", Ports: somePorts(1)})
	w.ok(n.Close())
	w.node = w.bare()
	want := w.footprint()
	want.Mounts, want.Files = nil, nil
	w.ok(w.node.do(func() error { return Remove(context.Background(), w.config()) }))
	if diff := cmp.Diff(want, w.footprint()); diff != "" {
		t.Errorf("left behind (-before +after):\n%s", diff)
	}
}

func TestTheLastNodePutsForwardingBack(t *testing.T) {
	w := newWorld(t)
	want := w.footprint().Sysctls
	first := w.open()
	cfg := w.config()
	cfg.Node, cfg.Dir = "n2", w.dir+"2"
	second := w.openWith(cfg)
	t.Cleanup(func() { w.ok(unmountBelow(cfg.Dir)) })
	if first.Subnet().Overlaps(second.Subnet()) {
		t.Fatalf("both nodes use %s", first.Subnet())
	}
	_, a := w.attach(second, Spec{Instance: "web-1"})
	w.serve(w.outside, "outside", "0.0.0.0:9000")
	w.ok(first.Teardown(context.Background()))
	w.expect(a, "192.0.2.1:9000", "outside 192.0.2.2")
	w.ok(second.Teardown(context.Background()))
	got := w.footprint().Sysctls
	for _, s := range []string{forwarding, "net/ipv4/conf/up0/forwarding"} {
		if !slices.Contains(got, setting{s, "0"}) || !slices.Contains(want, setting{s, "0"}) {
			t.Errorf("%s is not 0 as before: %v", s, got)
		}
	}
}

func TestAddressOutlivesTheNamespace(t *testing.T) {
	w := newWorld(t)
	n := w.open()
	one, a := w.attach(n, Spec{Instance: "one", Ports: somePorts(1)})
	two, _ := w.attach(n, Spec{Instance: "two"})
	again, b := w.attach(n, Spec{Instance: "one", Ports: somePorts(1)})
	if again.Address != one.Address || a.inode == b.inode {
		t.Errorf("after a restart: address %s, was %s; namespace %d, was %d", again.Address, one.Address, b.inode, a.inode)
	}
	w.serve(b, "one", "0.0.0.0:80")
	if got, err := w.call(w.outside, "tcp4", "192.0.2.2:18001", time.Second); err != nil {
		t.Error("after a restart:", got, err)
	}
	w.ok(n.Close())

	n = w.open()
	if got, want := n.Attached(), map[string]Attachment{"one": one, "two": two}; !cmp.Equal(got, want, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })) {
		t.Errorf("after the agent restarted: attached %v; want %v", got, want)
	}
	w.expect(w.node, one.Address.String()+":80", "one "+one.Gateway.String())
	w.ok(n.Detach(context.Background(), "one"))
	w.ok(n.Detach(context.Background(), "one"))
	three, _ := w.attach(n, Spec{Instance: "three"})
	if three.Address == one.Address {
		t.Error("a released address is used again at once")
	}
	w.ok(n.Close())

	// A reboot: mounts and namespaces are gone, the directory is not.
	w.ok(unmountBelow(w.dir))
	w.node = w.bare()
	n = w.open()
	if got := n.Attached(); len(got) != 0 {
		t.Errorf("after a reboot: attached %v", got)
	}
	if got, _ := w.attach(n, Spec{Instance: "two"}); got != two {
		t.Errorf("after a reboot: %v, was %v", got, two)
	}
}

// die is what a test's Network panics with to stop where it stands.
type die struct{}

// crashAfter lets f run until its nth step is done and reports whether it died
// there, having let go only of what a dead process would.
func crashAfter(n *Network, nth int, f func() error) (died bool, step string, err error) {
	count := 0
	n.after = func(s string) {
		if count++; count == nth {
			step = s
			panic(die{})
		}
	}
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(die); !ok {
				panic(r)
			}
			died = true
		}
		n.after = func(string) {}
	}()
	return false, "", f()
}

func TestSweepClearsWhatACrashLeft(t *testing.T) {
	for name, act := range map[string]func(*Network) error{
		"attach": func(n *Network) error {
			_, err := n.Attach(context.Background(), Spec{Instance: "new", Ports: somePorts(2)})
			return err
		},
		"replace": func(n *Network) error {
			_, err := n.Attach(context.Background(), Spec{Instance: "old", Ports: somePorts(3)})
			return err
		},
		"detach": func(n *Network) error { return n.Detach(context.Background(), "old") },
	} {
		t.Run(name, func(t *testing.T) {

			w := newWorld(t)
			clean := func(n *Network) footprint {
				w.ok(n.Sweep(context.Background(), func(id string) bool { return id == "kept" }))
				w.consistent(n)
				f := w.footprint()
				// Which address was last handed out is all that may differ.
				f.Files = slices.DeleteFunc(f.Files, func(p string) bool { return strings.HasSuffix(p, ".json") })
				return f
			}
			n := w.open()
			w.attach(n, Spec{Instance: "kept", Ports: somePorts(1)})
			want := clean(n)
			for nth := 1; ; nth++ {
				w.attach(n, Spec{Instance: "old", Ports: somePorts(3)})
				died, step, err := crashAfter(n, nth, func() error { return act(n) })
				w.ok(err)
				if !died {
					if nth < 5 {
						t.Errorf("it has only %d steps", nth)
					}
					break
				}
				w.ok(n.Close())
				n = w.open()
				w.consistent(n)
				w.ok(act(n)) // whoever was interrupted may simply do it again
				w.consistent(n)
				if diff := cmp.Diff(want, clean(n)); diff != "" {
					t.Errorf("after a crash at %q (-want +got):\n%s", step, diff)
				}
			}
		})
	}
}

func TestOpenFinishesWhatACrashOfOpenBegan(t *testing.T) {
	w := newWorld(t)
	before := w.footprint()
	for nth := 1; ; nth++ {
		var n *Network
		var died bool
		w.ok(w.node.do(func() (err error) {
			if n, err = prepare(w.config()); err == nil {
				died, _, err = crashAfter(n, nth, func() error { return n.open(context.Background()) })
			}
			return err
		}))
		w.ok(n.Close())
		n = w.open()
		w.consistent(n)
		w.serve(w.outside, "outside", "0.0.0.0:"+fmt.Sprint(9000+nth))
		_, a := w.attach(n, Spec{Instance: "web"})
		w.expect(a, fmt.Sprintf("192.0.2.1:%d", 9000+nth), "outside 192.0.2.2")
		w.ok(n.Teardown(context.Background()))
		if diff := cmp.Diff(before, w.footprint()); diff != "" {
			t.Errorf("after a crash at step %d (-before +after):\n%s", nth, diff)
		}
		if !died {
			if nth < 5 {
				t.Errorf("open has only %d steps", nth)
			}
			return
		}
	}
}

// consistent demands that the kernel has exactly what the ledger says.
func (w *world) consistent(n *Network) {
	w.t.Helper()
	_, err := decodeRecord(must(os.ReadFile(n.ledger.path))) // no duplicates
	w.ok(err)
	ports := map[string]bool{}
	elements := 0
	for id, a := range n.Attached() {
		if !pinned(a.Netns) {
			w.t.Errorf("%s is attached and not pinned", id)
		}
		if a.Address.IsValid() {
			ports[n.names.port(id)] = true
		}
		elements += len(n.ledger.Leases[id].Ports)
	}
	there := must(n.links.ports())
	for p := range ports {
		if !slices.Contains(there, p) {
			w.t.Errorf("an attached instance has no port %s", p)
		}
	}
	if got := len(must(n.nft.conn.GetSetElements(n.nft.any))); got != elements {
		w.t.Errorf("%d ports are published; want %d", got, elements)
	}
	if got := len(must(n.guard.conn.GetSetElements(n.guard.senders))); got != len(ports) {
		w.t.Errorf("%d senders are admitted; want %d", got, len(ports))
	}
}

func TestKilledAtAnyMoment(t *testing.T) {
	rounds := 30
	if testing.Short() {
		rounds = 5
	}
	w := newWorld(t)
	before := w.footprint()
	done := 0
	for round := range rounds {
		var errs bytes.Buffer
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), childRole+"="+w.dir)
		cmd.Stderr = &errs
		out := must(cmd.StdoutPipe())
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		w.ok(w.node.do(cmd.Start)) // it inherits the thread's namespace
		limit := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
		sc := bufio.NewScanner(out)
		if round%3 > 0 && sc.Scan() { // every third dies at its start, the others at work
			done++
		}
		time.Sleep(time.Duration(rand.IntN(150)) * time.Millisecond)
		cmd.Process.Kill()
		for sc.Scan() {
			done++
		}
		cmd.Wait()
		limit.Stop()
		if errs.Len() > 0 {
			t.Fatalf("round %d: %s", round, errs.String())
		}
		n := w.open()
		w.consistent(n)
		w.ok(n.Sweep(context.Background(), func(id string) bool { return id == "i1" }))
		w.consistent(n)
		leased := slices.Collect(maps.Keys(n.ledger.Leases))
		if len(leased) > 1 || len(leased) == 1 && leased[0] != "i1" {
			t.Errorf("round %d: leases of %v after the sweep", round, leased)
		}
		for _, m := range mountsBelow(n.pins() + "/") {
			if b := filepath.Base(m); b != switchPin && b != "i1" {
				t.Errorf("round %d: mount %s after the sweep", round, m)
			}
		}
		w.ok(n.Close())
	}
	if done < rounds/2 {
		t.Errorf("only %d operations in %d rounds: too few to mean anything", done, rounds)
	}
	t.Logf("%d operations, killed %d times", done, rounds)
	w.ok(w.node.do(func() error { return Remove(context.Background(), w.config()) }))
	if diff := cmp.Diff(before, w.footprint()); diff != "" {
		t.Errorf("left behind (-before +after):\n%s", diff)
	}
}

func TestWhatOthersBreakIsPutRight(t *testing.T) {
	w := newWorld(t)
	n := w.open()
	_, a := w.attach(n, Spec{Instance: "web-1", Ports: somePorts(1)})
	w.serve(a, "web", "0.0.0.0:80")
	w.serve(w.outside, "outside", "0.0.0.0:9000")
	w.run(n)
	works := func() bool {
		in, err := w.call(w.outside, "tcp4", "192.0.2.2:18001", 200*time.Millisecond)
		out, err2 := w.call(a, "tcp4", "192.0.2.1:9000", 200*time.Millisecond)
		return err == nil && err2 == nil && in == "web 192.0.2.1" && out == "outside 192.0.2.2"
	}
	w.eventually("traffic", works)
	h := must(handleAt(w.node, unix.NETLINK_ROUTE))
	defer h.Close()
	conn := must(connAt(w.node))
	link := func() netlink.Link { return must(h.LinkByName(n.names.host)) }
	for name, harm := range map[string]func() error{
		"the whole ruleset is flushed": func() error { conn.FlushRuleset(); return conn.Flush() },
		"the table is emptied":         func() error { conn.FlushTable(n.nft.table); return conn.Flush() },
		"a port is removed": func() error {
			els := must(conn.GetSetElements(n.nft.any))
			if err := conn.SetDeleteElements(n.nft.any, els[:1]); err != nil {
				return err
			}
			return conn.Flush()
		},
		"a rule is removed": func() error {
			chain := &nftables.Chain{Table: n.nft.table, Name: "postrouting"}
			if err := conn.DelRule(must(conn.GetRules(n.nft.table, chain))[0]); err != nil {
				return err
			}
			return conn.Flush()
		},
		"the link is removed":    func() error { return h.LinkDel(link()) },
		"the link is set down":   func() error { return h.LinkSetDown(link()) },
		"the address is removed": func() error { return h.AddrDel(link(), &must(h.AddrList(link(), netlink.FAMILY_V4))[0]) },
	} {
		t.Run(name, func(t *testing.T) {
			w.ok(harm())
			w.eventually("repair", func() bool {
				n.mu.Lock()
				defer n.mu.Unlock()
				ok, err := n.nft.matches(n.ledger.Subnet, n.published(), n.policies())
				return err == nil && ok
			})
			w.eventually("traffic after "+name, works)
			w.consistent(n)
		})
	}
	t.Run("forwarding is switched off", func(t *testing.T) {
		w.ok(w.node.do(func() error { _, err := setSysctl(forwarding, "0"); return err }))
		w.ok(n.converge(context.Background())) // what the poll does
		w.eventually("traffic", works)
	})
}

func TestASwitchThatVanishedIsMadeAnew(t *testing.T) {
	w := newWorld(t)
	n := w.open()
	w.attach(n, Spec{Instance: "web-1"})
	n.links.leaveSwitch()
	w.ok(unpin(filepath.Join(n.pins(), switchPin)))
	w.ok(n.converge(context.Background()))
	if got := n.Attached(); len(got) != 0 {
		t.Errorf("attached without a port: %v", got)
	}
	_, a := w.attach(n, Spec{Instance: "web-1"})
	w.serve(w.outside, "outside", "0.0.0.0:9000")
	w.expect(a, "192.0.2.1:9000", "outside 192.0.2.2")
}

func TestOneAgentOwnsADirectory(t *testing.T) {
	w := newWorld(t)
	n := w.open()
	if _, err := w.tryOpen(w.config()); err == nil || !strings.Contains(err.Error(), "in use by another agent") {
		t.Errorf("second agent: %v", err)
	}
	w.ok(n.Close())
	other := w.config()
	other.Node = "n2"
	if _, err := w.tryOpen(other); err == nil || !strings.Contains(err.Error(), "belongs to node n1") {
		t.Errorf("another node: %v", err)
	}
}

func TestTheSubnetIsChosenOnceAndKept(t *testing.T) {
	w := newWorld(t)
	n := w.open()
	first := n.Subnet()
	w.attach(n, Spec{Instance: "web-1"})
	w.ok(n.Close())
	cfg := w.config()
	cfg.Subnet = netip.MustParsePrefix("10.99.0.0/29")
	if _, err := w.tryOpen(cfg); err == nil || !strings.Contains(err.Error(), "1 instances hold addresses") {
		t.Errorf("another subnet under instances: %v", err)
	}
	n = w.open()
	if n.Subnet() != first {
		t.Errorf("subnet %s, was %s", n.Subnet(), first)
	}
	w.ok(n.Detach(context.Background(), "web-1"))
	w.ok(n.Close())
	n = w.openWith(cfg)
	for i := range 5 {
		w.attach(n, Spec{Instance: fmt.Sprint("i", i)})
	}
	_, err := n.Attach(context.Background(), Spec{Instance: "i5"})
	if err == nil || !strings.Contains(err.Error(), "all 5 addresses of 10.99.0.0/29 are held") {
		t.Errorf("the sixth of five: %v", err)
	}
	w.ok(n.Detach(context.Background(), "i3"))
	w.attach(n, Spec{Instance: "i5"})
}

func BenchmarkAttach(b *testing.B) {
	w := newWorld(b)
	n := w.open()
	for i := range 10 {
		w.attach(n, Spec{Instance: fmt.Sprint("there", i), Ports: somePorts(i)})
	}
	ports := []Port{{Container: 80, Host: 19000}}
	b.Run("attach", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			if _, err := n.Attach(context.Background(), Spec{Instance: "x", Ports: ports}); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			w.ok(n.Detach(context.Background(), "x"))
			b.StartTimer()
		}
	})
	b.Run("detach", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			_, err := n.Attach(context.Background(), Spec{Instance: "x", Ports: ports})
			w.ok(err)
			b.StartTimer()
			w.ok(n.Detach(context.Background(), "x"))
		}
	})
	b.Run("look", func(b *testing.B) {
		for b.Loop() {
			w.ok(n.converge(context.Background()))
		}
	})
}
