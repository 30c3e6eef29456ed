package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// firewall keeps the node's table on the host. The caller serialises.
type firewall struct {
	names names
	conn  *nftables.Conn
	table *nftables.Table
	any   *nftables.Set // protocol . port                → address . port
	bound *nftables.Set // host address . protocol . port → address . port
	// flows are source . destination that are let through between instances.
	flows *nftables.Set
	// limited leads the first packets of some sources to chains of their own.
	limited *nftables.Set
	// crowd counts the tracked connections of each source; most is how many one
	// may have, zero if this kernel cannot count them.
	crowd *nftables.Set
	most  uint32
}

func openFirewall(names names, host *namespace) (*firewall, error) {
	conn, err := connAt(host)
	if err != nil {
		return nil, err
	}
	f := &firewall{names: names, conn: conn}
	f.table = &nftables.Table{Family: nftables.TableFamilyIPv4, Name: names.table}
	target := nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
	f.any = &nftables.Set{
		Table: f.table, Name: "ports", IsMap: true, Concatenation: true, DataType: target,
		KeyType: nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService),
	}
	f.bound = &nftables.Set{
		Table: f.table, Name: "bound_ports", IsMap: true, Concatenation: true, DataType: target,
		KeyType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService),
	}
	f.flows = &nftables.Set{
		Table: f.table, Name: "flows", Concatenation: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeIPAddr),
	}
	f.limited = &nftables.Set{
		Table: f.table, Name: "limited", IsMap: true, KeyType: nftables.TypeIPAddr, DataType: nftables.TypeVerdict,
	}
	f.crowd = &nftables.Set{Table: f.table, Name: "crowd", Dynamic: true, KeyType: nftables.TypeIPAddr}
	f.most = mostConnections()
	return f, nil
}

// mostConnections is how many connections of its own one instance may have
// tracked: a share of the host's table, which all instances and the host share. It
// is small because the kernel walks them all for a new one, up to once a tick.
func mostConnections() uint32 {
	const share, least, usual = 64, 1024, 65536 / 64
	text, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_max")
	if err != nil {
		return usual // nothing is tracked yet
	}
	most, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
	if err != nil {
		return usual
	}
	return max(uint32(most)/share, least)
}

// connAt talks to nftables in ns. It opens a socket for each exchange: on a
// lasting one, the answers to a batch that failed half way would be taken for
// those of the next.
func connAt(ns *namespace) (*nftables.Conn, error) {
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns.fd.Fd())))
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	return conn, nil
}

// chain is a base chain and its rules in order.
type chain struct {
	name     string
	kind     nftables.ChainType
	hook     *nftables.ChainHook
	priority *nftables.ChainPriority
	rules    []rule
}

type rule struct {
	why   string // its comment in the table
	exprs []expr.Any
}

// comment says what the rule is for and carries a hash of what it does, so that
// a rule of an older program or another subnet is told from the one wanted. The
// expressions themselves come back from the kernel in another shape.
func (r rule) comment() string {
	body, err := json.Marshal(r.exprs)
	if err != nil {
		panic(fmt.Sprintf("expressions that are plain structs: %v", err))
	}
	return r.why + " #" + digest(string(body))[:8]
}

var (
	loopbackPrefix  = netip.MustParsePrefix("127.0.0.0/8")
	linkLocalPrefix = netip.MustParsePrefix("169.254.0.0/16")
	// metadata is where clouds answer with credentials outside of link-local
	// addresses: Azure, Alibaba, Oracle.
	metadata = []netip.Prefix{
		netip.MustParsePrefix("168.63.129.16/32"),
		netip.MustParsePrefix("100.100.100.200/32"),
		netip.MustParsePrefix("192.0.0.192/32"),
	}
)

// closed tells whether an address is none for instances, whatever else holds.
func closed(a netip.Addr) bool {
	return loopbackPrefix.Contains(a) || linkLocalPrefix.Contains(a) ||
		slices.ContainsFunc(metadata, func(p netip.Prefix) bool { return p.Contains(a) })
}

// numbering guards the counter of google/nftables by which a set is known in its
// batch: it is one for the whole process, and unguarded.
var numbering sync.Mutex

func addSet(conn *nftables.Conn, set *nftables.Set) error {
	numbering.Lock()
	defer numbering.Unlock()
	return conn.AddSet(set, nil)
}

