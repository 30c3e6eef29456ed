package network

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
)

// What somebody else set after this node had changed it is not put back to what
// it was before.
func TestSysctlsThatOthersChangedMeanwhileStay(t *testing.T) {
	const redirects, up0 = "net/ipv4/conf/all/accept_redirects", "net/ipv4/conf/up0/forwarding"
	for name, c := range map[string]struct {
		change []setting
		want   []setting // besides them all is as before
	}{
		"nothing":                     {},
		"an interface was closed":     {change: []setting{{"net/ipv4/conf/lo/forwarding", "0"}}},
		"redirects were allowed":      {change: []setting{{redirects, "1"}}, want: []setting{{redirects, "1"}}},
		"forwarding was switched off": {change: []setting{{forwarding, "0"}}, want: []setting{{redirects, "1"}, {up0, "0"}}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			before := []setting{{forwarding, "0"}, {redirects, "0"}, {up0, "1"}}
			w.ok(w.node.do(func() error { return setPresent(before) }))
			want := w.footprint().Sysctls
			n := w.open()
			w.attach(n, Spec{Instance: "web-1"})
			// Its agent is killed; nobody looks after the host any more.
			w.ok(n.Close())
			w.ok(w.node.do(func() error { return setPresent(c.change) }))
			w.ok(w.node.do(func() error { return Remove(context.Background(), w.config()) }))
			for _, s := range c.want {
				if i := slices.IndexFunc(want, func(o setting) bool { return o.Name == s.Name }); i >= 0 {
					want[i] = s
				}
			}
			if diff := cmp.Diff(want, w.footprint().Sysctls); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// Who came to rely on forwarding while this node had it on keeps it.
func TestForwardingStaysForWhoCameToNeedIt(t *testing.T) {
	for _, c := range []struct {
		name          string
		before, after bool
		want          string
	}{{"before", true, true, "0"}, {"meanwhile", false, true, "1"}} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			conn := must(connAt(w.node))
			masquerading := func() {
				table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "nat"})
				addChains(conn, table, []chain{{
					"POSTROUTING", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource,
					[]rule{{"theirs", join(to("up0"), masquerade())}},
				}})
				w.ok(conn.Flush())
			}
			if c.before {
				masquerading()
			}
			n := w.open()
			if !c.before {
				masquerading()
			}
			w.ok(n.Teardown(context.Background()))
			got := ""
			w.ok(w.node.do(func() (err error) { got, err = readSysctl(forwarding); return err }))
			if got != c.want {
				t.Errorf("forwarding is %s; want %s", got, c.want)
			}
		})
	}
}

// Tables of others are left as found by everything that is done to ours.
func TestRulesOfOthersAreLeftAsFound(t *testing.T) {
	w := newWorld(t)
	conn := must(connAt(w.node))
	drop := nftables.ChainPolicyDrop
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "theirs"})
	their := conn.AddChain(&nftables.Chain{
		Table: table, Name: "forward", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward,
		Priority: nftables.ChainPriorityFilter, Policy: &drop,
	})
	conn.AddRule(&nftables.Rule{Table: table, Chain: their, Exprs: join(from("lo"), accept())})
	w.ok(conn.Flush())
	handles := func() (out []uint64) {
		rules, err := conn.GetRules(table, their)
		w.ok(err)
		for _, r := range rules {
			out = append(out, r.Handle)
		}
		return out
	}
	want := handles()
	if len(want) != 1 {
		t.Fatalf("their chain has %d rules", len(want))
	}
	n := w.open()
	w.attach(n, Spec{Instance: "web-1", Ports: somePorts(1), Policy: Policy{Limited: true}})
	if got := strings.Join(n.Warnings(), ""); !strings.Contains(got, "elsewhere (chain forward)") {
		t.Errorf("a chain that drops all is not told of: %q", got)
	}
	conn.FlushTable(n.nft.table)
	w.ok(conn.Flush())
	w.ok(n.converge(context.Background()))
	w.ok(n.Detach(context.Background(), "web-1"))
	w.ok(n.Teardown(context.Background()))
	if got := handles(); !slices.Equal(got, want) {
		t.Errorf("their rules have the handles %v, had %v", got, want)
	}
}

// The page for operators lists every setting that is changed, and nothing else.
func TestTheSysctlPageIsComplete(t *testing.T) {
	page := string(must(os.ReadFile("../../docs/network.md")))
	all := append([]setting{{forwarding, "1"}}, linkSettings("rdn…")...)
	for _, s := range slices.Concat(all, switchSettings, instanceSettings) {
		parts := strings.Split(s.Name, "/")
		if name := "`" + strings.Join(parts, ".") + "`"; !strings.Contains(page, name) {
			t.Errorf("docs/network.md does not list %s", name)
		}
	}
}
