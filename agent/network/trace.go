package network

import (
	"bytes"
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// packet is the first packet of a connection, as rules would see it at one hook.
type packet struct {
	in, out    string // interfaces; empty where the hook has none
	proto      byte
	src, dst   netip.Addr
	port       uint16 // destination
	translated bool   // its destination was
	local      bool   // its destination is an address of the host
	tracked    bool   // connection tracking has seen it: not so at raw priority
}

// answer of a match, where not everything about a packet is known.
type answer int

const (
	no answer = iota
	perhaps
	yes
)

func not(a answer) answer { return yes - a }

func truth(b bool) answer {
	if b {
		return yes
	}
	return no
}

// fate is what a chain does to a packet.
type fate int

const (
	goesOn fate = iota // to the next rule, or the policy
	accepted
	dropped
)

// tracer follows a packet through somebody else's chains. What a rule asks that
// is not known of the packet (a time, a rate, a mark that others set, a match of
// xtables that is not read here) is taken as not the case, and doubt is noted.
type tracer struct {
	rules func(t *nftables.Table, chain string) []*nftables.Rule
	set   func(t *nftables.Table, name string) *foreignSet
	p     packet
	// budget is how many rules may still be looked at.
	budget int
	// doubt: a rule that was passed over might have let the packet through.
	doubt bool
	// at is the chain that dropped it.
	at string
}

// foreignSet is a set or map; nil elements: it could not be read.
type foreignSet struct {
	elements           []nftables.SetElement
	interval, composed bool
	exact              map[string]nftables.SetElement // made at the first look
	unreadable         bool
}

const maxJumps = 16 // the kernel's own limit

func (t *tracer) base(c *nftables.Chain) fate {
	f := t.chain(c.Table, c.Name, 0)
	if f == goesOn && c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
		t.at = c.Name
		return dropped
	}
	if f == goesOn {
		return accepted
	}
	return f
}

func (t *tracer) chain(table *nftables.Table, name string, depth int) fate {
	if depth > maxJumps {
		t.doubt = true
		return accepted
	}
	for _, r := range t.rules(table, name) {
		if t.budget--; t.budget < 0 {
			t.doubt = true
			return accepted
		}
		v, sure := t.rule(table, r.Exprs)
		if v == nil {
			continue
		}
		if sure != yes {
			if v.Kind != expr.VerdictDrop && v.Kind != expr.VerdictContinue {
				t.doubt = true
			}
			continue
		}
		switch v.Kind {
		case expr.VerdictAccept, expr.VerdictQueue, expr.VerdictStolen, expr.VerdictStop:
			return accepted
		case expr.VerdictDrop:
			t.at = name
			return dropped
		case expr.VerdictReturn:
			return goesOn
		case expr.VerdictJump:
			if f := t.chain(table, v.Chain, depth+1); f != goesOn {
				return f
			}
		case expr.VerdictGoto:
			return t.chain(table, v.Chain, depth+1)
		}
	}
	return goesOn
}

