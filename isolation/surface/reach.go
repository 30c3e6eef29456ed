package surface

// A call under a set of filters has one of three verdicts.
type verdict uint8

const (
	mayRefuse verdict = 1 << iota // some argument values are refused
	mayLet                        // some argument values are let through
)

// value is a 32-bit value that is either known or could be anything.
type value struct {
	known bool
	v     uint32
}

// state is what is known at one instruction.
type state struct {
	a, x value
	mem  [memWords]value
}

// maxStates bounds the states followed at one instruction. Beyond it they are
// joined into "could be anything", which only ever adds reachable calls.
const maxStates = 32

// explore gives the verdict of one valid program for a call whose number and
// architecture are known and whose arguments and instruction pointer are not.
// Jumps go forward only, so one pass in order of instructions sees every
// state before it is needed.
func (p Program) explore(nr, arch uint32) verdict {
	pending := make(map[int]map[state]struct{}, 16)
	zero := value{known: true}
	start := state{a: zero, x: zero}
	for i := range start.mem {
		start.mem[i] = zero
	}
	pending[0] = map[state]struct{}{start: {}}
	goTo := func(pc int, s state) {
		set := pending[pc]
		if set == nil {
			set = make(map[state]struct{}, 1)
			pending[pc] = set
		}
		if _, ok := set[s]; !ok && len(set) >= maxStates {
			clear(set)
			s = state{}
		}
		set[s] = struct{}{}
	}
	var out verdict
	for pc := 0; pc < len(p); pc++ {
		set := pending[pc]
		if set == nil {
			continue
		}
		delete(pending, pc)
		if _, anything := set[state{}]; anything {
			set = map[state]struct{}{{}: {}}
		}
		for s := range set {
			out |= p.step(pc, s, nr, arch, goTo)
			if out == mayRefuse|mayLet {
				return out
			}
		}
	}
	return out
}

// step runs one instruction and hands on every state that may follow.
func (p Program) step(pc int, s state, nr, arch uint32, goTo func(int, state)) verdict {
	in := p[pc]
	operand := value{true, in.K}
	if in.Code&srcX != 0 {
		operand = s.x
	}
	switch in.Code & 7 {
	case classLD:
		switch in.Code {
		case classLD | modeABS:
			switch in.K {
			case 0:
				s.a = value{true, nr}
			case 4:
				s.a = value{true, arch}
			default:
				s.a = value{}
			}
		case classLD | modeLEN:
			s.a = value{true, dataSize}
		case classLD | modeIMM:
			s.a = value{true, in.K}
		default:
			s.a = s.mem[in.K]
		}
	case classLDX:
		switch in.Code {
		case classLDX | modeLEN:
			s.x = value{true, dataSize}
		case classLDX | modeIMM:
			s.x = value{true, in.K}
		default:
			s.x = s.mem[in.K]
		}
	case classST:
		s.mem[in.K] = s.a
	case classSTX:
		s.mem[in.K] = s.x
	case classALU:
		return p.stepALU(pc, s, operand, goTo)
	case classJMP:
		switch {
		case in.Code&0xf0 == jmpJA:
			goTo(pc+1+int(in.K), s)
		case s.a.known && operand.known:
			if holds(in.Code&0xf0, s.a.v, operand.v) {
				goTo(pc+1+int(in.JT), s)
			} else {
				goTo(pc+1+int(in.JF), s)
			}
		default:
			yes, no := s, s
			if in.Code&0xf0 == jmpJEQ && operand.known {
				// On the equal branch the value is known again, which keeps
				// chains of comparisons exact.
				yes.a = operand
			}
			goTo(pc+1+int(in.JT), yes)
			goTo(pc+1+int(in.JF), no)
		}
		return 0
	case classRET:
		result := value{true, in.K}
		if in.Code&retA != 0 {
			result = s.a
		}
		switch {
		case !result.known:
			return mayRefuse | mayLet
		case Action(result.v).lets():
			return mayLet
		}
		return mayRefuse
	case classMISC:
		if in.Code == classMISC|miscTAX {
			s.x = s.a
		} else {
			s.a = s.x
		}
	}
	goTo(pc+1, s)
	return 0
}

func (p Program) stepALU(pc int, s state, operand value, goTo func(int, state)) verdict {
	op := p[pc].Code & 0xf0
	var out verdict
	switch {
	case s.a.known && operand.known, s.a.known && op == aluNEG:
		r, dies := alu(op, s.a.v, operand.v)
		if dies {
			return mayRefuse
		}
		s.a = value{true, r}
	case op == aluAND && (operand == value{true, 0} || s.a == value{true, 0}):
		s.a = value{true, 0}
	default:
		if op == aluDIV && !operand.known {
			out = mayRefuse // X may be zero
		} else if op == aluDIV && operand.v == 0 {
			return mayRefuse
		}
		s.a = value{}
	}
	goTo(pc+1, s)
	return out
}

// together gives the verdict of several filters on the same call: the kernel
// takes the strictest answer.
func together(filters []Program, nr, arch uint32) verdict {
	out := mayLet
	for _, f := range filters {
		v := f.explore(nr, arch)
		if v&mayLet == 0 {
			return mayRefuse
		}
		out |= v
	}
	return out
}
