package network

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// guard keeps instances from speaking for others. It is a table in the switch,
// where nobody else has rules, and sees every frame before the bridge does.
type guard struct {
	conn    *nftables.Conn
	uplink  string
	table   *nftables.Table
	senders *nftables.Set // port . hardware address . address
}

func openGuard(space *namespace, names names) (*guard, error) {
	conn, err := connAt(space)
	if err != nil {
		return nil, err
	}
	t := &nftables.Table{Family: nftables.TableFamilyBridge, Name: "redoubt"}
	return &guard{
		conn: conn, uplink: names.uplink, table: t,
		senders: &nftables.Set{
			Table: t, Name: "senders", Concatenation: true,
			KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeEtherAddr, nftables.TypeIPAddr),
		},
	}, nil
}

func (g *guard) chains() []chain {
	const arpHardware, arpSender = 8, 14 // offsets in an ARP packet for IPv4 on Ethernet
	claim := join(sender(arpSender, g.senders.Name), claimed(arpHardware, arpSender, g.senders.Name))
	return []chain{{
		"prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, []rule{
			{"the host", join(from(g.uplink), accept())},
			{"own address", join(etherType(unix.ETH_P_IP), sender(sourceOffset, g.senders.Name), accept())},
			{"own claims", join(etherType(unix.ETH_P_ARP), claim, accept())},
			{"anything else", drop()},
		},
	}}
}

// ensure replaces the table if it is not as it must be. senders maps ports to
// addresses.
func (g *guard) ensure(senders map[string]netip.Addr) error {
	want := make([]nftables.SetElement, 0, len(senders))
	for _, port := range slices.Sorted(maps.Keys(senders)) {
		want = append(want, senderElement(port, senders[port]))
	}
	if g.matches(want) {
		return nil
	}
	g.conn.AddTable(g.table)
	g.conn.DelTable(g.table)
	g.conn.AddTable(g.table)
	if err := addSet(g.conn, g.senders); err != nil {
		return fmt.Errorf("build nft set %s: %w", g.senders.Name, err)
	}
	for part := range slices.Chunk(want, 256) {
		if err := g.conn.SetAddElements(g.senders, part); err != nil {
			return fmt.Errorf("build nft set %s: %w", g.senders.Name, err)
		}
	}
	addChains(g.conn, g.table, g.chains())
	if err := g.conn.Flush(); err != nil {
		return fmt.Errorf("set the bridge's rules (the kernel needs nf_tables_bridge): %w", err)
	}
	return nil
}

func (g *guard) matches(want []nftables.SetElement) bool {
	for _, c := range g.chains() {
		got, err := g.conn.GetRules(g.table, &nftables.Chain{Table: g.table, Name: c.name})
		if err != nil || !sameRules(got, c.rules) {
			return false
		}
	}
	got, err := g.conn.GetSetElements(g.senders)
	return err == nil && maps.Equal(byKey(got), byKey(want))
}

// admit lets the port send as addr.
func (g *guard) admit(port string, addr netip.Addr) error {
	return g.change("admit", port, addr, g.conn.SetAddElements)
}

func (g *guard) dismiss(port string, addr netip.Addr) error {
	err := g.change("dismiss", port, addr, g.conn.SetDeleteElements)
	if missing(err) {
		return nil
	}
	return err
}

func (g *guard) change(what, port string, addr netip.Addr, do func(*nftables.Set, []nftables.SetElement) error) error {
	if err := do(g.senders, []nftables.SetElement{senderElement(port, addr)}); err != nil {
		return err
	}
	if err := g.conn.Flush(); err != nil {
		return fmt.Errorf("%s %s on port %s: %w", what, addr, port, err)
	}
	return nil
}

func senderElement(port string, addr netip.Addr) nftables.SetElement {
	hw := append(slices.Clone([]byte(hardwareOf(addr))), 0, 0)
	return nftables.SetElement{Key: slices.Concat(interfaceName(port), hw, addr.AsSlice())}
}
