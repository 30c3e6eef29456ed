package network

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Nothing here changes rules of others, and nothing can overrule them: of all
// chains at a hook, each must let a packet through. So what they would do to the
// packets that this node lives by is worked out from their rules as they stand,
// and told with the words that would change it.

// Obstacle is a table of somebody else that keeps instances from what they are
// promised.
type Obstacle struct {
	// Table is its family and name, as nft writes them.
	Table string
	// Stops says what does not pass, each with the chain that drops it.
	Stops []string
	// Remedy is what the operator may run, and Lasting how it outlives a restart.
	Remedy  []string
	Lasting string
	// Doubt: some rules ask what is not known beforehand, so it may pass.
	Doubt bool
}

func (o Obstacle) String() string {
	verb := "drops"
	if o.Doubt {
		verb = "seems to drop"
	}
	s := fmt.Sprintf("the firewall of this host (nft table %s, not Redoubt's) %s %s; to let it pass: %s",
		o.Table, verb, strings.Join(o.Stops, ", "), strings.Join(o.Remedy, " && "))
	if o.Lasting != "" {
		s += ", and " + o.Lasting
	}
	return s
}

// mostStops bounds what one obstacle tells, mostRules what is read of others'
// rules for one packet, mostPorts for how many published ports that is asked.
const mostStops, mostRules, mostPorts = 6, 20000, 32

// passage is a packet on its way through the hooks.
type passage struct {
	what string
	at   map[nftables.ChainHook]packet
}

// passages are the packets that instances live by.
func passages(link, uplink string, own []netip.Addr, subnet netip.Prefix, published map[netip.Addr][]Port) (out []passage) {
	gw := gateway(subnet)
	instance := gw.Next()
	elsewhere := netip.AddrFrom4([4]byte{9, 9, 9, 9}) // any address that no rule is about
	host := elsewhere
	for _, a := range own {
		if a != gw && !a.IsLoopback() && !a.IsLinkLocalUnicast() {
			host = a
			break
		}
	}
	ask := packet{in: link, proto: unix.IPPROTO_UDP, src: instance, dst: gw, port: 53, local: true, tracked: true}
	out = append(out, passage{"the instances' questions for names", map[nftables.ChainHook]packet{
		*nftables.ChainHookPrerouting: ask, *nftables.ChainHookInput: ask,
	}})
	probe := packet{out: link, proto: unix.IPPROTO_TCP, src: gw, dst: instance, port: 8080, tracked: true}
	out = append(out, passage{"the node's own connections to instances (probes, port-forward)", map[nftables.ChainHook]packet{
		*nftables.ChainHookOutput: probe, *nftables.ChainHookPostrouting: probe,
	}})
	if uplink == "" {
		return out // there is nowhere to go
	}
	arrives := packet{in: link, proto: unix.IPPROTO_TCP, src: instance, dst: elsewhere, port: 443, tracked: true}
	leaves := arrives
	leaves.out = uplink
	out = append(out, passage{"the instances' connections to elsewhere", map[nftables.ChainHook]packet{
		*nftables.ChainHookPrerouting: arrives, *nftables.ChainHookForward: leaves, *nftables.ChainHookPostrouting: leaves,
	}})
	asked := 0
	for _, addr := range slices.SortedFunc(maps.Keys(published), netip.Addr.Compare) {
		for _, p := range published[addr] {
			if asked++; asked > mostPorts {
				return out
			}
			first := packet{in: uplink, proto: p.number(), src: elsewhere, dst: host, port: p.Host, local: true, tracked: true}
			if !p.everywhere() {
				if p.HostIP.IsLoopback() {
					continue // nobody comes from elsewhere
				}
				first.dst = p.HostIP
			}
			then := first
			then.dst, then.port, then.local, then.translated, then.out = addr, p.Container, false, true, link
			out = append(out, passage{"published port " + p.String(), map[nftables.ChainHook]packet{
				*nftables.ChainHookPrerouting: first, *nftables.ChainHookForward: then, *nftables.ChainHookPostrouting: then,
			}})
		}
	}
	return out
}

