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
	for i := range 3 {
		var err error
		if leave, err = g.Enter(tcp(t, fmt.Sprintf("[2001:db8::%d]:1", i+1))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := g.Enter(tcp(t, "[2001:db8::ffff]:1")); err == nil {
		t.Error("many addresses of one IPv6 network have more than their part")
	}
	leave()
	leave()
	if _, err := g.Enter(tcp(t, "[2001:db8::ffff]:1")); err != nil {
		t.Errorf("after one left: %v", err)
	}
	if _, err := g.Enter(tcp(t, "[2001:db8::ffff]:1")); err == nil {
		t.Error("one that leaves twice makes room for two")
	}
	for i := range 5 {
		if _, err := g.Enter(tcp(t, fmt.Sprintf("10.0.0.%d:1", i))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := g.Enter(tcp(t, "10.0.0.9:1")); err == nil {
		t.Error("a stranger takes a place that is kept")
	}
	for range 2 {
		if _, err := g.Enter(server); err != nil {
			t.Errorf("a known server: %v", err)
		}
	}
	if _, err := g.Enter(server); err == nil {
		t.Error("more come in than there are places")
	}
	for i := range 2 * maxKnown {
		g.KnowAddress(fmt.Sprintf("10.2.0.%d:1", i))
	}
	if _, ok := g.known[Origin(server)]; ok || len(g.known) != maxKnown {
		t.Errorf("%d sources are known, the oldest among them: %v", len(g.known), ok)
	}
}
