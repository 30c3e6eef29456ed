package network

import (
	"net/netip"
	"testing"

	"github.com/miekg/dns"
)

// FuzzResolvConf: a host's resolv.conf of any kind.
func FuzzResolvConf(f *testing.F) {
	for _, s := range []string{"", "nameserver 1.1.1.1\nsearch a b\noptions ndots:5\n", "nameserver fe80::1%eth0\n", "options ndots:99999999999999999999", "domain .\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) { parseResolvConf(data) })
}

// FuzzQuestion: what an instance asks is answered with a message that can be
// packed, and never with an address that lets nobody in.
func FuzzQuestion(f *testing.F) {
	q, _ := new(dns.Msg).SetQuestion("web.default.redoubt.", dns.TypeA).Pack()
	f.Add(q)
	q, _ = new(dns.Msg).SetQuestion("WEB.default.redoubt.", dns.TypeANY).Pack()
	f.Add(q)
	here := netip.MustParseAddr("10.0.0.2")
	policies := map[netip.Addr]Policy{here: {Workload: "default/web"}}
	f.Fuzz(func(t *testing.T, data []byte) {
		var m dns.Msg
		if m.Unpack(data) != nil || len(m.Question) != 1 {
			return
		}
		a := answerLocal(&m, netip.MustParseAddr("10.0.0.9"), policies, nil)
		if len(a.Answer) > 0 {
			t.Errorf("a stranger is told %v", a.Answer)
		}
		_, _ = a.Pack() // where it fails nothing is sent
	})
}
