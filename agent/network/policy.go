package network

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Policy says whom an instance may talk to beyond published ports.
type Policy struct {
	// Workload is NAMESPACE/NAME: what others let in by, and find it by as
	// NAME.NAMESPACE.redoubt. Empty: nobody can.
	Workload string `json:"workload,omitempty"`
	// AllowFrom are the workloads whose instances on this node may open
	// connections to this one.
	AllowFrom []string `json:"allowFrom,omitempty"`
	// Limited lets it open connections only to what Egress names, to the
	// workloads that let it in, and to the node's resolver.
	Limited bool         `json:"limited,omitempty"`
	Egress  []EgressRule `json:"egress,omitempty"`
}

// EgressRule is somewhere that an instance may open connections to.
type EgressRule struct {
	CIDR netip.Prefix `json:"cidr"`
	// Ports needs a protocol; empty means all.
	Ports []PortRange `json:"ports,omitempty"`
	// Protocol is tcp or udp; empty means every protocol.
	Protocol string `json:"protocol,omitempty"`
}

// PortRange is First to Last, both included.
type PortRange struct {
	First uint16 `json:"first"`
	Last  uint16 `json:"last"`
}

// Bounds of one instance's policy.
const (
	maxAllowFrom = 256
	maxEgress    = 64
	maxRanges    = 64 // of one rule
)

func (p Policy) silent() bool { return p.Limited && len(p.Egress) == 0 }

func (p Policy) check() error {
	switch {
	case len(p.AllowFrom) > maxAllowFrom:
		return fmt.Errorf("%w allowFrom: %d workloads, the limit is %d", ErrInvalid, len(p.AllowFrom), maxAllowFrom)
	case len(p.Egress) > maxEgress:
		return fmt.Errorf("%w egress: %d rules, the limit is %d", ErrInvalid, len(p.Egress), maxEgress)
	}
	for _, e := range p.Egress {
		switch {
		case !e.CIDR.IsValid() || !e.CIDR.Addr().Is4() || e.CIDR != e.CIDR.Masked():
			return fmt.Errorf("%w egress %s: it must be an IPv4 network", ErrInvalid, e.CIDR)
		case e.Protocol != "" && e.Protocol != "tcp" && e.Protocol != "udp":
			return fmt.Errorf("%w egress %s: protocol %q: tcp and udp are known", ErrInvalid, e.CIDR, e.Protocol)
		case len(e.Ports) > 0 && e.Protocol == "":
			return fmt.Errorf("%w egress %s: ports without a protocol", ErrInvalid, e.CIDR)
		case len(e.Ports) > maxRanges:
			return fmt.Errorf("%w egress %s: %d ranges of ports, the limit is %d", ErrInvalid, e.CIDR, len(e.Ports), maxRanges)
		}
		for _, r := range e.Ports {
			if r.First == 0 || r.First > r.Last {
				return fmt.Errorf("%w egress %s: ports %d-%d", ErrInvalid, e.CIDR, r.First, r.Last)
			}
		}
	}
	return nil
}

func (e EgressRule) String() string {
	s := "to " + e.CIDR.String()
	if e.Protocol != "" {
		s += " " + e.Protocol
	}
	return s
}

// allows tells whether a connection is the rule's.
func (e EgressRule) allows(to netip.Addr, protocol uint8, port uint16) bool {
	return e.CIDR.Contains(to) && (e.Protocol == "" || Port{Protocol: e.Protocol}.number() == protocol) &&
		(len(e.Ports) == 0 || slices.ContainsFunc(e.Ports, func(r PortRange) bool { return r.First <= port && port <= r.Last }))
}