// chains are the node's rules. What is not dropped here goes on to whatever
// else the host has.
//
// That a connection is open says nothing: it may have been opened while somebody
// else had taken the rules away. Only who answers goes by that; who began is
// held to the rules with every packet.
func (f *firewall) chains(subnet netip.Prefix) []chain {
	link := f.names.host
	gw := netip.PrefixFrom(gateway(subnet), 32)
	const redirect, dns = 5, dnsPortNumber
	publish := []rule{
		{"published on one address", join(local(), translateBy(f.bound.Name, true))},
		{"published on all addresses", join(local(), translateBy(f.any.Name, false))},
	}
	guard := []rule{
		{"instances send from their own range", join(from(link), notSource(subnet), drop())},
		{"host loopback is not for instances", join(from(link), destination(loopbackPrefix), drop())},
		{"link-local services are not for instances", join(from(link), destination(linkLocalPrefix), drop())},
	}
	for _, p := range metadata {
		guard = append(guard, rule{"a cloud's metadata is not for instances", join(from(link), destination(p), drop())})
	}
	var crowd []rule
	if f.most > 0 {
		crowd = []rule{{"more connections than one may have", join(from(link), begins(), sourceHasMore(f.crowd.Name, f.most), drop())}}
	}
	return []chain{
		{"guard", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, guard},
		// Before translation: a rule is about where the instance sends to.
		{"egress", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityMangle, slices.Concat([]rule{
			{"answers", join(from(link), answers(), accept())},
		}, crowd, []rule{
			{"names", join(from(link), destination(gw), protocol(unix.IPPROTO_UDP), port(dns), accept())},
			{"names", join(from(link), destination(gw), protocol(unix.IPPROTO_TCP), port(dns), accept())},
			{"workloads that let it in", join(from(link), flowIn(f.flows.Name), accept())},
			{"limited instances", join(from(link), verdictBySource(f.limited.Name))},
		})},
		{"prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest, publish},
		{"output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest, publish},
		{"postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, []rule{
			{"instances go out as the host", join(notTo(link), source(subnet), masquerade())},
			{"a neighbour's answer comes back by the host", join(to(link), source(subnet), translated(), masquerade())},
			{"the host's loopback is no address for instances", join(to(link), source(loopbackPrefix), masquerade())},
		}},
		{"forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter, []rule{
			{"answers", join(to(link), answers(), accept())},
			{"published ports", join(to(link), translated(), accept())},
			{"workloads that are let in", join(from(link), to(link), flowIn(f.flows.Name), accept())},
			{"nothing else reaches an instance", join(to(link), drop())},
		}},
		{"input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter, []rule{
			{"answers", join(from(link), answers(), accept())},
			{"ping", join(from(link), protocol(unix.IPPROTO_ICMP), accept())},
			{"names", join(from(link), destination(gw), protocol(unix.IPPROTO_UDP), port(dns), accept())},
			{"names", join(from(link), destination(gw), protocol(unix.IPPROTO_TCP), port(dns), accept())},
			{"the host is not for instances", join(from(link), drop())},
		}},
		{"local", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityFilter, []rule{
			// A published port of a neighbour leaves by the link it came in on,
			// and the kernel would advise the shorter way, which is closed.
			{"no redirects to isolated neighbours", join(to(link), icmpType(redirect), drop())},
		}},
	}
}

// ensure compares the table with what it must be and replaces it, in one
// transaction, if anything differs.
func (f *firewall) ensure(subnet netip.Prefix, published map[netip.Addr][]Port, policies map[netip.Addr]Policy) (changed bool, err error) {
	ok, err := f.matches(subnet, published, policies)
	if err != nil || ok {
		return false, err
	}
	err = f.replace(subnet, published, policies)
	if err != nil && f.most > 0 {
		most := f.most
		f.most = 0
		if again := f.replace(subnet, published, policies); again != nil {
			f.most = most // that was not why
			return false, again
		}
		return true, nil
	}
	return err == nil, err
}

