package network

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/miekg/dns"
)

func prefixes(list ...string) (out []EgressRule) {
	for _, s := range list {
		out = append(out, EgressRule{CIDR: netip.MustParsePrefix(s)})
	}
	return out
}

func TestOnlyWhomAnInstanceLetsInReachesIt(t *testing.T) {
	w := newWorld(t)
	n := w.open()
	back, backSpace := w.attach(n, Spec{Instance: "back", Policy: Policy{Workload: "default/back", AllowFrom: []string{"default/front"}}})
	front, frontSpace := w.attach(n, Spec{Instance: "front", Policy: Policy{Workload: "default/front"}})
	_, other := w.attach(n, Spec{Instance: "other", Policy: Policy{Workload: "other/front"}})
	w.serve(backSpace, "back", "0.0.0.0:80")
	w.serve(frontSpace, "front", "0.0.0.0:80")
	at := back.Address.String() + ":80"
	w.expect(frontSpace, at, "back "+front.Address.String())
	w.refuse(other, at)
	w.refuse(backSpace, front.Address.String()+":80") // it is one way
	if els := must(n.nft.conn.GetSetElements(n.nft.flows)); len(els) != 1 {
		t.Errorf("%d flows are let through; want 1", len(els))
	}
	// One that comes later is let in too, and nothing stays of one that went.
	late, lateSpace := w.attach(n, Spec{Instance: "late", Policy: Policy{Workload: "default/front"}})
	w.expect(lateSpace, at, "back "+late.Address.String())
	for _, id := range []string{"late", "back"} {
		w.ok(n.Detach(context.Background(), id))
	}
	if els := must(n.nft.conn.GetSetElements(n.nft.flows)); len(els) != 0 {
		t.Errorf("%d flows are left", len(els))
	}
	w.settled(n)
}

// settled demands that repair finds nothing to do.
func (w *world) settled(n *Network) {
	w.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if changed, err := n.repair(context.Background()); err != nil || len(changed) > 0 {
		w.t.Errorf("repair changed %v, %v; want nothing", changed, err)
	}
}

func TestEgressIsLimitedAndCounted(t *testing.T) {
	w := newWorld(t)
	w.address(w.outside, "up0", netip.MustParsePrefix("192.0.2.9/24"))
	n := w.open()
	for _, port := range []string{"9000", "9001", "9005", "9006"} {
		w.serve(w.outside, "outside", "0.0.0.0:"+port)
	}
	w.serve(w.outside, "outside", "192.0.2.9:9008") // its answers come from there
	free, freeSpace := w.attach(n, Spec{Instance: "free", Ports: []Port{{Container: 80, Host: 18080}}})
	w.serve(freeSpace, "free", "0.0.0.0:80")
	tcp := []EgressRule{
		{CIDR: netip.MustParsePrefix("192.0.2.1/32"), Protocol: "tcp", Ports: []PortRange{{9000, 9000}, {9005, 9006}}},
		{CIDR: netip.MustParsePrefix("192.0.2.9/32"), Protocol: "udp"},
	}
	_, some := w.attach(n, Spec{Instance: "some", Ports: []Port{{Container: 80, Host: 18081}}, Policy: Policy{Limited: true, Egress: tcp}})
	_, none := w.attach(n, Spec{Instance: "none", Policy: Policy{Limited: true}})
	w.serve(some, "some", "0.0.0.0:80")

	w.expect(freeSpace, "192.0.2.1:9001", "outside 192.0.2.2")
	reach := func(ns *namespace, protocol, address string, want bool) {
		t.Helper()
		patience := 300 * time.Millisecond
		if want {
			patience = 3 * time.Second
		}
		if _, err := w.call(ns, protocol, address, patience); (err == nil) != want {
			t.Errorf("%s to %s: %v; want it reached: %v", protocol, address, err, want)
		}
	}
	reach(some, "tcp4", "192.0.2.1:9000", true)
	reach(some, "tcp4", "192.0.2.1:9005", true)
	reach(some, "tcp4", "192.0.2.1:9006", true)
	reach(some, "tcp4", "192.0.2.1:9001", false)
	reach(some, "udp4", "192.0.2.1:9000", false)
	reach(some, "udp4", "192.0.2.9:9008", true)
	reach(some, "tcp4", "192.0.2.9:9008", false)
	reach(none, "tcp4", "192.0.2.1:9000", false)
	// A published port is an address like others, before and after translation.
	reach(none, "tcp4", "192.0.2.2:18080", false)
	reach(none, "tcp4", free.Gateway.String()+":18080", false)
	reach(freeSpace, "tcp4", "192.0.2.2:18081", true)
	// Who is called may answer.
	reach(w.outside, "tcp4", "192.0.2.2:18081", true)

	counts := must(n.EgressCounts("some"))
	got := map[string]uint64{}
	for _, c := range counts {
		got[c.Rule] += c.Packets
	}
	if got["to 192.0.2.1/32 tcp 9000"] != 1 || got["to 192.0.2.1/32 tcp 9005-9006"] != 2 || got["to 192.0.2.9/32 udp"] == 0 || got[refused] < 3 || !counts[len(counts)-1].Refused {
		t.Errorf("counted %v", counts)
	}
	if counts := must(n.EgressCounts("free")); counts != nil {
		t.Errorf("counted %v of an instance without limits", counts)
	}
	w.settled(n)

	t.Run("a limit that somebody flushed comes back", func(t *testing.T) {
		w.run(n)
		conn := must(connAt(w.node))
		conn.FlushChain(&nftables.Chain{Table: n.nft.table, Name: egressChain(n.ledger.Leases["none"].Address)})
		w.ok(conn.Flush())
		w.eventually("the rules are back", func() bool { return len(must(n.EgressCounts("none"))) == 1 })
		reach(none, "tcp4", "192.0.2.1:9000", false)
	})
	w.ok(n.Detach(context.Background(), "some"))
	w.ok(n.Detach(context.Background(), "none"))
	if got, want := must(n.nft.countChains()), len(n.nft.chains(n.Subnet())); got != want {
		t.Errorf("%d chains are left; want %d", got, want)
	}
}