func (r PortRange) String() string {
	if r.First == r.Last {
		return fmt.Sprint(r.First)
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// admits tells whether instances of workload may reach one that has p.
func (p Policy) admits(workload string) bool {
	return workload != "" && slices.Contains(p.AllowFrom, workload)
}

// flow is a source that may open connections to a destination on this node.
type flow struct{ source, destination netip.Addr }

func (f flow) element() nftables.SetElement {
	return nftables.SetElement{Key: slices.Concat(f.source.AsSlice(), f.destination.AsSlice())}
}

// flowsOf are the flows between instances; with only, those that it is part of.
func flowsOf(policies map[netip.Addr]Policy, only netip.Addr) (out []flow) {
	for to, p := range policies {
		if len(p.AllowFrom) == 0 {
			continue
		}
		for from, q := range policies {
			if from != to && (!only.IsValid() || from == only || to == only) && p.admits(q.Workload) {
				out = append(out, flow{from, to})
			}
		}
	}
	slices.SortFunc(out, func(a, b flow) int {
		return cmp.Or(a.source.Compare(b.source), a.destination.Compare(b.destination))
	})
	return out
}

func flowElements(flows []flow) (els []nftables.SetElement) {
	for _, f := range flows {
		els = append(els, f.element())
	}
	return els
}

// egressChain names the chain of one limited instance.
func egressChain(addr netip.Addr) string { return "egress_" + addr.String() }

func limitedElement(addr netip.Addr) nftables.SetElement {
	return nftables.SetElement{
		Key: addr.AsSlice(), VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: egressChain(addr)},
	}
}

func limitedElements(policies map[netip.Addr]Policy) (els []nftables.SetElement) {
	for _, addr := range limited(policies) {
		els = append(els, limitedElement(addr))
	}
	return els
}

func limited(policies map[netip.Addr]Policy) (out []netip.Addr) {
	for _, addr := range slices.SortedFunc(maps.Keys(policies), netip.Addr.Compare) {
		if policies[addr].Limited {
			out = append(out, addr)
		}
	}
	return out
}

// refused is the comment of the rule that counts what an instance may not send.
const refused = "anything else"

// egressRules are the rules of one limited instance. What comes here are packets
// of connections that it began. The first of each is counted, and all that is
// refused.
func egressRules(p Policy) (rules []rule) {
	for _, e := range p.Egress {
		match := destination(e.CIDR)
		if e.Protocol != "" {
			match = join(match, protocol(Port{Protocol: e.Protocol}.number()))
		}
		if len(e.Ports) == 0 {
			rules = append(rules, rule{"open " + e.String(), join(match, established(), accept())}, rule{e.String(), join(match, count(), accept())})
		}
		for _, r := range e.Ports {
			name := e.String() + " " + r.String()
			rules = append(rules, rule{"open " + name, join(match, portIn(r), established(), accept())}, rule{name, join(match, portIn(r), count(), accept())})
		}
	}
	return append(rules, rule{refused, join(count(), drop())})
}

func (f *firewall) egressChains(policies map[netip.Addr]Policy) (chains []chain) {
	for _, addr := range limited(policies) {
		chains = append(chains, chain{name: egressChain(addr), rules: egressRules(policies[addr])})
	}
	return chains
}

func count() []expr.Any { return []expr.Any{&expr.Counter{}} }

// th dport first-last
func portIn(r PortRange) []expr.Any {
	return []expr.Any{
		load(2, 2, expr.PayloadBaseTransportHeader, reg),
		&expr.Range{
			Op: expr.CmpOpEq, Register: reg,
			FromData: binaryutil.BigEndian.PutUint16(r.First), ToData: binaryutil.BigEndian.PutUint16(r.Last),
		},
	}
}

// ip saddr . ip daddr @name
func flowIn(set string) []expr.Any {
	return []expr.Any{
		load(sourceOffset, 4, expr.PayloadBaseNetworkHeader, reg32a),
		load(destinationOffset, 4, expr.PayloadBaseNetworkHeader, reg32b),
		&expr.Lookup{SourceRegister: reg32a, SetName: set},
	}
}

// ip saddr vmap @name
func verdictBySource(set string) []expr.Any {
	return []expr.Any{
		load(sourceOffset, 4, expr.PayloadBaseNetworkHeader, reg),
		&expr.Lookup{SourceRegister: reg, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: set},
	}
}

// apply adds what one instance's policy needs, in one transaction. policies are
// those of everybody who is attached, with it.
func (f *firewall) apply(addr netip.Addr, policies map[netip.Addr]Policy) error {
	work := false
	if els := flowElements(flowsOf(policies, addr)); len(els) > 0 {
		work = true
		for part := range slices.Chunk(els, 256) {
			if err := f.conn.SetAddElements(f.flows, part); err != nil {
				return err
			}
		}
	}
	if p := policies[addr]; p.Limited {
		work = true
		addChains(f.conn, f.table, []chain{{name: egressChain(addr), rules: egressRules(p)}})
		if err := f.conn.SetAddElements(f.limited, []nftables.SetElement{limitedElement(addr)}); err != nil {
			return err
		}
	}
	if !work {
		return nil
	}
	if err := f.conn.Flush(); err != nil {
		return fmt.Errorf("apply the network rules of %s: %w", addr, err)
	}
	return nil
}

// lift removes what apply added, as far as it is there.
func (f *firewall) lift(addr netip.Addr, p Policy) error {
	var gone []nftables.SetElement
	els, err := f.conn.GetSetElements(f.flows)
	if err != nil && !missing(err) {
		return fmt.Errorf("read nft set %s: %w", f.flows.Name, err)
	}
	own := string(addr.AsSlice())
	for _, e := range els {
		if k := string(e.Key); strings.HasPrefix(k, own) || strings.HasSuffix(k, own) {
			gone = append(gone, nftables.SetElement{Key: e.Key})
		}
	}
	for part := range slices.Chunk(gone, 256) {
		if err := f.conn.SetDeleteElements(f.flows, part); err != nil {
			return err
		}
	}
	if len(gone) > 0 {
		if err := f.conn.Flush(); err != nil && !missing(err) {
			return fmt.Errorf("lift the network rules of %s: %w", addr, err)
		}
	}
	if !p.Limited {
		return nil
	}
	// A chain cannot go while the map leads to it, nor with rules in it.
	c := &nftables.Chain{Table: f.table, Name: egressChain(addr)}
	if err := f.conn.SetDeleteElements(f.limited, []nftables.SetElement{limitedElement(addr)}); err != nil {
		return err
	}
	f.conn.FlushChain(c)
	f.conn.DelChain(c)
	if err := f.conn.Flush(); err != nil && !missing(err) {
		return fmt.Errorf("lift the egress rules of %s: %w", addr, err)
	}
	return nil
}

// EgressCount is how often a limited instance opened a connection by one rule,
// or was refused, since the rules were last made.
type EgressCount struct {
	Rule           string
	Packets, Bytes uint64
	Refused        bool
}

// counts reads the counters of one limited instance.
func (f *firewall) counts(addr netip.Addr) (out []EgressCount, err error) {
	rules, err := f.conn.GetRules(f.table, &nftables.Chain{Table: f.table, Name: egressChain(addr)})
	if err != nil {
		return nil, fmt.Errorf("read the egress counters of %s: %w", addr, err)
	}
	for _, r := range rules {
		name := commentOf(r)
		for _, e := range r.Exprs {
			if c, ok := e.(*expr.Counter); ok {
				out = append(out, EgressCount{Rule: name, Packets: c.Packets, Bytes: c.Bytes, Refused: name == refused})
			}
		}
	}
	return out, nil
}

// EgressCounts are the counters of the instance's egress rules, in the order of
// its rules; none for one that is not limited.
func (n *Network) EgressCounts(instance string) ([]EgressCount, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	a, ok := n.attached[instance]
	if n.closed || !ok || !a.Address.IsValid() || !n.ledger.Leases[instance].Policy.Limited {
		return nil, nil
	}
	return n.nft.counts(a.Address)
}

// reportRefusals logs what limited instances may not send, once for every time
// that there is more of it.
func (n *Network) reportRefusals() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return
	}
	seen := map[string]uint64{}
	for instance, a := range n.attached {
		if !a.Address.IsValid() || !n.ledger.Leases[instance].Policy.Limited {
			continue
		}
		counts, err := n.nft.counts(a.Address)
		if err != nil {
			continue // repair says what is wrong
		}
		for _, c := range counts {
			if !c.Refused {
				continue
			}
			if seen[instance] = c.Packets; c.Packets > n.refusals[instance] {
				n.log.Warn("egress was refused", "instance", instance, "packets", c.Packets-n.refusals[instance], "total", c.Packets)
			}
		}
	}
	n.refusals = seen
}

// policies are those of the attached instances by address.
func (n *Network) policies() map[netip.Addr]Policy {
	out := map[netip.Addr]Policy{}
	for instance, a := range n.attached {
		if a.Address.IsValid() {
			out[a.Address] = n.ledger.Leases[instance].Policy
		}
	}
	return out
}
