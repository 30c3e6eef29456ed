package topology

import (
	"context"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

func plan() Plan {
	return Plan{
		Prefix: "rd-ttopo", Net: 109, Owner: "the test", Servers: []string{"s1", "s2"},
		Sites: []Site{{"oslo", []string{"oslo-1"}}, {"lab", []string{"lab-1"}}},
	}
}

func dial(from, to string) error {
	return In(from, func() error {
		c, err := net.DialTimeout("tcp", to, 700*time.Millisecond)
		if err == nil {
			c.Close()
		}
		return err
	})
}

func TestSitesAreReachedUntilTheirLinkIsCut(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: network namespaces")
	}
	p := plan()
	if err := Remove(p); err != nil {
		t.Fatal(err)
	}
	w, err := Build(context.Background(), p)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := Remove(p); err != nil {
			t.Error(err)
		}
		if left := Present(p); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}()
	if _, err := Build(context.Background(), p); err == nil || !strings.Contains(err.Error(), "made by the test") {
		t.Errorf("a second world of the same name: %v", err)
	}
	// Each listens in its namespace.
	for _, name := range []string{"s1", "oslo-1", "lab-1"} {
		var l net.Listener
		if err := In(p.Namespace(name), func() (err error) { l, err = net.Listen("tcp", p.Address(name)+":7"); return }); err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	for _, pair := range [][2]string{{"oslo-1", "s1"}, {"lab-1", "s1"}, {"s2", "oslo-1"}, {"oslo-1", "lab-1"}} {
		if err := dial(p.Namespace(pair[0]), p.Address(pair[1])+":7"); err != nil {
			t.Errorf("%s does not reach %s: %v", pair[0], pair[1], err)
		}
	}
	if c, err := net.DialTimeout("tcp", p.Address("lab-1")+":7", time.Second); err != nil {
		t.Errorf("the host does not reach lab-1: %v", err)
	} else {
		c.Close()
	}
	if err := w.Cut("oslo"); err != nil {
		t.Fatal(err)
	}
	if dial(p.Namespace("oslo-1"), p.Address("s1")+":7") == nil || dial(p.Namespace("s1"), p.Address("oslo-1")+":7") == nil {
		t.Error("the site is reached over a cut link")
	}
	if err := dial(p.Namespace("lab-1"), p.Address("s1")+":7"); err != nil {
		t.Errorf("the other site was cut too: %v", err)
	}
	if err := Open(p).Heal("oslo"); err != nil {
		t.Fatal(err)
	}
	if err := dial(p.Namespace("oslo-1"), p.Address("s1")+":7"); err != nil {
		t.Errorf("the healed site is not reached: %v", err)
	}
}

func TestARouteOfTheHostIsNotOverlaid(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: network namespaces")
	}
	a, b := plan(), plan()
	b.Prefix = "rd-tother"
	if err := Remove(a); err != nil {
		t.Fatal(err)
	}
	if _, err := Build(context.Background(), a); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = Remove(a) }()
	if _, err := Build(context.Background(), b); err == nil {
		_ = Remove(b)
		t.Fatal("two worlds share their addresses")
	}
}