// rule returns its verdict if it might match, and whether it does.
func (t *tracer) rule(table *nftables.Table, exprs []expr.Any) (*expr.Verdict, answer) {
	sure := yes
	var regs registers
	for _, e := range exprs {
		a := yes
		switch e := e.(type) {
		case *expr.Verdict:
			return e, sure
		case *expr.Reject:
			return &expr.Verdict{Kind: expr.VerdictDrop}, sure
		case *expr.Target:
			if v := targetVerdict(e.Name); v != nil {
				return v, sure
			}
		case *expr.NAT, *expr.Masq, *expr.Redir, *expr.TProxy, *expr.Queue:
			return &expr.Verdict{Kind: expr.VerdictAccept}, sure
		case *expr.Match:
			a = t.p.matches(e)
		case *expr.Limit, *expr.Quota, *expr.Connlimit:
			a = perhaps
		case *expr.Meta:
			if !e.SourceRegister {
				regs.put(e.Register, t.p.meta(e.Key))
			}
		case *expr.Ct:
			if !e.SourceRegister {
				regs.put(e.Register, t.p.ct(e.Key))
			}
		case *expr.Payload:
			if e.DestRegister != 0 {
				regs.put(e.DestRegister, t.p.payload(e))
			}
		case *expr.Fib:
			regs.put(e.Register, t.p.fib(e))
		case *expr.Immediate:
			regs.put(e.Register, known(e.Data))
		case *expr.Bitwise:
			regs.put(e.DestRegister, regs.get(e.SourceRegister, int(e.Len)).bitwise(e.Mask, e.Xor))
		case *expr.Byteorder:
			regs.put(e.DestRegister, regs.get(e.SourceRegister, int(e.Len)).swap(int(e.Size)))
		case *expr.Cmp:
			a = regs.get(e.Register, len(e.Data)).compare(e.Op, e.Data)
		case *expr.Range:
			v := regs.get(e.Register, len(e.FromData))
			a = min(v.compare(expr.CmpOpGte, e.FromData), v.compare(expr.CmpOpLte, e.ToData))
			if e.Op == expr.CmpOpNeq {
				a = not(a)
			}
		case *expr.Lookup:
			el, found := t.set(table, e.SetName).find(&regs, e.SourceRegister)
			if e.Invert {
				found = not(found)
			}
			a = found
			if found == no || !e.IsDestRegSet {
				break
			}
			if e.DestRegister == unix.NFT_REG_VERDICT {
				if found == perhaps {
					t.doubt = true
				}
				if found == yes && el.VerdictData != nil {
					return el.VerdictData, sure
				}
				break
			}
			if found == yes {
				regs.put(e.DestRegister, known(el.Val))
			} else {
				regs.put(e.DestRegister, value{})
			}
		case *expr.Rt:
			regs.put(e.Register, value{})
		case *expr.Socket:
			regs.put(e.Register, value{})
		case *expr.Exthdr:
			if e.DestRegister != 0 {
				regs.put(e.DestRegister, value{})
			}
			a = perhaps
		case *expr.Hash:
			regs.put(e.DestRegister, value{})
		case *expr.Dynset:
			if len(e.Exprs) > 0 {
				a = perhaps // a rate for each
			}
		case *expr.Numgen:
			regs.put(e.Register, value{})
		}
		if a == no {
			return nil, no
		}
		sure = min(sure, a)
	}
	return nil, no
}

// targetVerdict is what a target of xtables means for a packet; nil: it goes on.
func targetVerdict(name string) *expr.Verdict {
	switch name {
	case "REJECT", "DROP":
		return &expr.Verdict{Kind: expr.VerdictDrop}
	case "ACCEPT", "DNAT", "SNAT", "MASQUERADE", "REDIRECT", "NFQUEUE", "TPROXY":
		return &expr.Verdict{Kind: expr.VerdictAccept}
	}
	return nil
}

// value is what a register holds. Without bytes it is not known.
type value struct{ b []byte }

func known(b []byte) value { return value{b} }

func number(n uint32) value { return value{binaryutil.NativeEndian.PutUint32(n)} }

func (v value) compare(op expr.CmpOp, data []byte) answer {
	if len(v.b) < len(data) || len(data) == 0 {
		return perhaps
	}
	c := bytes.Compare(v.b[:len(data)], data)
	switch op {
	case expr.CmpOpEq:
		return truth(c == 0)
	case expr.CmpOpNeq:
		return truth(c != 0)
	case expr.CmpOpLt:
		return truth(c < 0)
	case expr.CmpOpLte:
		return truth(c <= 0)
	case expr.CmpOpGt:
		return truth(c > 0)
	case expr.CmpOpGte:
		return truth(c >= 0)
	}
	return perhaps
}

func (v value) bitwise(mask, xor []byte) value {
	if len(mask) == 0 || len(mask) > len(v.b) || len(xor) < len(mask) {
		return value{}
	}
	out := make([]byte, len(mask))
	for i := range out {
		out[i] = v.b[i]&mask[i] ^ xor[i]
	}
	return known(out)
}

