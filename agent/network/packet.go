package network

import (
	"encoding/binary"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// What the rules of others ask about a packet. What is not answered here is not
// known, and a tracer takes it as not the case.

// States and status of a connection, as the kernel numbers their bits.
const (
	stateNew        = 1 << 3
	statusTranslate = 1 << 5
)

func (p packet) meta(key expr.MetaKey) value {
	switch key {
	case expr.MetaKeyIIFNAME:
		return known(interfaceName(p.in))
	case expr.MetaKeyOIFNAME:
		return known(interfaceName(p.out))
	case expr.MetaKeyL4PROTO:
		return known([]byte{p.proto})
	case expr.MetaKeyNFPROTO:
		return known([]byte{unix.NFPROTO_IPV4})
	case expr.MetaKeyPROTOCOL:
		return known(binaryutil.BigEndian.PutUint16(unix.ETH_P_IP))
	case expr.MetaKeyMARK:
		return number(0) // few rule sets mark what is not theirs
	case expr.MetaKeyPKTTYPE:
		return known([]byte{unix.PACKET_HOST})
	}
	return value{}
}

func (p packet) ct(key expr.CtKey) value {
	if !p.tracked {
		return value{}
	}
	switch key {
	case expr.CtKeySTATE:
		return number(stateNew)
	case expr.CtKeySTATUS:
		if p.translated {
			return number(statusTranslate)
		}
		return number(0)
	case expr.CtKeyDIRECTION:
		return known([]byte{0})
	case expr.CtKeyMARK:
		return number(0)
	}
	return value{}
}

func (p packet) payload(e *expr.Payload) value {
	header := make([]byte, 20)
	var seen [20]bool
	switch e.Base {
	case expr.PayloadBaseNetworkHeader:
		header[9] = p.proto
		seen[9] = true
		src, dst := p.src.As4(), p.dst.As4()
		copy(header[sourceOffset:], src[:])
		copy(header[destinationOffset:], dst[:])
		for i := sourceOffset; i < 20; i++ {
			seen[i] = true
		}
	case expr.PayloadBaseTransportHeader:
		binary.BigEndian.PutUint16(header[2:], p.port)
		seen[2], seen[3] = true, true
		if p.proto == unix.IPPROTO_TCP {
			header[13] = 0x02 // SYN
			seen[13] = true
		}
	default:
		return value{}
	}
	if e.Len == 0 || e.Offset > 20 || e.Offset+e.Len > 20 {
		return value{}
	}
	for _, s := range seen[e.Offset : e.Offset+e.Len] {
		if !s {
			return value{}
		}
	}
	return known(header[e.Offset : e.Offset+e.Len])
}

func (p packet) fib(e *expr.Fib) value {
	if !e.ResultADDRTYPE || !e.FlagDADDR {
		return value{}
	}
	if p.local {
		return number(unix.RTN_LOCAL)
	}
	return number(unix.RTN_UNICAST)
}

// matches answers a match of xtables.
func (p packet) matches(m *expr.Match) answer {
	switch info := m.Info.(type) {
	case *xt.Comment:
		return yes
	case *xt.ConntrackMtinfo1:
		return p.conntrack(info.MatchFlags, info.InvertFlags, uint16(info.StateMask), uint16(info.StatusMask))
	case *xt.ConntrackMtinfo2:
		return p.conntrack(info.MatchFlags, info.InvertFlags, info.StateMask, info.StatusMask)
	case *xt.ConntrackMtinfo3:
		return p.conntrack(info.MatchFlags, info.InvertFlags, info.StateMask, info.StatusMask)
	case *xt.AddrTypeV1:
		const invertDest = 1 << 1
		if info.Source != 0 {
			return perhaps
		}
		return p.addressType(info.Dest, uint32(info.Flags)&invertDest != 0)
	case *xt.AddrType:
		if info.Source != 0 {
			return perhaps
		}
		return p.addressType(info.Dest, info.InvertDest)
	case *xt.Tcp:
		if p.proto != unix.IPPROTO_TCP {
			return no
		}
		a := p.portWithin(info.DstPorts, info.InvFlags&xt.TcpInvDestPorts != 0)
		if info.SrcPorts != [2]uint16{0, 65535} || info.Option != 0 || info.FlagsMask != 0 {
			a = min(a, perhaps)
		}
		return a
	case *xt.Udp:
		if p.proto != unix.IPPROTO_UDP {
			return no
		}
		a := p.portWithin(info.DstPorts, info.InvFlags&xt.UdpInvDestPorts != 0)
		if info.SrcPorts != [2]uint16{0, 65535} {
			a = min(a, perhaps)
		}
		return a
	case *xt.Unknown:
		switch {
		case m.Name == "mark" && len(*info) >= 9:
			return p.mark(*info)
		case m.Name == "multiport" && len(*info) >= 48:
			return p.multiport(*info)
		case m.Name == "comment":
			return yes
		}
	}
	return perhaps
}

func (p packet) portWithin(ports [2]uint16, inverted bool) answer {
	return truth((p.port >= ports[0] && p.port <= ports[1]) != inverted)
}

func (p packet) addressType(wanted uint16, inverted bool) answer {
	is := uint16(xt.AddrTypeUnicast)
	if p.local {
		is = uint16(xt.AddrTypeLocal)
	}
	return truth((wanted&is != 0) != inverted)
}

func (p packet) conntrack(match, invert, states, status uint16) answer {
	if !p.tracked {
		return perhaps
	}
	const stateTranslated = 1 << 7 // XT_CONNTRACK_STATE_DNAT
	a := yes
	if match&uint16(xt.ConntrackState) != 0 {
		hit := states&stateNew != 0 || p.translated && states&stateTranslated != 0
		a = min(a, truth(hit != (invert&uint16(xt.ConntrackState) != 0)))
	}
	if match&uint16(xt.ConntrackStatus) != 0 {
		hit := p.translated && status&statusTranslate != 0
		a = min(a, truth(hit != (invert&uint16(xt.ConntrackStatus) != 0)))
	}
	if match&^uint16(xt.ConntrackState|xt.ConntrackStatus|xt.ConntrackStateAlias) != 0 {
		a = min(a, perhaps)
	}
	return a
}

// mark reads struct xt_mark_mtinfo1: mark, mask, invert.
func (p packet) mark(b []byte) answer {
	return truth((binary.NativeEndian.Uint32(b)&binary.NativeEndian.Uint32(b[4:]) == 0) != (b[8] != 0))
}

// multiport reads struct xt_multiport_v1: flags, count, ports, which of them
// begin a range, invert.
func (p packet) multiport(b []byte) answer {
	const destinations = 1
	if b[0] != destinations {
		return perhaps
	}
	hit := false
	for i := 0; i < int(min(b[1], 15)); i++ {
		first := binary.NativeEndian.Uint16(b[2+2*i:])
		last := first
		if b[32+i] != 0 && i+1 < int(min(b[1], 15)) {
			last = binary.NativeEndian.Uint16(b[2+2*(i+1):])
			i++
		}
		hit = hit || p.port >= first && p.port <= last
	}
	return truth(hit != (b[47] != 0))
}