// replace makes the table anew.
func (f *firewall) replace(subnet netip.Prefix, published map[netip.Addr][]Port, policies map[netip.Addr]Policy) error {
	f.conn.AddTable(f.table) // so that the deletion finds one
	f.conn.DelTable(f.table)
	f.conn.AddTable(f.table)
	own := f.egressChains(policies)
	addChains(f.conn, f.table, own) // before the map that leads to them
	all, bound := elements(published)
	for _, s := range []struct {
		set *nftables.Set
		els []nftables.SetElement
	}{{f.any, all}, {f.bound, bound}, {f.flows, flowElements(flowsOf(policies, netip.Addr{}))}, {f.limited, limitedElements(policies)}} {
		if err := addSet(f.conn, s.set); err != nil {
			return fmt.Errorf("build nft set %s: %w", s.set.Name, err)
		}
		for part := range slices.Chunk(s.els, 256) { // one message holds so many
			if err := f.conn.SetAddElements(s.set, part); err != nil {
				return fmt.Errorf("build nft set %s: %w", s.set.Name, err)
			}
		}
	}
	if f.most > 0 {
		if err := addSet(f.conn, f.crowd); err != nil {
			return fmt.Errorf("build nft set %s: %w", f.crowd.Name, err)
		}
	}
	addChains(f.conn, f.table, f.chains(subnet))
	if err := f.conn.Flush(); err != nil {
		return fmt.Errorf("replace nft table %s: %w", f.table.Name, err)
	}
	return nil
}

func addChains(conn *nftables.Conn, table *nftables.Table, chains []chain) {
	for _, c := range chains {
		nc := conn.AddChain(&nftables.Chain{
			Table: table, Name: c.name, Type: c.kind, Hooknum: c.hook, Priority: c.priority,
		})
		for _, r := range c.rules {
			conn.AddRule(&nftables.Rule{
				Table: table, Chain: nc, Exprs: r.exprs,
				UserData: userdata.AppendString(nil, userdata.TypeComment, r.comment()),
			})
		}
	}
}

// matches tells whether the kernel has the table as ensure would make it.
func (f *firewall) matches(subnet netip.Prefix, published map[netip.Addr][]Port, policies map[netip.Addr]Policy) (bool, error) {
	present, err := f.present()
	if err != nil || !present {
		return false, err
	}
	chains := append(f.chains(subnet), f.egressChains(policies)...)
	if there, err := f.countChains(); err != nil || there != len(chains) {
		return false, err
	}
	for _, c := range chains {
		// A chain or set that cannot be read is replaced; if it cannot be
		// replaced either, that is the error to report.
		got, err := f.conn.GetRules(f.table, &nftables.Chain{Table: f.table, Name: c.name})
		if err != nil || !sameRules(got, c.rules) {
			return false, nil
		}
	}
	all, bound := elements(published)
	for _, s := range []struct {
		set  *nftables.Set
		want []nftables.SetElement
	}{{f.any, all}, {f.bound, bound}, {f.flows, flowElements(flowsOf(policies, netip.Addr{}))}, {f.limited, limitedElements(policies)}} {
		got, err := f.conn.GetSetElements(s.set)
		if err != nil || !maps.Equal(byKey(got), byKey(s.want)) {
			return false, nil
		}
	}
	return true, nil
}

func sameRules(got []*nftables.Rule, want []rule) bool {
	return slices.EqualFunc(got, want, func(g *nftables.Rule, w rule) bool {
		comment, _ := userdata.GetString(g.UserData, userdata.TypeComment)
		return comment == w.comment()
	})
}

func (f *firewall) countChains() (count int, err error) {
	chains, err := f.conn.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return 0, fmt.Errorf("list nft chains: %w", err)
	}
	for _, c := range chains {
		if c.Table.Name == f.table.Name {
			count++
		}
	}
	return count, nil
}

func commentOf(r *nftables.Rule) string {
	comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
	if i := strings.LastIndex(comment, " #"); i >= 0 {
		comment = comment[:i]
	}
	return comment
}

func (f *firewall) present() (bool, error) {
	tables, err := f.conn.ListTablesOfFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return false, fmt.Errorf("list nft tables: %w", err)
	}
	return slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == f.table.Name }), nil
}

// publish adds or removes the ports of one instance.
func (f *firewall) publish(address netip.Addr, ports []Port) error {
	return f.change("publish", address, ports, f.conn.SetAddElements)
}

func (f *firewall) withdraw(address netip.Addr, ports []Port) error {
	err := f.change("withdraw", address, ports, f.conn.SetDeleteElements)
	if missing(err) {
		return nil
	}
	return err
}

