package identity

import (
	"fmt"
	"net"
	"testing"
)

func tcp(t *testing.T, text string) net.Addr {
	t.Helper()
	a, err := net.ResolveTCPAddr("tcp", text)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestOrigin(t *testing.T) {
	for _, tt := range []struct{ remote, want string }{
		{"10.0.0.1:99", "10.0.0.1/32"},
		{"[::ffff:10.0.0.1]:99", "10.0.0.1/32"},
		{"[2001:db8:1:2:3:4:5:6]:99", "2001:db8:1:2::/64"},
		{"[fe80::1%lo]:99", "fe80::/64"},
	} {
		if got := Origin(tcp(t, tt.remote)).String(); got != tt.want {
			t.Errorf("%s counts as %s, want %s", tt.remote, got, tt.want)
		}
	}
	if Origin(nil).IsValid() || Origin(&net.UnixAddr{Name: "x"}).IsValid() {
		t.Error("what has no address counts as some network")
	}
}

// TestStrangersLeaveRoomAtTheGate: neither one network nor all of them together
// take the places of the servers that are known.
func TestStrangersLeaveRoomAtTheGate(t *testing.T) {
	g := NewGate(10, 3, 2)
	server := tcp(t, "10.1.1.1:7")
	g.KnowAddress("server.example:7450")
	g.Know(server)
	var leave func()
	evicted := map[string]int{}
	enter := func(remote net.Addr) (func(), error) {
		return g.Enter(remote, func() { evicted[remote.String()]++ })
	}
	for i := range 3 {
		var err error
		if leave, err = enter(tcp(t, fmt.Sprintf("[2001:db8::%d]:1", i+1))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := enter(tcp(t, "[2001:db8::ffff]:1")); err == nil {
		t.Error("many addresses of one IPv6 network have more than their part")
	}
	leave()
	leave()
	if _, err := enter(tcp(t, "[2001:db8::ffff]:1")); err != nil {
		t.Errorf("after one left: %v", err)
	}
	if _, err := enter(tcp(t, "[2001:db8::ffff]:1")); err == nil {
		t.Error("one that leaves twice makes room for two")
	}
	for i := range 5 {
		if _, err := enter(tcp(t, fmt.Sprintf("10.0.0.%d:1", i))); err != nil {
			t.Fatal(err)
		}
	}
	if len(evicted) > 0 {
		t.Errorf("evicted while there were places: %v", evicted)
	}
	// A stranger from elsewhere gets in, and none of the kept places: the oldest
	// of the neighbourhood with most goes.
	if _, err := enter(tcp(t, "10.7.0.1:1")); err != nil || g.n != 8 || evicted["10.0.0.0:1"] != 1 || len(evicted) != 1 {
		t.Errorf("a stranger while all places are taken: %v, %d are open, evicted %v", err, g.n, evicted)
	}
	for range 2 {
		if _, err := enter(server); err != nil {
			t.Errorf("a known server: %v", err)
		}
	}
	if len(evicted) != 1 {
		t.Errorf("the servers' own places were not free: %v", evicted)
	}
	if _, err := enter(server); err != nil || g.n != 10 || len(evicted) != 2 {
		t.Errorf("a server while all places are taken: %v, %d are open, evicted %v", err, g.n, evicted)
	}
	if _, err := enter(server); err == nil {
		t.Error("one server has more than its part")
	}
	for i := range 2 * maxKnown {
		g.KnowAddress(fmt.Sprintf("10.2.0.%d:1", i))
	}
	if _, ok := g.known[Origin(server)]; ok || len(g.known) != maxKnown {
		t.Errorf("%d sources are known, the oldest among them: %v", len(g.known), ok)
	}
}

// TestWhoOpensManyKeepsOutItself: connections that say nothing, from a hundred
// addresses, take the places of each other and not that of one who comes and
// shows itself.
func TestWhoOpensManyKeepsOutItself(t *testing.T) {
	g := NewGate(200, 64, 20)
	flood := func(n int) {
		for i := range n {
			_, _ = g.Enter(tcp(t, fmt.Sprintf("10.%d.0.%d:1", i%4, i%25)), func() {})
		}
	}
	flood(1000)
	kicked := false
	leave, err := g.Enter(tcp(t, "192.0.2.1:1"), func() { kicked = true })
	if err != nil {
		t.Fatalf("one address among a hundred that flood: %v", err)
	}
	flood(1000)
	if kicked {
		t.Error("it lost its place to the flood")
	}
	leave()
	if g.n != 179 || len(g.open) != 179 {
		t.Errorf("%d are being opened, %d remembered, want 179", g.n, len(g.open))
	}
}
