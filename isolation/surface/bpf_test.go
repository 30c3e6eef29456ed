package surface

import (
	"encoding/binary"
	"testing"
)

func TestRunInterpretsEveryInstruction(t *testing.T) {
	d := &Data{Nr: 7, Arch: archX8664, IP: 0x1122334455667788, Args: [6]uint64{0xaaaabbbbccccdddd, 2}}
	ldi := func(k uint32) Insn { return Insn{Code: classLD | modeIMM, K: k} }
	ldxi := func(k uint32) Insn { return Insn{Code: classLDX | modeIMM, K: k} }
	alu := func(op uint16, k uint32) Insn { return Insn{Code: classALU | op, K: k} }
	alux := func(op uint16) Insn { return Insn{Code: classALU | op | srcX} }
	retA := Insn{Code: classRET | retA}
	tests := []struct {
		name string
		p    Program
		want uint32
	}{
		{"number", Program{ldNr(), retA}, 7},
		{"arch", Program{ldArch(), retA}, archX8664},
		{"argument, low half", Program{ldArg(0, 0), retA}, 0xccccdddd},
		{"argument, high half", Program{ldArg(0, 1), retA}, 0xaaaabbbb},
		{"instruction pointer", Program{{Code: classLD | modeABS, K: 12}, retA}, 0x11223344},
		{"length", Program{{Code: classLD | modeLEN}, retA}, 64},
		{"length to X", Program{{Code: classLDX | modeLEN}, {Code: classMISC | miscTXA}, retA}, 64},
		{"memory", Program{ldi(9), {Code: classST, K: 3}, ldi(0), {Code: classLD | modeMEM, K: 3}, retA}, 9},
		{"memory starts as zero", Program{ldi(9), {Code: classLD | modeMEM, K: 3}, retA}, 0},
		{"memory from X to X", Program{ldxi(8), {Code: classSTX, K: 15}, ldxi(0), {Code: classLDX | modeMEM, K: 15},
			{Code: classMISC | miscTXA}, retA}, 8},
		{"to X and back", Program{ldi(5), {Code: classMISC | miscTAX}, ldi(0), {Code: classMISC | miscTXA}, retA}, 5},
		{"add", Program{ldi(5), alu(aluADD, 0xffffffff), retA}, 4},
		{"sub", Program{ldi(5), alu(aluSUB, 6), retA}, 0xffffffff},
		{"mul", Program{ldi(5), alu(aluMUL, 6), retA}, 30},
		{"div", Program{ldi(31), alu(aluDIV, 6), retA}, 5},
		{"div by zero in X kills", Program{ldi(31), ldxi(0), alux(aluDIV), ret(ActionAllow)}, uint32(ActionKillThread)},
		{"or", Program{ldi(5), alu(aluOR, 2), retA}, 7},
		{"and", Program{ldi(5), alu(aluAND, 4), retA}, 4},
		{"xor", Program{ldi(5), alu(aluXOR, 4), retA}, 1},
		{"neg", Program{ldi(5), alu(aluNEG, 0), retA}, 0xfffffffb},
		{"lsh", Program{ldi(5), alu(aluLSH, 2), retA}, 20},
		{"rsh by X", Program{ldi(20), ldxi(2), alux(aluRSH), retA}, 5},
		{"shift by X is masked", Program{ldi(20), ldxi(34), alux(aluRSH), retA}, 5},
		{"ja", Program{{Code: classJMP | jmpJA, K: 1}, ret(1), ret(2)}, 2},
		{"jeq taken", Program{ldNr(), jeq(7, 1, 0), ret(1), ret(2)}, 2},
		{"jeq not taken", Program{ldNr(), jeq(8, 1, 0), ret(1), ret(2)}, 1},
		{"jgt is strict", Program{ldNr(), {Code: classJMP | jmpJGT, K: 7, JT: 1}, ret(1), ret(2)}, 1},
		{"jge is not", Program{ldNr(), {Code: classJMP | jmpJGE, K: 7, JT: 1}, ret(1), ret(2)}, 2},
		{"jset", Program{ldNr(), {Code: classJMP | jmpJSET, K: 4, JT: 1}, ret(1), ret(2)}, 2},
		{"jeq with X", Program{ldNr(), ldxi(7), {Code: classJMP | jmpJEQ | srcX, JT: 1}, ret(1), ret(2)}, 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.p.Validate(); err != nil {
				t.Fatal(err)
			}
			if got := tt.p.Run(d); uint32(got) != tt.want {
				t.Errorf("got %#x, want %#x", uint32(got), tt.want)
			}
		})
	}
}

