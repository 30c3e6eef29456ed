package network

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// flowTo is a connected UDP socket in ns.
func (w *world) flowTo(ns *namespace, address string) net.Conn {
	w.t.Helper()
	var c net.Conn
	w.ok(ns.do(func() (err error) {
		c, err = net.Dial("udp4", address)
		return err
	}))
	w.t.Cleanup(func() { c.Close() })
	return c
}

// answered tells whether the flow is answered within the patience.
func answered(c net.Conn, patience time.Duration) bool {
	buf := make([]byte, 64)
	for end := time.Now().Add(patience); time.Now().Before(end); {
		_, _ = c.Write([]byte("?"))
		_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if _, err := c.Read(buf); err == nil {
			return true
		}
	}
	return false
}

// TestWhatBeganWithoutRulesEnds: a connection that was opened while somebody
// else had taken the rules away does not stay open when they are back.
func TestWhatBeganWithoutRulesEnds(t *testing.T) {
	w := newWorld(t)
	n := w.open()
	victim, victimSpace := w.attach(n, Spec{Instance: "victim", Ports: somePorts(1)})
	friend, friendSpace := w.attach(n, Spec{Instance: "friend", Policy: Policy{Workload: "d/friend", AllowFrom: []string{"d/evil"}}})
	_, evil := w.attach(n, Spec{Instance: "evil", Policy: Policy{Workload: "d/evil"}})
	w.serve(victimSpace, "victim", "0.0.0.0:80")
	w.serve(friendSpace, "friend", "0.0.0.0:80")
	w.serve(w.node, "host", victim.Gateway.String()+":2222")
	w.serve(w.outside, "outside", "0.0.0.0:9000")

	let := w.flowTo(evil, friend.Address.String()+":80")
	out := w.flowTo(evil, "192.0.2.1:9000")
	if !answered(let, 3*time.Second) || !answered(out, 3*time.Second) {
		t.Fatal("what is allowed is not answered")
	}
	closedOnes := map[string]net.Conn{
		"a neighbour":     w.flowTo(evil, victim.Address.String()+":80"),
		"the host's port": w.flowTo(evil, victim.Gateway.String()+":2222"),
	}
	for what, c := range closedOnes {
		if answered(c, 200*time.Millisecond) {
			t.Fatalf("%s is reached with the rules in place", what)
		}
	}
	conn := must(connAt(w.node))
	conn.FlushRuleset()
	// Who flushes loads rules of his own, and they keep the kernel tracking.
	foreign := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "foreign"})
	addChains(conn, foreign, []chain{{"seen", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityFilter,
		[]rule{{"open", join(established(), accept())}}}})
	w.ok(conn.Flush())
	late := w.flowTo(evil, "192.0.2.1:9000") // it goes out untranslated, and nobody can answer
	_ = answered(late, 100*time.Millisecond)
	for what, c := range closedOnes {
		if !answered(c, 3*time.Second) {
			t.Fatalf("%s is not reached without rules: this test would see nothing", what)
		}
	}
	w.ok(n.converge(context.Background())) // what Run does at once
	for what, c := range closedOnes {
		if answered(c, 200*time.Millisecond) {
			t.Errorf("%s is still reached by a connection that began without rules", what)
		}
	}
	for what, c := range map[string]net.Conn{"who lets it in": let, "an older way out": out, "a way out that began without rules": late} {
		if !answered(c, 3*time.Second) {
			t.Errorf("%s is not reached any more", what)
		}
	}
}

