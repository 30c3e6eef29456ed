package network

import (
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestResolversThatInstancesCanReach(t *testing.T) {
	const stub = "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch corp.test\n"
	for name, c := range map[string]struct {
		files           []string
		servers, asks   string
		extra, instance string
	}{
		"plain":           {[]string{"nameserver 192.0.2.53\nnameserver 192.0.2.54 # backup\n"}, "192.0.2.53 192.0.2.54", "", "", "nameserver 10.88.0.1\nnameserver 192.0.2.53\nnameserver 192.0.2.54\n"},
		"stub and real":   {[]string{stub, "nameserver 192.0.2.53\nsearch corp.test\n"}, "192.0.2.53", "", "search corp.test", ""},
		"stub only":       {[]string{stub}, "", "127.0.0.53", "search corp.test,options edns0", "nameserver 10.88.0.1\nsearch corp.test\noptions edns0\n"},
		"stub twice":      {[]string{stub, "nameserver 127.0.0.1\n"}, "", "127.0.0.53", "search corp.test,options edns0", ""},
		"host's own":      {[]string{"nameserver 192.0.2.2\n"}, "", "192.0.2.2", "", ""},
		"IPv6 only":       {[]string{"nameserver 2001:db8::1\n"}, "", "2001:db8::1", "", ""},
		"a cloud's":       {[]string{"nameserver 169.254.169.254\n"}, "", "169.254.169.254", "", ""},
		"IPv6 and IPv4":   {[]string{"nameserver 2001:db8::1\nnameserver 192.0.2.53\n"}, "192.0.2.53", "", "", ""},
		"nothing at all":  {nil, "", "127.0.0.1", "", ""},
		"the last search": {[]string{"domain a.test\nsearch b.test c.test\nnameserver 192.0.2.53\n"}, "192.0.2.53", "", "search b.test c.test", ""},
	} {
		t.Run(name, func(t *testing.T) {
			files := []string{filepath.Join(t.TempDir(), "missing")}
			for i, data := range c.files {
				f := filepath.Join(t.TempDir(), string(rune('a'+i)))
				if err := os.WriteFile(f, []byte(data), 0o600); err != nil {
					t.Fatal(err)
				}
				files = append(files, f)
			}
			n := &Network{ledger: &ledger{record: record{Subnet: netip.MustParsePrefix("10.88.0.0/24")}}}
			r, err := chooseResolution(files, n.reachableFrom([]netip.Addr{nodeAddr.Addr()}))
			if err != nil {
				t.Fatal(err)
			}
			if got := words(r.servers); got != c.servers {
				t.Errorf("instances ask %q; want %q", got, c.servers)
			}
			if got := words(r.upstreams); !r.direct() && got != c.asks {
				t.Errorf("the forwarder asks %q; want %q", got, c.asks)
			}
			if got := strings.Join(r.extra, ","); got != c.extra {
				t.Errorf("extra lines %q; want %q", got, c.extra)
			}
			if got := string(r.resolvConf(netip.MustParseAddr("10.88.0.1"))); c.instance != "" && got != c.instance {
				t.Errorf("resolv.conf %q; want %q", got, c.instance)
			}
		})
	}
}

func words(as []netip.Addr) string {
	var out []string
	for _, a := range as {
		out = append(out, a.String())
	}
	return strings.Join(out, " ")
}

func TestForwarderAnswersInstancesAndNobodyElse(t *testing.T) {
	w := newWorld(t)
	resolver := filepath.Join(t.TempDir(), "resolv.conf")
	w.ok(os.WriteFile(resolver, []byte("nameserver 127.0.0.9\nnameserver 127.0.0.53\n"), 0o600))
	w.resolver("127.0.0.53:53", "192.0.2.77") // nothing answers at the first
	cfg := w.config()
	cfg.resolvers = []string{resolver}
	n := w.openWith(cfg)
	a, ns := w.attach(n, Spec{Instance: "web-1"})
	w.run(n)
	ask := func(ns *namespace, protocol string) (answer string, err error) {
		err = ns.do(func() error {
			c, err := net.DialTimeout(protocol, a.Gateway.String()+":53", time.Second)
			if err != nil {
				return err
			}
			defer c.Close()
			q := new(dns.Msg).SetQuestion("name.test.", dns.TypeA)
			client := dns.Client{Net: protocol, Timeout: 3 * time.Second}
			r, _, err := client.ExchangeWithConn(q, &dns.Conn{Conn: c})
			if err == nil {
				answer = dns.RcodeToString[r.Rcode]
				for _, rr := range r.Answer {
					answer += " " + rr.(*dns.A).A.String()
				}
			}
			return err
		})
		return answer, err
	}
	if conf := string(must(os.ReadFile(a.ResolvConf))); conf != "nameserver "+a.Gateway.String()+"\n" {
		t.Errorf("resolv.conf: %q", conf)
	}
	w.eventually("an answer", func() bool { _, err := ask(ns, "udp4"); return err == nil })
	for _, protocol := range []string{"udp4", "tcp4"} {
		if got, err := ask(ns, protocol); got != "NOERROR 192.0.2.77" || err != nil {
			t.Errorf("%s: %q, %v", protocol, got, err)
		}
		if got, err := ask(w.outside, protocol); err == nil && got != "REFUSED" {
			t.Errorf("%s: outside got %q", protocol, got)
		}
	}

	// The host moves to a network with a resolver that instances can reach.
	w.ok(os.WriteFile(resolver, []byte("nameserver 192.0.2.1\n"), 0o600))
	w.ok(n.converge(context.Background()))
	if conf := string(must(os.ReadFile(a.ResolvConf))); conf != "nameserver "+a.Gateway.String()+"\nnameserver 192.0.2.1\n" {
		t.Errorf("resolv.conf after a change of resolvers: %q", conf)
	}
}

// resolver answers every question on the node with one address.
func (w *world) resolver(at, answer string) {
	w.t.Helper()
	handler := dns.HandlerFunc(func(rw dns.ResponseWriter, q *dns.Msg) {
		r := new(dns.Msg).SetReply(q)
		r.Answer = []dns.RR{&dns.A{
			Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET},
			A:   net.ParseIP(answer),
		}}
		rw.WriteMsg(r)
	})
	w.ok(w.node.do(func() error {
		udp, err := net.ListenPacket("udp4", at)
		if err != nil {
			return err
		}
		tcp, err := net.Listen("tcp4", at)
		if err != nil {
			return err
		}
		for _, s := range []*dns.Server{{PacketConn: udp, Handler: handler}, {Listener: tcp, Handler: handler}} {
			go s.ActivateAndServe()
		}
		w.t.Cleanup(func() { udp.Close(); tcp.Close() })
		return nil
	}))
}