// obstacles reads the rules of everybody else and follows the passages through
// them. What cannot be read is no obstacle.
func (f *firewall) obstacles(ways []passage) (out []Obstacle) {
	read := &reader{conn: f.conn, rules: map[string][]*nftables.Rule{}, sets: map[string]*foreignSet{}}
	found := map[string]*Obstacle{}
	var tables []string
	for _, family := range []nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyIPv4} {
		chains, err := f.conn.ListChainsOfTableFamily(family)
		if err != nil {
			continue
		}
		chains = slices.DeleteFunc(chains, func(c *nftables.Chain) bool { return strings.HasPrefix(c.Table.Name, tablePrefix) })
		for _, c := range chains {
			if c.Hooknum == nil || c.Type == nftables.ChainTypeNAT {
				continue
			}
			for _, w := range ways {
				p, ok := w.at[*c.Hooknum]
				if !ok {
					continue
				}
				if c.Priority != nil {
					// What is tracked and translated comes at these priorities.
					p.tracked = *c.Priority > *nftables.ChainPriorityConntrack
				}
				t := &tracer{rules: read.rulesOf, set: read.setOf, p: p, budget: mostRules}
				if t.base(c) != dropped {
					continue
				}
				name := familyName(family) + " " + c.Table.Name
				o := found[name]
				if o == nil {
					o = &Obstacle{Table: name}
					found[name] = o
					tables = append(tables, name)
				}
				o.Doubt = o.Doubt || t.doubt
				commands, lasting := remedy(family, c, chains, wayIn(ways))
				for _, command := range commands {
					if !slices.Contains(o.Remedy, command) {
						o.Remedy = append(o.Remedy, command)
					}
				}
				o.Lasting = lasting
				if stop := fmt.Sprintf("%s (chain %s)", w.what, t.at); !slices.Contains(o.Stops, stop) {
					o.Stops = append(o.Stops, stop)
				}
			}
		}
	}
	for _, name := range tables {
		o := found[name]
		if more := len(o.Stops) - mostStops; more > 0 {
			o.Stops = append(o.Stops[:mostStops], fmt.Sprintf("and %d more", more))
		}
		out = append(out, *o)
	}
	return out
}

// wayIn is the name of this node's link.
func wayIn(ways []passage) string { return ways[0].at[*nftables.ChainHookInput].in }

// remedy is what whoever runs that firewall would do to let this node's traffic
// pass its chain. It opens nothing that the node's own table closes: that holds
// beside it.
func remedy(family nftables.TableFamily, c *nftables.Chain, chains []*nftables.Chain, link string) (commands []string, lasting string) {
	there := func(chain string) bool {
		return slices.ContainsFunc(chains, func(o *nftables.Chain) bool { return o.Table.Name == c.Table.Name && o.Name == chain })
	}
	// Both ways where both are asked for.
	both := func(in, out string) []string {
		switch *c.Hooknum {
		case *nftables.ChainHookForward:
			return []string{in, out}
		case *nftables.ChainHookOutput, *nftables.ChainHookPostrouting:
			return []string{out}
		}
		return []string{in}
	}
	const kept, atBoot = "keep it where that firewall is configured", "have it done at each boot"
	switch {
	case c.Table.Name == "firewalld":
		return []string{"firewall-cmd --permanent --zone=trusted --add-interface=" + link, "firewall-cmd --reload"}, ""
	case strings.HasPrefix(c.Table.Name, "firewalld_policy_"):
		// What firewalld lays over everything while it reloads, or failed to.
		return []string{"systemctl restart firewalld"}, "wait for it to be up"
	case there("ufw-user-forward") && *c.Hooknum == *nftables.ChainHookInput:
		return []string{"ufw allow in on " + link + " to any port 53"}, ""
	case there("ufw-user-forward"):
		return both("ufw route allow in on "+link, "ufw route allow out on "+link), ""
	case there("DOCKER-USER") && *c.Hooknum == *nftables.ChainHookForward:
		return both("iptables -I DOCKER-USER -i "+link+" -j ACCEPT", "iptables -I DOCKER-USER -o "+link+" -j ACCEPT"), atBoot
	case family == nftables.TableFamilyIPv4 && c.Table.Name == "filter" && c.Name == strings.ToUpper(c.Name):
		return both("iptables -I "+c.Name+" -i "+link+" -j ACCEPT", "iptables -I "+c.Name+" -o "+link+" -j ACCEPT"), kept
	}
	rule := fmt.Sprintf("nft insert rule %s %s %s", familyName(family), c.Table.Name, c.Name)
	return both(rule+" iifname "+link+" accept", rule+" oifname "+link+" accept"), kept
}

