package network

import (
	"net/netip"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The pieces that rules are made of. Each is what `nft` makes of the words in
// its comment.

const reg = 1 // the register that matches go through

func join(parts ...[]expr.Any) []expr.Any {
	var out []expr.Any
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

// iifname / oifname [!=] "name"
func interfaceIs(key expr.MetaKey, op expr.CmpOp, name string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: reg},
		&expr.Cmp{Op: op, Register: reg, Data: interfaceName(name)},
	}
}

func from(name string) []expr.Any  { return interfaceIs(expr.MetaKeyIIFNAME, expr.CmpOpEq, name) }
func to(name string) []expr.Any    { return interfaceIs(expr.MetaKeyOIFNAME, expr.CmpOpEq, name) }
func notTo(name string) []expr.Any { return interfaceIs(expr.MetaKeyOIFNAME, expr.CmpOpNeq, name) }

func interfaceName(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

const (
	sourceOffset      = 12
	destinationOffset = 16
)

// ip saddr / daddr [!=] prefix
func addressIn(offset uint32, op expr.CmpOp, p netip.Prefix) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
		&expr.Bitwise{
			SourceRegister: reg, DestRegister: reg, Len: 4,
			Mask: ipnet(p).Mask, Xor: make([]byte, 4),
		},
		&expr.Cmp{Op: op, Register: reg, Data: p.Masked().Addr().AsSlice()},
	}
}

// ct state established,related ct direction reply
func answers() []expr.Any {
	const reply = 1
	return join(established(), []expr.Any{
		&expr.Ct{Key: expr.CtKeyDIRECTION, Register: reg},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{reply}},
	})
}

// ct state new
func begins() []expr.Any {
	return tracked(expr.CtKeySTATE, expr.CtStateBitNEW)
}

// add @set { ip saddr ct count over most }
func sourceHasMore(set string, most uint32) []expr.Any {
	return []expr.Any{
		load(sourceOffset, 4, expr.PayloadBaseNetworkHeader, reg),
		&expr.Dynset{
			SrcRegKey: reg, SetName: set, Operation: unix.NFT_DYNSET_OP_ADD,
			Exprs: []expr.Any{&expr.Connlimit{Count: most, Flags: expr.NFT_CONNLIMIT_F_INV}},
		},
	}
}

func source(p netip.Prefix) []expr.Any    { return addressIn(sourceOffset, expr.CmpOpEq, p) }
func notSource(p netip.Prefix) []expr.Any { return addressIn(sourceOffset, expr.CmpOpNeq, p) }
func destination(p netip.Prefix) []expr.Any {
	return addressIn(destinationOffset, expr.CmpOpEq, p)
}

// meta l4proto p
func protocol(p byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{p}},
	}
}

// th dport p
func port(p uint16) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: binaryutil.BigEndian.PutUint16(p)},
	}
}

// icmp type t
func icmpType(t byte) []expr.Any {
	return join(protocol(unix.IPPROTO_ICMP), []expr.Any{
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{t}},
	})
}

// ct state / status & bits != 0
func tracked(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: reg},
		&expr.Bitwise{
			SourceRegister: reg, DestRegister: reg, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4),
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: make([]byte, 4)},
	}
}

func established() []expr.Any {
	return tracked(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)
}

// ct status dnat
func translated() []expr.Any {
	const destinationTranslated = 1 << 5 // IPS_DST_NAT
	return tracked(expr.CtKeySTATUS, destinationTranslated)
}

// fib daddr type local
func local() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

// Registers of four bytes; the first is a quarter of register 1.
const (
	reg32a = unix.NFT_REG_1
	reg32b = unix.NFT_REG32_01
	reg32c = unix.NFT_REG32_02
)

func load(offset, length uint32, base expr.PayloadBase, into uint32) expr.Any {
	return &expr.Payload{DestRegister: into, Base: base, Offset: offset, Len: length}
}

// dnat ip to meta l4proto . th dport map @name, or with ip daddr in front.
func translateBy(set string, withAddress bool) []expr.Any {
	var key []expr.Any
	proto, dport := uint32(reg32a), uint32(reg32b)
	if withAddress {
		key = append(key, load(destinationOffset, 4, expr.PayloadBaseNetworkHeader, reg32a))
		proto, dport = reg32b, reg32c
	}
	return join(key, []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: proto},
		load(2, 2, expr.PayloadBaseTransportHeader, dport),
		&expr.Lookup{SourceRegister: reg32a, DestRegister: reg32a, IsDestRegSet: true, SetName: set},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg32a, RegProtoMin: reg32b},
	})
}

func accept() []expr.Any     { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }
func drop() []expr.Any       { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }
func masquerade() []expr.Any { return []expr.Any{&expr.Masq{}} }

// etherType reads the frame's own field, as in a bridge.
func etherType(t uint16) []expr.Any {
	return []expr.Any{
		load(12, 2, expr.PayloadBaseLLHeader, reg),
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: binaryutil.BigEndian.PutUint16(t)},
	}
}

// sender looks up iifname . ether saddr . (address at offset in the network
// header) in the set: 16 + 8 + 4 bytes of registers.
func sender(offset uint32, set string) []expr.Any {
	return senderAt(load(6, 6, expr.PayloadBaseLLHeader, senderHardware), offset, set)
}

// claimed is sender by a hardware address in the network header, as in ARP.
func claimed(hardware, offset uint32, set string) []expr.Any {
	return senderAt(load(hardware, 6, expr.PayloadBaseNetworkHeader, senderHardware), offset, set)
}

const senderHardware = unix.NFT_REG_2

func senderAt(hardware expr.Any, offset uint32, set string) []expr.Any {
	const address = unix.NFT_REG32_06
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg32a},
		hardware,
		load(offset, 4, expr.PayloadBaseNetworkHeader, address),
		&expr.Lookup{SourceRegister: reg32a, SetName: set},
	}
}