func TestValidateRefusesWhatTheKernelRefuses(t *testing.T) {
	long := make(Program, maxLength+1)
	for i := range long {
		long[i] = ret(ActionAllow)
	}
	for name, p := range map[string]Program{
		"empty":                   {},
		"too long":                long,
		"does not return":         {ldNr()},
		"unaligned load":          {{Code: classLD | modeABS, K: 2}, ret(0)},
		"load past the data":      {{Code: classLD | modeABS, K: 64}, ret(0)},
		"byte load":               {{Code: classLD | modeABS | 0x10, K: 0}, ret(0)},
		"indirect load":           {{Code: classLD | 0x40, K: 0}, ret(0)},
		"jump past the end":       {jeq(1, 0, 1), ret(0)},
		"unconditional past end":  {{Code: classJMP | jmpJA, K: 1}, ret(0)},
		"huge unconditional":      {{Code: classJMP | jmpJA, K: 0xffffffff}, ret(0)},
		"no such memory word":     {{Code: classST, K: 16}, ret(0)},
		"division by constant 0":  {{Code: classALU | aluDIV, K: 0}, ret(0)},
		"shift by constant 32":    {{Code: classALU | aluLSH, K: 32}, ret(0)},
		"modulo":                  {{Code: classALU | 0x90, K: 3}, ret(0)},
		"return X":                {{Code: classRET | 0x08}},
		"unknown miscellaneous":   {{Code: classMISC | 0x40}, ret(0)},
		"bits above the low byte": {{Code: 0x100 | classALU | aluADD}, ret(0)},
	} {
		if err := p.Validate(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func decode(b []byte) (p Program) {
	for ; len(b) >= 8 && len(p) < 64; b = b[8:] {
		p = append(p, Insn{binary.LittleEndian.Uint16(b), b[2], b[3], binary.LittleEndian.Uint32(b[4:])})
	}
	return p
}

// FuzzExploreCoversRun holds the promise of the package: what a filter lets
// through for some arguments is never left out of the count, and what it
// refuses for some never counts as let through for all.
func FuzzExploreCoversRun(f *testing.F) {
	for _, p := range []Program{allowOnly(1, 2, 3), refuse(4), onlyWithArg0(7, 2),
		{ldArg(1, 0), {Code: classMISC | miscTAX}, ldNr(), {Code: classALU | aluDIV | srcX}, {Code: classRET | retA}},
		{ldArg(1, 0), {Code: classALU | aluAND, K: 0}, jeq(0, 1, 0), ret(0), ret(ActionAllow)}} {
		f.Add([]byte(p.key()), uint32(7), uint32(local.native.arch), uint64(2), uint64(0), uint64(0x7f0000))
	}
	f.Fuzz(func(t *testing.T, code []byte, nr, arch uint32, a0, a1, ip uint64) {
		p := decode(code)
		if p.Validate() != nil {
			t.Skip("needs a valid program")
		}
		v := p.explore(nr, arch)
		if v == 0 {
			t.Fatal("no verdict")
		}
		for _, args := range [][6]uint64{{a0, a1}, {a1, a0}, {}, {a0 ^ a1, ^a0, 1, 2, 3, 4}} {
			d := &Data{Nr: nr, Arch: arch, IP: ip, Args: args}
			want := mayRefuse
			if p.Run(d).lets() {
				want = mayLet
			}
			if v&want == 0 {
				t.Fatalf("%v on %+v gives %#x, but explore says %b", p, d, uint32(p.Run(d)), v)
			}
		}
	})
}
