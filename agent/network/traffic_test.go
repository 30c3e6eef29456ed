package network

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

func TestInstanceGoesOutAsTheHost(t *testing.T) {
	w := newWorld(t)
	n := w.open()
	_, a := w.attach(n, Spec{Instance: "web-1"})
	w.serve(w.outside, "outside", "0.0.0.0:9000")
	w.expect(a, "192.0.2.1:9000", "outside 192.0.2.2")
}

func TestPublishedPortIsReachedFromEverywhere(t *testing.T) {
	w := newWorld(t)
	// The setting that breaks isolated ports on an ordinary bridge.
	w.ok(w.node.do(func() error {
		return setPresent([]setting{{"net/bridge/bridge-nf-call-iptables", "1"}})
	}))
	n := w.open()
	ports := []Port{{Container: 80, Host: 18080}, {Container: 80, Host: 18080, Protocol: "udp"}}
	web, webSpace := w.attach(n, Spec{Instance: "web-1", Ports: ports})
	_, other := w.attach(n, Spec{Instance: "web-2"})
	w.serve(webSpace, "web", "0.0.0.0:80")
	gw := web.Gateway.String()

	t.Run("outside", func(t *testing.T) { w.expect(w.outside, "192.0.2.2:18080", "web 192.0.2.1") })
	t.Run("host by loopback", func(t *testing.T) { w.expect(w.node, "127.0.0.1:18080", "web "+gw) })
	t.Run("host by its own address", func(t *testing.T) { w.expect(w.node, "192.0.2.2:18080", "web 192.0.2.2") })
	t.Run("host by the gateway", func(t *testing.T) { w.expect(w.node, gw+":18080", "web "+gw) })
	t.Run("neighbour", func(t *testing.T) { w.expect(other, "192.0.2.2:18080", "web "+gw) })
	t.Run("neighbour by the gateway", func(t *testing.T) { w.expect(other, gw+":18080", "web "+gw) })
	t.Run("itself", func(t *testing.T) { w.expect(webSpace, "192.0.2.2:18080", "web "+gw) })
	t.Run("host by the instance's address", func(t *testing.T) { w.expect(w.node, web.Address.String()+":80", "web "+gw) })

	w.ok(n.Detach(context.Background(), "web-1"))
	w.refuse(w.outside, "192.0.2.2:18080")
	w.refuse(w.node, "127.0.0.1:18080")
}

func TestPortOnOneHostAddressIsClosedOnOthers(t *testing.T) {
	w := newWorld(t)
	w.address(w.node, "up0", netip.MustParsePrefix("192.0.2.3/24"))
	n := w.open()
	ip := netip.MustParseAddr("192.0.2.3")
	_, a := w.attach(n, Spec{Instance: "web-1", Ports: []Port{
		{Container: 80, Host: 18080, HostIP: ip}, {Container: 80, Host: 18080, HostIP: ip, Protocol: "udp"},
	}})
	w.serve(a, "web", "0.0.0.0:80")
	w.expect(w.outside, "192.0.2.3:18080", "web 192.0.2.1")
	w.refuse(w.outside, "192.0.2.2:18080")
}

func TestInstancesAreIsolated(t *testing.T) {
	w := newWorld(t)
	n := w.open()
	one, a := w.attach(n, Spec{Instance: "one"})
	two, b := w.attach(n, Spec{Instance: "two"})
	w.serve(b, "two", "0.0.0.0:80")
	w.serve(w.node, "host", "0.0.0.0:9999")
	w.serve(w.outside, "outside", "0.0.0.0:9000")
	w.address(w.outside, "up0", netip.MustParsePrefix("169.254.169.254/32"))
	w.expect(w.node, two.Address.String()+":80", "two "+two.Gateway.String()) // it does serve

	t.Run("layer 2", func(t *testing.T) { w.refuse(a, two.Address.String()+":80") })
	t.Run("host services", func(t *testing.T) {
		w.refuse(a, "192.0.2.2:9999")
		w.refuse(a, one.Gateway.String()+":9999")
	})
	t.Run("link-local services", func(t *testing.T) { w.refuse(a, "169.254.169.254:9000") })
	t.Run("host answers ping", func(t *testing.T) {
		w.ok(a.do(func() error { return ping(one.Gateway) }))
	})
	t.Run("from outside by address", func(t *testing.T) {
		h := must(handleAt(w.outside, unix.NETLINK_ROUTE))
		defer h.Close()
		w.ok(h.RouteAdd(&netlink.Route{Dst: ipnet(n.Subnet()), Gw: nodeAddr.Addr().AsSlice()}))
		w.refuse(w.outside, two.Address.String()+":80")
		w.ok(h.RouteDel(&netlink.Route{Dst: ipnet(n.Subnet()), Gw: nodeAddr.Addr().AsSlice()}))
	})
	h := must(handleAt(a, unix.NETLINK_ROUTE))
	defer h.Close()
	eth0 := must(h.LinkByName("eth0"))
	t.Run("by way of the gateway", func(t *testing.T) {
		w.ok(h.RouteAdd(&netlink.Route{Dst: ipnet(netip.PrefixFrom(two.Address, 32)), Gw: one.Gateway.AsSlice()}))
		w.refuse(a, two.Address.String()+":80")
	})
	t.Run("in another's name", func(t *testing.T) {
		w.expect(a, "192.0.2.1:9000", "outside 192.0.2.2")
		// The same path with an address that is not its own.
		stolen := netip.PrefixFrom(two.Address, 24)
		w.ok(h.AddrDel(eth0, &netlink.Addr{IPNet: ipnet(netip.PrefixFrom(one.Address, 24))}))
		w.ok(h.AddrAdd(eth0, &netlink.Addr{IPNet: ipnet(stolen)}))
		w.ok(h.RouteReplace(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: one.Gateway.AsSlice()}))
		w.refuse(a, "192.0.2.1:9000")
		w.silent(a, n.names.host)
		w.expect(w.node, two.Address.String()+":80", "two "+two.Gateway.String())
	})
}