func TestLimitsOutliveARestart(t *testing.T) {
	w := newWorld(t)
	n := w.open()
	w.serve(w.outside, "outside", "0.0.0.0:9000")
	_, ns := w.attach(n, Spec{Instance: "some", Policy: Policy{Limited: true, Egress: prefixes("198.51.100.0/24")}})
	w.ok(n.Close())
	w.refuse(ns, "192.0.2.1:9000")
	n = w.open()
	w.settled(n)
	w.refuse(ns, "192.0.2.1:9000")
}

func TestNamesOfWorkloadsAreAnsweredToWhomTheyLetIn(t *testing.T) {
	w := newWorld(t)
	resolver := filepath.Join(t.TempDir(), "resolv.conf")
	w.ok(os.WriteFile(resolver, []byte("nameserver 127.0.0.53\n"), 0o600))
	w.resolver("127.0.0.53:53", "192.0.2.77")
	cfg := w.config()
	cfg.resolvers = []string{resolver}
	n := w.openWith(cfg)
	allow := Policy{Workload: "default/web", AllowFrom: []string{"default/front"}}
	one, oneSpace := w.attach(n, Spec{Instance: "web-1", Policy: allow})
	two, _ := w.attach(n, Spec{Instance: "web-2", Policy: allow})
	_, front := w.attach(n, Spec{Instance: "front-1", Policy: Policy{Workload: "default/front"}})
	_, other := w.attach(n, Spec{Instance: "other-1", Policy: Policy{Workload: "default/other"}})
	_, mute := w.attach(n, Spec{Instance: "mute-1", Policy: Policy{Workload: "default/front", Limited: true}})
	w.run(n)
	both := []string{one.Address.String(), two.Address.String()}
	slices.Sort(both)
	ask := func(ns *namespace, name string, kind uint16) string {
		t.Helper()
		var out []string
		var err error
		for range 20 { // until it serves
			err = ns.do(func() error {
				c, err := net.DialTimeout("udp4", one.Gateway.String()+":53", time.Second)
				if err != nil {
					return err
				}
				defer c.Close()
				client := dns.Client{Timeout: 3 * time.Second}
				r, _, err := client.ExchangeWithConn(new(dns.Msg).SetQuestion(name, kind), &dns.Conn{Conn: c})
				if err != nil {
					return err
				}
				out = nil
				for _, rr := range r.Answer {
					out = append(out, rr.(*dns.A).A.String())
				}
				slices.Sort(out)
				out = append([]string{dns.RcodeToString[r.Rcode]}, out...)
				return nil
			})
			if err == nil {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		w.ok(err)
		return strings.Join(out, " ")
	}
	for _, c := range []struct {
		who  *namespace
		name string
		kind uint16
		want string
	}{
		{front, "web.default.redoubt.", dns.TypeA, "NOERROR " + strings.Join(both, " ")},
		{front, "WEB.Default.Redoubt.", dns.TypeA, "NOERROR " + strings.Join(both, " ")},
		{front, "web.default.redoubt.", dns.TypeAAAA, "NOERROR"},
		{front, "front.default.redoubt.", dns.TypeA, "NOERROR " + must(netip.ParseAddr(n.Attached()["front-1"].Address.String())).String()},
		{front, "web.other.redoubt.", dns.TypeA, "NXDOMAIN"},
		{front, "redoubt.", dns.TypeA, "NXDOMAIN"},
		{front, "a.b.c.redoubt.", dns.TypeA, "NXDOMAIN"},
		{other, "web.default.redoubt.", dns.TypeA, "NXDOMAIN"},
		{oneSpace, "web.default.redoubt.", dns.TypeA, "NOERROR " + one.Address.String()},
		{mute, "web.default.redoubt.", dns.TypeA, "NOERROR " + strings.Join(both, " ")},
		{mute, "secret.example.", dns.TypeA, "REFUSED"}, // a name can carry a secret out
		{front, "name.example.", dns.TypeA, "NOERROR 192.0.2.77"},
		{front, "notredoubt.", dns.TypeA, "NOERROR 192.0.2.77"},
	} {
		if got := ask(c.who, c.name, c.kind); got != c.want {
			t.Errorf("%s %s: got %q; want %q", dns.TypeToString[c.kind], c.name, got, c.want)
		}
	}
	w.ok(n.Detach(context.Background(), "web-2"))
	if got, want := ask(front, "web.default.redoubt.", dns.TypeA), "NOERROR "+one.Address.String(); got != want {
		t.Errorf("after one went: got %q; want %q", got, want)
	}
}

// Between the two questions of one lookup an instance may be restarted: whichever
// comes while it has no address, the name is there.
func TestANameExistsWhileItsInstanceIsRestarted(t *testing.T) {
	asker, web := netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("10.1.0.3")
	front := Policy{Workload: "default/front"}
	back := Policy{Workload: "default/web", AllowFrom: []string{"default/front"}}
	leased := []Policy{front, back}
	for _, attached := range []map[netip.Addr]Policy{{asker: front, web: back}, {asker: front}} {
		for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
			a := answerLocal(new(dns.Msg).SetQuestion("web.default.redoubt.", kind), asker, attached, leased)
			want := 0
			if kind == dns.TypeA && len(attached) == 2 {
				want = 1
			}
			if a.Rcode != dns.RcodeSuccess || len(a.Answer) != want {
				t.Errorf("%s with %d attached: %s with %d answers; want NOERROR with %d", dns.TypeToString[kind], len(attached), dns.RcodeToString[a.Rcode], len(a.Answer), want)
			}
		}
		// It is still nobody's whom it does not let in.
		a := answerLocal(new(dns.Msg).SetQuestion("web.default.redoubt.", dns.TypeA), asker, map[netip.Addr]Policy{asker: {Workload: "default/other"}}, leased)
		if a.Rcode != dns.RcodeNameError {
			t.Errorf("to who may not reach it: %s", dns.RcodeToString[a.Rcode])
		}
	}
}

func TestHostileQuestionsAreRefused(t *testing.T) {
	f := &forwarder{slots: make(chan struct{}, 40), busy: map[netip.Addr]int{}}
	a, b := netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.3")
	for range queriesOfOne {
		if !f.begin(a) {
			t.Fatal("a query within the bounds is refused")
		}
	}
	if f.begin(a) {
		t.Error("one instance asks more at once than it may")
	}
	for range 40 - queriesOfOne {
		if !f.begin(b) {
			t.Fatal("another's queries keep an instance from asking")
		}
	}
	if f.begin(b) {
		t.Error("all together ask more at once than they may")
	}
	f.end(a)
	if !f.begin(b) {
		t.Error("a place that was given back is not free")
	}
	many := map[netip.Addr]Policy{}
	for addr := netip.MustParseAddr("10.1.0.2"); len(many) < 500; addr = addr.Next() {
		many[addr] = Policy{Workload: "default/web", AllowFrom: []string{"default/web"}}
	}
	q := new(dns.Msg).SetQuestion("web.default.redoubt.", dns.TypeA)
	if got := len(answerLocal(q, netip.MustParseAddr("10.1.0.2"), many, nil).Answer); got != mostAnswers {
		t.Errorf("%d addresses in one answer; want %d", got, mostAnswers)
	}
}

func TestPoliciesAreChecked(t *testing.T) {
	for name, p := range map[string]Policy{
		"IPv6":            {Egress: prefixes("fd00::/8")},
		"host bits":       {Egress: prefixes("10.0.0.1/8")},
		"no cidr":         {Egress: []EgressRule{{}}},
		"protocol":        {Egress: []EgressRule{{CIDR: netip.MustParsePrefix("10.0.0.0/8"), Protocol: "icmp"}}},
		"ports alone":     {Egress: []EgressRule{{CIDR: netip.MustParsePrefix("10.0.0.0/8"), Ports: []PortRange{{1, 2}}}}},
		"ports backwards": {Egress: []EgressRule{{CIDR: netip.MustParsePrefix("10.0.0.0/8"), Protocol: "tcp", Ports: []PortRange{{2, 1}}}}},
		"too many rules":  {Egress: slices.Repeat(prefixes("10.0.0.0/8"), maxEgress+1)},
		"too many names":  {AllowFrom: slices.Repeat([]string{"a/b"}, maxAllowFrom+1)},
	} {
		if _, err := (Spec{Instance: "a", Policy: p}).normal(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got %v; want %v", name, err, ErrInvalid)
		}
	}
}