func familyName(f nftables.TableFamily) string {
	if f == nftables.TableFamilyINet {
		return "inet"
	}
	return "ip"
}

// reader reads rules and sets of others, each once.
type reader struct {
	conn  *nftables.Conn
	rules map[string][]*nftables.Rule
	sets  map[string]*foreignSet
}

func (r *reader) rulesOf(t *nftables.Table, chain string) []*nftables.Rule {
	key := fmt.Sprint(t.Family, " ", t.Name, " ", chain)
	if _, ok := r.rules[key]; !ok {
		// One that cannot be read, or is gone meanwhile, drops nothing.
		r.rules[key], _ = r.conn.GetRules(t, &nftables.Chain{Table: t, Name: chain})
	}
	return r.rules[key]
}

func (r *reader) setOf(t *nftables.Table, name string) *foreignSet {
	key := fmt.Sprint(t.Family, " ", t.Name, " ", name)
	if s, ok := r.sets[key]; ok {
		return s
	}
	s := &foreignSet{unreadable: true}
	r.sets[key] = s
	set, err := r.conn.GetSetByName(t, name)
	if err != nil {
		return s
	}
	els, err := r.conn.GetSetElements(set)
	if err != nil {
		return s
	}
	*s = foreignSet{elements: els, interval: set.Interval, composed: set.Concatenation}
	return s
}

// translators are the tables of others, no node's, that give packets which they
// pass on another source: their owners need forwarding.
func (f *firewall) translators() (out []string) {
	read := &reader{conn: f.conn, rules: map[string][]*nftables.Rule{}}
	for _, family := range []nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyIPv4} {
		chains, err := f.conn.ListChainsOfTableFamily(family)
		if err != nil {
			continue
		}
		for _, c := range chains {
			name := familyName(family) + " " + c.Table.Name
			if !strings.HasPrefix(c.Table.Name, tablePrefix) && !slices.Contains(out, name) &&
				slices.ContainsFunc(read.rulesOf(c.Table, c.Name), changesSource) {
				out = append(out, name)
			}
		}
	}
	slices.Sort(out)
	return out
}

func changesSource(r *nftables.Rule) bool {
	return slices.ContainsFunc(r.Exprs, func(e expr.Any) bool {
		switch e := e.(type) {
		case *expr.Masq:
			return true
		case *expr.NAT:
			return e.Type == expr.NATTypeSourceNAT
		case *expr.Target:
			return e.Name == "MASQUERADE" || e.Name == "SNAT"
		}
		return false
	})
}

// lookAround finds what others' rules keep from this node's instances and logs
// it when it changes. The caller holds the lock.
func (n *Network) lookAround() {
	own, err := n.links.addresses()
	if err != nil {
		return
	}
	uplink, err := n.links.uplinkName()
	if err != nil {
		return
	}
	var now []string
	for _, o := range n.nft.obstacles(passages(n.names.host, uplink, own, n.ledger.Subnet, n.published())) {
		now = append(now, o.String())
	}
	for _, w := range now {
		if !slices.Contains(n.obstacles, w) {
			n.log.Warn("another firewall is in the way", "what", w)
		}
	}
	if len(n.obstacles) > 0 && len(now) == 0 {
		n.log.Info("no other firewall is in the way any more")
	}
	n.obstacles = now
}

// Warnings say what keeps instances from what they are promised and that the
// node cannot put right itself, each with its remedy.
func (n *Network) Warnings() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.obstacles)
}
