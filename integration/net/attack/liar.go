package attack

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Lie is what an instance may try with the tools of an administrator of its own
// namespace: other addresses on its own link, and plain sockets.
type Lie struct {
	Name string
	// Address is given to eth0; MAC becomes eth0's; IPv6 is switched on first.
	Address, MAC string
	IPv6         bool
	// VLAN, if not 0, is sent in.
	VLAN int
	// From sends a marked datagram To.
	From, To string
	Mark     int
}

// Tell does what can be done of it. What the system refuses is said in the
// result; Reached says that the datagram was given to the system to send.
func (l Lie) Tell() (r Result) {
	r.Name = l.Name
	if err := l.tell(); err != nil {
		r.Error, r.Inside = err.Error(), true
		return r
	}
	r.Reached = true
	return r
}

func (l Lie) tell() (err error) {
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("find eth0: %w", err)
	}
	if l.IPv6 {
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", []byte("0"), 0); err != nil {
			return fmt.Errorf("switch IPv6 on: %w", err)
		}
	}
	if l.MAC != "" {
		hw, err := net.ParseMAC(l.MAC)
		if err != nil {
			return err
		}
		before := link.Attrs().HardwareAddr
		if err := netlink.LinkSetHardwareAddr(link, hw); err != nil {
			return fmt.Errorf("change the hardware address: %w", err)
		}
		defer func() { err = errors.Join(err, netlink.LinkSetHardwareAddr(link, before)) }()
	}
	if l.VLAN != 0 {
		a := netlink.NewLinkAttrs()
		a.Name, a.ParentIndex = "vlan0", link.Attrs().Index
		if err := netlink.LinkAdd(&netlink.Vlan{LinkAttrs: a, VlanId: l.VLAN}); err != nil {
			return fmt.Errorf("make a VLAN: %w", err)
		}
		if link, err = netlink.LinkByName("vlan0"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, netlink.LinkDel(link)) }()
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
		to, _, err := net.SplitHostPort(l.To)
		if err != nil {
			return err
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: &net.IPNet{IP: net.ParseIP(to), Mask: net.CIDRMask(32, 32)}, Scope: netlink.SCOPE_LINK}); err != nil {
			return fmt.Errorf("route into the VLAN: %w", err)
		}
	}
	if l.Address != "" {
		p, err := netip.ParsePrefix(l.Address)
		if err != nil {
			return err
		}
		a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, a); err != nil {
			return fmt.Errorf("take the address %s: %w", p, err)
		}
		defer func() { err = errors.Join(err, netlink.AddrDel(link, a)) }()
	}
	d := net.Dialer{Timeout: time.Second}
	if l.From != "" {
		d.LocalAddr = &net.UDPAddr{IP: net.ParseIP(l.From)}
	}
	conn, err := d.Dial("udp", l.To)
	if err != nil {
		return err
	}
	defer conn.Close()
	for range 3 { // the first may wait for an address that nobody answers for
		if _, err := conn.Write(markOf(l.Mark)); err != nil {
			return fmt.Errorf("send: %w", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return nil
}

// Watch asks To by UDP every few milliseconds for as long as Last, and notes
// when it was answered.
type Watch struct {
	Name, To string
	Last     time.Duration
}

// Watched is what a watch saw. Answered are the times at which questions were
// put that were answered, in Unix microseconds, as is Began, of the first one.
type Watched struct {
	Name     string
	Began    int64
	Asked    int
	Answered []int64
	Error    string
}

// Look watches.
func (w Watch) Look() (out Watched) {
	out.Name = w.Name
	conn, err := net.Dial("udp", w.To)
	if err != nil {
		out.Error = err.Error()
		return out
	}
	out.Began = time.Now().UnixMicro()
	end := time.Now().Add(w.Last)
	done := make(chan []int64)
	go func() { // ends with the connection
		var seen []int64
		buf := make([]byte, 2048)
		for {
			n, err := conn.Read(buf)
			if errors.Is(err, net.ErrClosed) {
				done <- seen
				return
			}
			if err != nil {
				continue // a port that says no, for a moment
			}
			var at int64
			if i := indexLine(buf[:n]); i >= 0 {
				if _, err := fmt.Sscan(string(buf[i+1:n]), &at); err == nil {
					seen = append(seen, at)
				}
			}
		}
	}()
	for time.Now().Before(end) {
		_, _ = fmt.Fprint(conn, time.Now().UnixMicro())
		out.Asked++
		time.Sleep(2 * time.Millisecond)
	}
	time.Sleep(200 * time.Millisecond)
	conn.Close()
	out.Answered = <-done
	return out
}

func indexLine(b []byte) int {
	for i, c := range b {
		if c == '\n' {
			return i
		}
	}
	return -1
}

// Flood opens so many flows to an address, each to a port of its own as far as
// there are ports, and says how many it could send.
func Flood(to netip.Addr, flows int) (sent int, err error) {
	for sent < flows {
		conn, err := net.ListenUDP("udp4", nil)
		if err != nil {
			return sent, err
		}
		for port := 1024; port < 65535 && sent < flows; port++ {
			if _, err = conn.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(to, uint16(port))); err == nil {
				sent++
			} else if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOBUFS) {
				break
			}
		}
		conn.Close()
		if err != nil {
			return sent, err
		}
	}
	return sent, nil
}
