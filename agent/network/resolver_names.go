package network

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// zone ends every name that only this node answers. It is never asked for
// elsewhere.
const zone = "redoubt."

const (
	nameTTL     = 5  // seconds: an instance may move
	mostAnswers = 64 // addresses of one answer
)

// inZone tells whether a question is for this node alone.
func inZone(name string) bool {
	name = dns.CanonicalName(name)
	return name == zone || strings.HasSuffix(name, "."+zone)
}

// answerLocal answers a question within the zone for an instance of this node:
// WORKLOAD.NAMESPACE.redoubt is the addresses of that workload's instances here
// that the asker may open connections to. What it may not reach is not there.
//
// leased are the policies of all that hold an address, those that are just being
// restarted included. A name of theirs exists, though it may have no address at
// the moment: who asks for IPv4 and IPv6 at once, as musl does, and hears of one
// that there is no such name, takes it for both.
func answerLocal(q *dns.Msg, asker netip.Addr, policies map[netip.Addr]Policy, leased []Policy) *dns.Msg {
	question := q.Question[0]
	a := new(dns.Msg).SetReply(q)
	a.Authoritative, a.RecursionAvailable = true, true
	name := strings.TrimSuffix(dns.CanonicalName(question.Name), "."+zone)
	workload, namespace, ok := strings.Cut(name, ".")
	wanted := namespace + "/" + workload
	own := policies[asker]
	var found []netip.Addr
	if ok && question.Qclass == dns.ClassINET {
		for addr, p := range policies {
			if p.Workload == wanted && (addr == asker || p.admits(own.Workload)) {
				found = append(found, addr)
			}
		}
	}
	exists := ok && slices.ContainsFunc(leased, func(p Policy) bool { return p.Workload == wanted && p.admits(own.Workload) })
	if len(found) == 0 && !exists {
		a.Rcode = dns.RcodeNameError
		return a
	}
	if question.Qtype != dns.TypeA && question.Qtype != dns.TypeANY {
		return a // the name is there and has nothing of this type
	}
	rand.Shuffle(len(found), func(i, j int) { found[i], found[j] = found[j], found[i] })
	for _, addr := range found[:min(len(found), mostAnswers)] {
		a.Answer = append(a.Answer, &dns.A{
			Hdr: dns.RR_Header{Name: question.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: nameTTL},
			A:   addr.AsSlice(),
		})
	}
	return a
}
