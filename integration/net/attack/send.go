package attack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Send puts each frame on eth0, as it is where the system gives out packet
// sockets, else as an IP packet where it gives out raw ones and the frame is no
// more than that. The results say what was sent, and what refused.
func Send(frames []Forgery) ([]Result, error) {
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		return nil, fmt.Errorf("find eth0: %w", err)
	}
	const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8 // in network order
	wire, noWire := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all)
	if noWire == nil {
		defer unix.Close(wire)
	}
	raw, noRaw := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if noRaw == nil {
		defer unix.Close(raw)
		noRaw = errors.Join(
			unix.SetsockoptInt(raw, unix.SOL_IP, unix.IP_HDRINCL, 1),
			unix.SetsockoptInt(raw, unix.SOL_SOCKET, unix.SO_BROADCAST, 1),
		)
	}
	out := make([]Result, len(frames))
	for i, f := range frames {
		r := Result{Name: f.Name}
		var err error
		switch packet := f.packet(link.Attrs().HardwareAddr); {
		case noWire == nil:
			r.Answer = "as a frame"
			err = unix.Sendto(wire, f.Frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index, Halen: 6})
		case noRaw != nil:
			err = fmt.Errorf("packet socket: %w; raw socket: %w", noWire, noRaw)
		case packet == nil:
			err = fmt.Errorf("packet socket: %w", noWire)
		default:
			r.Answer = "as a packet"
			err = sendPacket(raw, link, f.Frame[:6], packet)
		}
		if r.Reached = err == nil; err != nil {
			r.Error, r.Inside = err.Error(), true
		}
		out[i] = r
	}
	return out, nil
}

// packet is what a raw socket can send of the frame; nil: it needs more.
func (f Forgery) packet(own net.HardwareAddr) []byte {
	if !bytes.Equal(f.Frame[6:12], own) || binary.BigEndian.Uint16(f.Frame[12:]) != unix.ETH_P_IP {
		return nil
	}
	return f.Frame[14:]
}

// sendPacket sends to the hardware address that the frame has: the neighbour's
// own, if its entry says so.
func sendPacket(fd int, link netlink.Link, to net.HardwareAddr, packet []byte) error {
	var dst unix.SockaddrInet4
	copy(dst.Addr[:], packet[16:20])
	if addrs, err := netlink.AddrList(link, netlink.FAMILY_V4); err == nil && to[0]&1 == 0 {
		for _, a := range addrs {
			if a.Contains(net.IP(packet[16:20])) {
				err := netlink.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT, IP: net.IP(packet[16:20]), HardwareAddr: to})
				if err != nil {
					return fmt.Errorf("say where the neighbour is: %w", err)
				}
			}
		}
	}
	return unix.Sendto(fd, packet, 0, &dst)
}
