package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// The ledger against a model, under any order of reservations, releases,
// failed writes and crashes before or after a write took effect.
func TestNoAddressIsHeldTwice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "ledger")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		path := filepath.Join(dir, "state.json")
		bits := rapid.IntRange(27, 29).Draw(t, "bits")
		subnet := netip.PrefixFrom(netip.MustParseAddr("10.88.0.0"), bits)
		usable := 1<<(32-bits) - 3
		disk := errors.New("disk full")
		open := func() *ledger {
			l, err := openLedger(path, "n1")
			if err != nil {
				t.Fatal(err)
			}
			l.write = func(path string, data []byte) error {
				return os.WriteFile(path, data, 0o600) // no sync: only the order matters
			}
			return l
		}
		l := open()
		if err := l.update(func(r *record) { r.Subnet = subnet }); err != nil {
			t.Fatal(err)
		}
		instance := rapid.Custom(func(t *rapid.T) string { return fmt.Sprint("i", rapid.IntRange(0, usable+3).Draw(t, "n")) })
		// seen is where an instance was last told that it is; nil while it
		// must not be believed to hold anything.
		seen := map[string]netip.Addr{}
		t.Repeat(map[string]func(*rapid.T){
			"attach": func(t *rapid.T) {
				id := instance.Draw(t, "instance")
				got, err := l.reserve(Spec{Instance: id})
				switch {
				case errors.Is(err, ErrExhausted):
					if len(l.Leases) < usable {
						t.Fatalf("exhausted with %d of %d held", len(l.Leases), usable)
					}
				case err != nil:
					t.Fatal(err)
				case seen[id].IsValid() && seen[id] != got.Address:
					t.Fatalf("%s had %s and now has %s", id, seen[id], got.Address)
				default:
					seen[id] = got.Address
				}
			},
			"detach": func(t *rapid.T) {
				id := instance.Draw(t, "instance")
				if err := l.release(id); err != nil {
					t.Fatal(err)
				}
				delete(seen, id)
			},
			"disk full": func(t *rapid.T) {
				write := l.write
				l.write = func(string, []byte) error { return disk }
				id := instance.Draw(t, "instance")
				_, had := l.Leases[id]
				if _, err := l.reserve(Spec{Instance: id}); err == nil {
					t.Fatal("reserved without a record")
				}
				if _, has := l.Leases[id]; has != had {
					t.Fatal("a failed reservation is remembered")
				}
				l.write = write
			},
			"crash": func(t *rapid.T) { l = open() },
			"crash after the write": func(t *rapid.T) {
				id := instance.Draw(t, "instance")
				if _, err := l.reserve(Spec{Instance: id}); err == nil {
					// Nobody was told, but the record is there.
					l = open()
					if a := seen[id]; a.IsValid() && l.Leases[id].Address != a {
						t.Fatalf("%s had %s and now has %s", id, a, l.Leases[id].Address)
					}
					seen[id] = l.Leases[id].Address
				}
			},
			"": func(t *rapid.T) {
				held := map[netip.Addr]string{}
				for id, lease := range l.Leases {
					if o, twice := held[lease.Address]; twice {
						t.Fatalf("%s and %s both hold %s", o, id, lease.Address)
					}
					held[lease.Address] = id
					if a := lease.Address; !subnet.Contains(a) || a == gateway(subnet) || a == subnet.Addr() || !subnet.Contains(a.Next()) {
						t.Fatalf("%s holds %s, which is not an instance's", id, a)
					}
				}
				for id, a := range seen {
					if l.Leases[id].Address != a {
						t.Fatalf("%s was told %s and the ledger says %s", id, a, l.Leases[id].Address)
					}
				}
			},
		})
	})
}

func TestReleasedAddressesAreUsedLast(t *testing.T) {
	subnet := netip.MustParsePrefix("10.88.0.0/28") // .2 to .14
	taken := map[netip.Addr]bool{}
	var last netip.Addr
	next := func() string {
		a, err := nextAddress(subnet, last, func(a netip.Addr) bool { return taken[a] })
		if err != nil {
			t.Fatal(err)
		}
		taken[a], last = true, a
		return a.String()
	}
	for i := 2; i <= 4; i++ {
		if got, want := next(), fmt.Sprint("10.88.0.", i); got != want {
			t.Fatalf("got %s; want %s", got, want)
		}
	}
	delete(taken, netip.MustParseAddr("10.88.0.3"))
	for i := 5; i <= 14; i++ {
		if got, want := next(), fmt.Sprint("10.88.0.", i); got != want {
			t.Fatalf("got %s; want %s", got, want)
		}
	}
	if got := next(); got != "10.88.0.3" {
		t.Errorf("the last free address: got %s; want 10.88.0.3", got)
	}
	if _, err := nextAddress(subnet, last, func(a netip.Addr) bool { return taken[a] }); !errors.Is(err, ErrExhausted) {
		t.Errorf("a full subnet: %v", err)
	}
}

