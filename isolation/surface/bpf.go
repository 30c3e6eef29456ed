package surface

import (
	"encoding/binary"
	"fmt"
)

// Insn is one classic BPF instruction as seccomp takes it.
type Insn struct {
	Code   uint16
	JT, JF uint8
	K      uint32
}

// Program is a classic BPF program over struct seccomp_data.
type Program []Insn

// Data is struct seccomp_data: what a filter sees of a call.
type Data struct {
	Nr, Arch uint32
	IP       uint64
	Args     [6]uint64
}

// dataSize is the size of struct seccomp_data; filters load 32-bit words of it.
const dataSize = 64

// word gives the 32-bit word of d at the byte offset off, which Validate has
// found to be aligned and in range.
func (d *Data) word(off uint32) uint32 {
	var b [dataSize]byte
	binary.NativeEndian.PutUint32(b[0:], d.Nr)
	binary.NativeEndian.PutUint32(b[4:], d.Arch)
	binary.NativeEndian.PutUint64(b[8:], d.IP)
	for i, a := range d.Args {
		binary.NativeEndian.PutUint64(b[16+8*i:], a)
	}
	return binary.NativeEndian.Uint32(b[off:])
}

// Instruction classes, modes and operations of classic BPF.
const (
	classLD, classLDX, classST, classSTX = 0, 1, 2, 3
	classALU, classJMP, classRET         = 4, 5, 6
	classMISC                            = 7

	modeIMM, modeABS, modeMEM, modeLEN = 0x00, 0x20, 0x60, 0x80

	srcX = 0x08
	retA = 0x10

	aluADD, aluSUB, aluMUL, aluDIV, aluOR  = 0x00, 0x10, 0x20, 0x30, 0x40
	aluAND, aluLSH, aluRSH, aluNEG, aluXOR = 0x50, 0x60, 0x70, 0x80, 0xa0

	jmpJA, jmpJEQ, jmpJGT, jmpJGE, jmpJSET = 0x00, 0x10, 0x20, 0x30, 0x40

	miscTAX, miscTXA = 0x00, 0x80

	memWords  = 16
	maxLength = 4096 // BPF_MAXINSNS
)

// Validate applies the rules by which the kernel accepts a seccomp filter: it
// ends in a return on every path, jumps only forward, and loads only aligned
// words of the data.
func (p Program) Validate() error {
	if len(p) == 0 || len(p) > maxLength {
		return fmt.Errorf("seccomp filter: %d instructions, not 1 to %d", len(p), maxLength)
	}
	bad := func(i int, why string) error {
		return fmt.Errorf("seccomp filter: instruction %d (code %#x, k %#x): %s", i, p[i].Code, p[i].K, why)
	}
	for i, in := range p {
		rest := uint32(len(p) - i - 1)
		switch in.Code & 7 {
		case classLD:
			switch in.Code {
			case classLD | modeABS:
				if in.K&3 != 0 || in.K >= dataSize {
					return bad(i, "load outside the call's data")
				}
			case classLD | modeLEN, classLD | modeIMM:
			case classLD | modeMEM:
				if in.K >= memWords {
					return bad(i, "no such memory word")
				}
			default:
				return bad(i, "load not allowed in a seccomp filter")
			}
		case classLDX:
			switch in.Code {
			case classLDX | modeLEN, classLDX | modeIMM:
			case classLDX | modeMEM:
				if in.K >= memWords {
					return bad(i, "no such memory word")
				}
			default:
				return bad(i, "load not allowed in a seccomp filter")
			}
		case classST, classSTX:
			if in.Code != in.Code&7 || in.K >= memWords {
				return bad(i, "bad store")
			}
		case classALU:
			switch in.Code & 0xf0 {
			case aluADD, aluSUB, aluMUL, aluOR, aluAND, aluXOR, aluNEG:
			case aluLSH, aluRSH:
				if in.Code&srcX == 0 && in.K >= 32 {
					return bad(i, "shift by 32 or more")
				}
			case aluDIV:
				if in.Code&srcX == 0 && in.K == 0 {
					return bad(i, "division by zero")
				}
			default:
				return bad(i, "unknown arithmetic")
			}
			if in.Code > 0xff {
				return bad(i, "unknown arithmetic")
			}
		case classJMP:
			switch in.Code &^ srcX {
			case classJMP | jmpJA:
				if in.K >= rest {
					return bad(i, "jump past the end")
				}
			case classJMP | jmpJEQ, classJMP | jmpJGT, classJMP | jmpJGE, classJMP | jmpJSET:
				if uint32(in.JT) >= rest || uint32(in.JF) >= rest {
					return bad(i, "jump past the end")
				}
			default:
				return bad(i, "unknown jump")
			}
		case classRET:
			if in.Code != classRET && in.Code != classRET|retA {
				return bad(i, "unknown return")
			}
		case classMISC:
			if in.Code != classMISC|miscTAX && in.Code != classMISC|miscTXA {
				return bad(i, "unknown instruction")
			}
		}
	}
	if last := p[len(p)-1]; last.Code&7 != classRET {
		return bad(len(p)-1, "the last instruction does not return")
	}
	return nil
}

// Run interprets a valid program for one concrete call.
func (p Program) Run(d *Data) Action {
	var a, x uint32
	var mem [memWords]uint32
	for pc := 0; ; pc++ {
		in := p[pc]
		switch in.Code & 7 {
		case classLD:
			switch in.Code {
			case classLD | modeABS:
				a = d.word(in.K)
			case classLD | modeLEN:
				a = dataSize
			case classLD | modeIMM:
				a = in.K
			default:
				a = mem[in.K]
			}
		case classLDX:
			switch in.Code {
			case classLDX | modeLEN:
				x = dataSize
			case classLDX | modeIMM:
				x = in.K
			default:
				x = mem[in.K]
			}
		case classST:
			mem[in.K] = a
		case classSTX:
			mem[in.K] = x
		case classALU:
			v := in.K
			if in.Code&srcX != 0 {
				v = x
			}
			var dies bool
			if a, dies = alu(in.Code&0xf0, a, v); dies {
				return ActionKillThread
			}
		case classJMP:
			if in.Code&0xf0 == jmpJA {
				pc += int(in.K)
				break
			}
			v := in.K
			if in.Code&srcX != 0 {
				v = x
			}
			if holds(in.Code&0xf0, a, v) {
				pc += int(in.JT)
			} else {
				pc += int(in.JF)
			}
		case classRET:
			if in.Code&retA != 0 {
				return Action(a)
			}
			return Action(in.K)
		case classMISC:
			if in.Code == classMISC|miscTAX {
				x = a
			} else {
				a = x
			}
		}
	}
}

// alu computes one operation; dies says that the kernel ends the program with
// result 0, as it does when X divides by zero.
func alu(op uint16, a, v uint32) (result uint32, dies bool) {
	switch op {
	case aluADD:
		return a + v, false
	case aluSUB:
		return a - v, false
	case aluMUL:
		return a * v, false
	case aluDIV:
		if v == 0 {
			return 0, true
		}
		return a / v, false
	case aluOR:
		return a | v, false
	case aluAND:
		return a & v, false
	case aluXOR:
		return a ^ v, false
	case aluLSH:
		// The kernel masks a shift by register.
		return a << (v & 31), false
	case aluRSH:
		return a >> (v & 31), false
	default: // aluNEG
		return -a, false
	}
}

func holds(op uint16, a, v uint32) bool {
	switch op {
	case jmpJEQ:
		return a == v
	case jmpJGT:
		return a > v
	case jmpJGE:
		return a >= v
	default: // jmpJSET
		return a&v != 0
	}
}