func TestTrespassers(t *testing.T) {
	a := netip.MustParseAddr
	tr := trespassers{
		subnet: netip.MustParsePrefix("10.88.0.0/24"), host: []netip.Addr{a("10.88.0.1"), a("192.0.2.2"), a("127.0.0.1")},
		policies: map[netip.Addr]Policy{
			a("10.88.0.2"): {Workload: "d/web", AllowFrom: []string{"d/client"}},
			a("10.88.0.3"): {Workload: "d/client"},
			a("10.88.0.4"): {Workload: "d/limited", Limited: true, Egress: []EgressRule{
				{CIDR: netip.MustParsePrefix("198.51.100.0/24"), Protocol: "tcp", Ports: []PortRange{{80, 90}}},
			}},
		},
		published: map[netip.Addr][]Port{a("10.88.0.2"): {{Container: 53, Host: 5353, Protocol: "udp"}}},
	}
	const tcp, udp, icmp = unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMP
	for _, c := range []struct {
		name                    string
		protocol                uint8
		from, to, answers, back string
		port                    uint16
		ends                    bool
	}{
		{"let in", tcp, "10.88.0.3", "10.88.0.2", "10.88.0.2", "10.88.0.3", 80, false},
		{"not let in", tcp, "10.88.0.2", "10.88.0.3", "10.88.0.3", "10.88.0.2", 80, true},
		{"a published port of a neighbour", tcp, "10.88.0.3", "192.0.2.2", "10.88.0.2", "10.88.0.1", 8080, false},
		{"a published port, without translation", tcp, "10.88.0.3", "192.0.2.2", "192.0.2.2", "10.88.0.3", 8080, true},
		{"the host's port", udp, "10.88.0.3", "10.88.0.1", "10.88.0.1", "10.88.0.3", 22, true},
		{"names", udp, "10.88.0.4", "10.88.0.1", "10.88.0.1", "10.88.0.4", 53, false},
		{"ping of the host", icmp, "10.88.0.3", "10.88.0.1", "10.88.0.1", "10.88.0.3", 0, false},
		{"ping of the host by who may not", icmp, "10.88.0.4", "10.88.0.1", "10.88.0.1", "10.88.0.4", 0, true},
		{"out, translated", tcp, "10.88.0.3", "203.0.113.9", "203.0.113.9", "192.0.2.2", 443, false},
		{"out, untranslated", tcp, "10.88.0.3", "203.0.113.9", "203.0.113.9", "10.88.0.3", 443, true},
		{"out by a rule", tcp, "10.88.0.4", "198.51.100.7", "198.51.100.7", "192.0.2.2", 81, false},
		{"out by no rule", tcp, "10.88.0.4", "198.51.100.7", "198.51.100.7", "192.0.2.2", 91, true},
		{"metadata", tcp, "10.88.0.3", "169.254.169.254", "169.254.169.254", "192.0.2.2", 80, true},
		{"loopback", tcp, "10.88.0.3", "127.0.0.1", "127.0.0.1", "10.88.0.3", 80, true},
		{"the host to an instance", tcp, "10.88.0.1", "10.88.0.3", "10.88.0.3", "10.88.0.1", 80, false},
		{"from outside, by a published port", tcp, "203.0.113.9", "192.0.2.2", "10.88.0.2", "203.0.113.9", 8080, false},
		{"from outside, straight", tcp, "203.0.113.9", "10.88.0.2", "10.88.0.2", "203.0.113.9", 80, true},
		{"from outside, past a published port", udp, "203.0.113.9", "192.0.2.2", "192.0.2.2", "203.0.113.9", 5353, true},
		{"from outside, to the host", udp, "203.0.113.9", "192.0.2.2", "192.0.2.2", "203.0.113.9", 5354, false},
		{"of others", tcp, "203.0.113.9", "203.0.113.10", "203.0.113.10", "203.0.113.9", 80, false},
	} {
		f := &netlink.ConntrackFlow{
			Forward: netlink.IPTuple{Protocol: c.protocol, SrcIP: net.ParseIP(c.from), DstIP: net.ParseIP(c.to), DstPort: c.port},
			Reverse: netlink.IPTuple{Protocol: c.protocol, SrcIP: net.ParseIP(c.answers), DstIP: net.ParseIP(c.back)},
		}
		if got := tr.MatchConntrackFlow(f); got != c.ends {
			t.Errorf("%s: ends %v, want %v", c.name, got, c.ends)
		}
	}
}

// TestOneInstanceDoesNotFillTheTableOfConnections: who opens too many is
// refused more, and nobody else is.
func TestOneInstanceDoesNotFillTheTableOfConnections(t *testing.T) {
	w := newWorld(t)
	n := w.open()
	if n.nft.most == 0 {
		t.Fatal("this kernel counts no connections, so nothing bounds them")
	}
	n.nft.most = 20
	w.ok(n.converge(context.Background()))
	w.ok(n.converge(context.Background()))
	_, noisy := w.attach(n, Spec{Instance: "noisy"})
	_, quiet := w.attach(n, Spec{Instance: "quiet"})
	w.serve(w.outside, "outside", "0.0.0.0:9000")
	through := 0
	for range 60 {
		if answered(w.flowTo(noisy, "192.0.2.1:9000"), 60*time.Millisecond) {
			through++
		}
	}
	if through < 10 || through > 21 {
		t.Errorf("%d connections of one instance are open; want about 20", through)
	}
	w.expect(quiet, "192.0.2.1:9000", "outside 192.0.2.2")
	h := must(handleAt(w.node, unix.NETLINK_NETFILTER))
	defer h.Close()
	must(h.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, everything{}))
	w.eventually("it opens connections again, once the others have ended", func() bool {
		return answered(w.flowTo(noisy, "192.0.2.1:9000"), 100*time.Millisecond)
	})
}

type everything struct{}

func (everything) MatchConntrackFlow(*netlink.ConntrackFlow) bool { return true }