func TestSubnetAvoidsWhatIsRouted(t *testing.T) {
	p := func(s ...string) (out []netip.Prefix) {
		for _, s := range s {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	for name, c := range map[string]struct {
		routed []netip.Prefix
		within string
		fails  bool
	}{
		"nothing routed":         {nil, "10.88.0.0/13", false},
		"most of the pool":       {p("10.88.0.0/14", "10.92.0.0/15", "10.94.0.0/16"), "10.95.0.0/16", false},
		"all of 10":              {p("10.0.0.0/8"), "172.24.0.0/14", false},
		"all private but a part": {p("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/17", "192.168.128.0/18"), "192.168.192.0/18", false},
		"everything":             {p("0.0.0.0/1", "128.0.0.0/1"), "", true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := chooseSubnet("n1", c.routed)
			if c.fails {
				if err == nil || !strings.Contains(err.Error(), "name a free one") {
					t.Errorf("got %s, %v", got, err)
				}
				return
			}
			if err != nil || got.Bits() != 24 || !netip.MustParsePrefix(c.within).Contains(got.Addr()) || got != got.Masked() {
				t.Errorf("got %s, %v; want a /24 in %s", got, err, c.within)
			}
		})
	}
	a, _ := chooseSubnet("n1", nil)
	b, _ := chooseSubnet("n2", nil)
	if a == b {
		t.Errorf("two nodes begin at the same subnet %s", a)
	}
}

func TestDamagedStateIsNamed(t *testing.T) {
	for name, c := range map[string]struct{ data, says string }{
		"cut short":      {`{"node":"n1","subn`, "is damaged"},
		"unknown limit":  {`{"node":"n1","leases":{"i":{"color":1}}}`, "a newer version has written it"},
		"twice":          {`{"node":"n1","subnet":"10.88.0.0/24","leases":{"a":{"address":"10.88.0.2"},"b":{"address":"10.88.0.2"}}}`, "both hold 10.88.0.2"},
		"outside":        {`{"node":"n1","subnet":"10.88.0.0/24","leases":{"a":{"address":"10.89.0.2"}}}`, "does not give out"},
		"the gateway":    {`{"node":"n1","subnet":"10.88.0.0/24","leases":{"a":{"address":"10.88.0.1"}}}`, "does not give out"},
		"a path":         {`{"node":"n1","leases":{"../a":{"none":true}}}`, "only letters"},
		"another node's": {`{"node":"n2"}`, "belongs to node n2"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state.json")
			if err := os.WriteFile(path, []byte(c.data), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := openLedger(path, "n1")
			if err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), path) {
				t.Errorf("got %v; want an error that says %q and names the file", err, c.says)
			}
		})
	}
}

func FuzzDecodeRecord(f *testing.F) {
	f.Add([]byte(`{"node":"n1","subnet":"10.88.0.0/24","last":"10.88.0.2","leases":{"a":{"address":"10.88.0.2","ports":[{"container":80,"host":1,"protocol":"tcp"}]}},"sysctls":[{"name":"a","value":"0"}],"scope":"x"}`))
	f.Add([]byte(`{"leases":{"a":{"none":true}}}`))
	f.Add([]byte(`{"node":"n","last":"::1"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := decodeRecord(data)
		if err != nil || !r.Subnet.IsValid() {
			return
		}
		// Whatever was accepted can be worked with.
		taken := map[netip.Addr]bool{}
		for _, l := range r.Leases {
			taken[l.Address] = true
		}
		a, err := nextAddress(r.Subnet, r.Last, func(a netip.Addr) bool { return taken[a] })
		if err == nil && (taken[a] || !r.Subnet.Contains(a)) {
			t.Errorf("%s given out of %s", a, r.Subnet)
		}
	})
}