func (f *firewall) change(what string, address netip.Addr, ports []Port, do func(*nftables.Set, []nftables.SetElement) error) error {
	all, bound := elements(map[netip.Addr][]Port{address: ports})
	if len(all)+len(bound) == 0 {
		return nil
	}
	var err error
	if len(all) > 0 {
		err = do(f.any, all)
	}
	if len(bound) > 0 {
		err = errors.Join(err, do(f.bound, bound))
	}
	if err = errors.Join(err, f.conn.Flush()); err != nil {
		return fmt.Errorf("%s the ports of %s: %w", what, address, err)
	}
	return nil
}

// remove deletes the table.
func (f *firewall) remove() error {
	f.conn.AddTable(f.table)
	f.conn.DelTable(f.table)
	if err := f.conn.Flush(); err != nil {
		return fmt.Errorf("remove nft table %s: %w", f.table.Name, err)
	}
	return nil
}

// elements are the entries of the two sets, each part padded to four bytes.
func elements(published map[netip.Addr][]Port) (all, bound []nftables.SetElement) {
	for _, addr := range slices.SortedFunc(maps.Keys(published), netip.Addr.Compare) {
		for _, p := range published[addr] {
			key := slices.Concat([]byte{p.number(), 0, 0, 0}, portBytes(p.Host))
			val := slices.Concat(addr.AsSlice(), portBytes(p.Container))
			if p.everywhere() {
				all = append(all, nftables.SetElement{Key: key, Val: val})
			} else {
				key = slices.Concat(p.HostIP.AsSlice(), key)
				bound = append(bound, nftables.SetElement{Key: key, Val: val})
			}
		}
	}
	return all, bound
}

// verdictBytes is a verdict as the kernel lists it.
func verdictBytes(v *expr.Verdict) string {
	b, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_VERDICT_CODE, Data: binaryutil.BigEndian.PutUint32(uint32(v.Kind))},
		{Type: unix.NFTA_VERDICT_CHAIN, Data: append([]byte(v.Chain), 0)},
	})
	if err != nil {
		panic(fmt.Sprintf("a verdict of bounded length: %v", err))
	}
	return string(b)
}

func portBytes(p uint16) []byte { return []byte{byte(p >> 8), byte(p), 0, 0} }

func byKey(els []nftables.SetElement) map[string]string {
	m := make(map[string]string, len(els))
	for _, e := range els {
		if m[string(e.Key)] = string(e.Val); e.VerdictData != nil {
			m[string(e.Key)] = verdictBytes(e.VerdictData)
		}
	}
	return m
}

func missing(err error) bool { return errors.Is(err, unix.ENOENT) }

const tablePrefix = "redoubt-"

// heldElsewhere fails if another node in the same namespace publishes one of
// the ports. It reads their tables, which say what is really in effect.
func (f *firewall) heldElsewhere(ports []Port) error {
	if len(ports) == 0 {
		return nil
	}
	tables, err := f.conn.ListTablesOfFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return fmt.Errorf("list nft tables: %w", err)
	}
	for _, t := range tables {
		node, ours := strings.CutPrefix(t.Name, tablePrefix)
		if !ours || t.Name == f.table.Name {
			continue
		}
		for _, set := range []nftables.Set{*f.any, *f.bound} {
			set.Table = t
			// A table that vanishes meanwhile holds nothing.
			els, _ := f.conn.GetSetElements(&set)
			for _, e := range els {
				held, ok := portOf(e.Key)
				if !ok {
					continue
				}
				if i := slices.IndexFunc(ports, held.conflicts); i >= 0 {
					return heldf("host port %s is held by an instance of node %s", ports[i], node)
				}
			}
		}
	}
	return nil
}

// portOf reads the key of an element.
func portOf(key []byte) (p Port, ok bool) {
	switch len(key) {
	case 8:
	case 12:
		p.HostIP, _ = netip.AddrFromSlice(key[:4])
		key = key[4:]
	default:
		return Port{}, false
	}
	p.Protocol = "tcp"
	if key[0] == unix.IPPROTO_UDP {
		p.Protocol = "udp"
	}
	p.Host = uint16(key[4])<<8 | uint16(key[5])
	return p, true
}