// swap turns the order of bytes in each part of a size.
func (v value) swap(size int) value {
	if size < 2 || len(v.b)%size != 0 || binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		return v
	}
	out := make([]byte, len(v.b))
	for i := range out {
		part := i / size * size
		out[i] = v.b[part+size-1-(i-part)]
	}
	return known(out)
}

// registers are the four of 16 bytes, which are also sixteen of four.
type registers struct {
	bytes [64]byte
	known [64]bool
}

// offset of a register of either naming, and how much is from there on.
func offset(reg uint32) int {
	switch {
	case reg >= unix.NFT_REG_1 && reg <= unix.NFT_REG_4:
		return int(reg-unix.NFT_REG_1) * 16
	case reg >= unix.NFT_REG32_00 && reg <= unix.NFT_REG32_15:
		return int(reg-unix.NFT_REG32_00) * 4
	}
	return -1
}

// put also says of what is not known that it is not.
func (r *registers) put(reg uint32, v value) {
	at := offset(reg)
	if at < 0 {
		return
	}
	if v.b == nil {
		for i := at; i < min(at+16, len(r.known)); i++ {
			r.known[i] = false
		}
		return
	}
	for i := 0; i < (len(v.b)+3)/4*4 && at+i < len(r.bytes); i++ {
		r.bytes[at+i], r.known[at+i] = 0, true
		if i < len(v.b) {
			r.bytes[at+i] = v.b[i]
		}
	}
}

func (r *registers) get(reg uint32, n int) value {
	at := offset(reg)
	if at < 0 || n <= 0 || at+n > len(r.bytes) {
		return value{}
	}
	for _, k := range r.known[at : at+n] {
		if !k {
			return value{}
		}
	}
	return known(bytes.Clone(r.bytes[at : at+n]))
}

// find looks the registers from reg on up.
func (s *foreignSet) find(regs *registers, reg uint32) (nftables.SetElement, answer) {
	var none nftables.SetElement
	if s == nil || s.unreadable {
		return none, perhaps
	}
	if len(s.elements) == 0 {
		return none, no
	}
	key := regs.get(reg, len(s.elements[0].Key))
	switch {
	case key.b == nil:
		return none, perhaps
	case !s.interval:
		if s.exact == nil {
			s.exact = make(map[string]nftables.SetElement, len(s.elements))
			for _, e := range s.elements {
				s.exact[string(e.Key)] = e
			}
		}
		e, ok := s.exact[string(key.b)]
		return e, truth(ok)
	case s.composed:
		return s.findComposed(key.b)
	}
	// Each element begins a range and the next one, an end or another
	// beginning, ends it. They come in no order.
	var best *nftables.SetElement
	for i := range s.elements {
		e := &s.elements[i]
		if bytes.Compare(e.Key, key.b) > 0 {
			continue
		}
		// Where one range ends and another begins, the beginning counts.
		if best == nil || bytes.Compare(e.Key, best.Key) > 0 || bytes.Equal(e.Key, best.Key) && !e.IntervalEnd {
			best = e
		}
	}
	if best == nil || best.IntervalEnd {
		return none, no
	}
	return *best, yes
}

// findComposed compares each field of four bytes with its range. Longer fields
// are looked at only where the range is a single value.
func (s *foreignSet) findComposed(key []byte) (nftables.SetElement, answer) {
	for _, e := range s.elements {
		end := e.KeyEnd
		if len(end) != len(key) {
			end = e.Key
		}
		in := true
		for i := 0; i+4 <= len(key) && in; i += 4 {
			in = bytes.Compare(key[i:i+4], e.Key[i:i+4]) >= 0 && bytes.Compare(key[i:i+4], end[i:i+4]) <= 0
		}
		if in {
			return e, yes
		}
	}
	return nftables.SetElement{}, no
}