// silent demands that nothing sent from ns arrives at the node by link. An answer
// would not come back to a liar in any case, so only this sees the lie get out.
func (w *world) silent(ns *namespace, link string) {
	w.t.Helper()
	h := must(handleAt(w.node, unix.NETLINK_ROUTE))
	defer h.Close()
	received := func() uint64 { return must(h.LinkByName(link)).Attrs().Statistics.RxPackets }
	before := received()
	for range 5 {
		w.call(ns, "udp4", "192.0.2.1:9000", 20*time.Millisecond)
	}
	if got := received() - before; got != 0 {
		w.t.Errorf("%d packets in another's name got as far as the host", got)
	}
}

// ping sends one echo from the namespace of the calling thread.
func ping(to netip.Addr) error {
	c, err := icmp.ListenPacket("udp4", "0.0.0.0")
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * time.Second))
	m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{Seq: 1, Data: []byte("redoubt")}}
	b, err := m.Marshal(nil)
	if err != nil {
		return err
	}
	if _, err := c.WriteTo(b, &net.UDPAddr{IP: to.AsSlice()}); err != nil {
		return err
	}
	_, _, err = c.ReadFrom(make([]byte, 128))
	return err
}

// A forwarded port is reached where it listens: on the address, on loopback
// only, and without any network.
func TestDialInsideReachesWhatListens(t *testing.T) {
	w := newWorld(t)
	n := w.open()
	_, a := w.attach(n, Spec{Instance: "web"})
	_, b := w.attach(n, Spec{Instance: "alone", None: true})
	w.serve(a, "everywhere", "0.0.0.0:80")
	w.serve(a, "loopback", "127.0.0.1:81")
	w.serve(b, "alone", "127.0.0.1:80")
	for _, tt := range []struct {
		instance string
		port     uint16
		want     string
	}{{"web", 80, "everywhere "}, {"web", 81, "loopback "}, {"alone", 80, "alone "}, {"web", 82, ""}, {"alone", 81, ""}, {"nobody", 80, ""}} {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		c, err := n.DialInside(ctx, tt.instance, tt.port)
		cancel()
		if err != nil {
			if tt.want != "" || tt.instance != "nobody" && !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("port %d of %s: %v", tt.port, tt.instance, err)
			}
			continue
		}
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = c.Write([]byte("x"))
		buf := make([]byte, 100)
		k, err := c.Read(buf)
		c.Close()
		if tt.want == "" || !strings.HasPrefix(string(buf[:k]), tt.want) {
			t.Errorf("port %d of %s: %q, %v, want %q", tt.port, tt.instance, buf[:k], err, tt.want)
		}
	}
}

func TestInstanceWithoutNetworkHasLoopbackOnly(t *testing.T) {
	w := newWorld(t)
	n := w.open()
	a, ns := w.attach(n, Spec{Instance: "alone", None: true})
	if a.Address.IsValid() || a.Gateway.IsValid() {
		t.Errorf("got addresses %s, %s", a.Address, a.Gateway)
	}
	h := must(handleAt(ns, unix.NETLINK_ROUTE))
	defer h.Close()
	links := must(h.LinkList())
	if len(links) != 1 || links[0].Attrs().Name != "lo" || links[0].Attrs().Flags&net.FlagUp == 0 {
		t.Errorf("got links %v; want lo, up", links)
	}
	w.serve(ns, "alone", "127.0.0.1:80")
	w.expect(ns, "127.0.0.1:80", "alone 127.0.0.1")
}

func TestInstanceGetsFilesAndTheUplinksMTU(t *testing.T) {
	w := newWorld(t)
	n := w.open()
	a, ns := w.attach(n, Spec{Instance: "web-1", Hostname: "web"})
	if got, want := string(must(os.ReadFile(a.Hosts))), "127.0.0.1\tlocalhost\n"+a.Address.String()+"\tweb web-1\n"; got != want {
		t.Errorf("hosts: got %q; want %q", got, want)
	}
	if got, want := string(must(os.ReadFile(a.ResolvConf))), "nameserver "+a.Gateway.String()+"\nnameserver 192.0.2.53\nsearch example.test\noptions ndots:2\n"; got != want {
		t.Errorf("resolv.conf: got %q; want %q", got, want)
	}
	h := must(handleAt(ns, unix.NETLINK_ROUTE))
	defer h.Close()
	if got := must(h.LinkByName("eth0")).Attrs().MTU; got != uplinkMTU {
		t.Errorf("MTU of eth0: got %d; want the uplink's %d", got, uplinkMTU)
	}
	addrs := must(h.AddrList(nil, netlink.FAMILY_V6))
	if len(addrs) != 0 {
		t.Errorf("IPv6 is on: %v", addrs)
	}
	w.ok(ns.do(func() error { // a user's program may listen where it likes
		l, err := net.Listen("tcp4", a.Address.String()+":80")
		if err != nil {
			return err
		}
		return l.Close()
	}))
}

func TestHeldPortsAreRefusedByName(t *testing.T) {
	w := newWorld(t)
	n := w.open()
	w.serve(w.node, "host", "127.0.0.1:7000")
	w.attach(n, Spec{Instance: "holder", Ports: []Port{{Container: 80, Host: 18080}}})
	second := w.config()
	second.Node, second.Dir = "n2", w.dir+"2"
	t.Cleanup(func() { w.ok(unmountBelow(second.Dir)) })
	m := w.openWith(second)
	w.attach(m, Spec{Instance: "foreign", Ports: []Port{{Container: 80, Host: 18081, Protocol: "udp"}}})
	for name, c := range map[string]struct {
		port Port
		says string
	}{
		"another instance": {Port{Container: 1, Host: 18080}, "host port 18080/tcp is held by instance holder"},
		"on one address":   {Port{Container: 1, Host: 18080, HostIP: nodeAddr.Addr()}, "host port 192.0.2.2:18080/tcp is held by instance holder"},
		"another node":     {Port{Container: 1, Host: 18081, Protocol: "udp"}, "host port 18081/udp is held by an instance of node n2"},
		"a process":        {Port{Container: 1, Host: 7000}, "host port 7000/tcp is in use on this host by another process ("},
		"a udp process":    {Port{Container: 1, Host: 7000, Protocol: "udp"}, "host port 7000/udp is in use on this host by another process ("},
		"no such address":  {Port{Container: 1, Host: 7001, HostIP: netip.MustParseAddr("203.0.113.9")}, "203.0.113.9 is not an address of this host"},
		"no such protocol": {Port{Container: 1, Host: 7001, Protocol: "sctp"}, `protocol "sctp"`},
		"no target":        {Port{Host: 7001}, "names no container port"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := n.Attach(context.Background(), Spec{Instance: "late", Ports: []Port{c.port}})
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v; want an error that says %q", err, c.says)
			}
			if !errors.Is(err, ErrPortHeld) && !errors.Is(err, ErrInvalid) {
				t.Errorf("got %v, which no caller can tell", err)
			}
			if _, there := n.ledger.Leases["late"]; there {
				t.Error("the refused instance holds a lease")
			}
		})
	}
	t.Run("free ones are not", func(t *testing.T) {
		w.attach(n, Spec{Instance: "late", Ports: []Port{
			{Container: 1, Host: 18080, Protocol: "udp"}, {Container: 1, Host: 18082}, {Container: 9}, {Container: 1, Host: 7000, HostIP: nodeAddr.Addr()},
		}})
	})
	t.Run("nor one that a connection leaves from", func(t *testing.T) {
		w.serve(w.outside, "outside", "0.0.0.0:9000")
		w.ok(w.node.do(func() error {
			c, err := net.Dial("tcp4", "192.0.2.1:9000")
			if err != nil {
				return err
			}
			defer c.Close()
			port := netip.MustParseAddrPort(c.LocalAddr().String()).Port()
			w.attach(n, Spec{Instance: "ephemeral", Ports: []Port{{Container: 1, Host: port}}})
			return nil
		}))
	})
}
