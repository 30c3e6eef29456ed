package surface

// A few words to write filters with. Jumps that a filter takes on a match skip
// one instruction unless said otherwise.

func ldNr() Insn                    { return Insn{Code: classLD | modeABS, K: 0} }
func ldArch() Insn                  { return Insn{Code: classLD | modeABS, K: 4} }
func ldArg(i, half int) Insn        { return Insn{Code: classLD | modeABS, K: uint32(16 + 8*i + 4*half)} }
func ret(a Action) Insn             { return Insn{Code: classRET, K: uint32(a)} }
func jeq(k uint32, t, f uint8) Insn { return Insn{Code: classJMP | jmpJEQ, K: k, JT: t, JF: f} }

// allowOnly lets through the given numbers of the native ABI.
func allowOnly(nrs ...uint32) Program {
	p := Program{ldArch(), jeq(local.native.arch, 1, 0), ret(ActionKillProcess), ldNr()}
	for _, nr := range nrs {
		p = append(p, jeq(nr, 0, 1), ret(ActionAllow))
	}
	return append(p, ret(ActionErrno|1))
}

// refuse lets through all but the given numbers, whatever the ABI.
func refuse(nrs ...uint32) Program {
	p := Program{ldNr()}
	for _, nr := range nrs {
		p = append(p, jeq(nr, 0, 1), ret(ActionErrno|1))
	}
	return append(p, ret(ActionAllow))
}

// onlyWithArg0 lets nr through only if the low half of its first argument is v.
func onlyWithArg0(nr, v uint32) Program {
	return Program{
		ldNr(), jeq(nr, 0, 3),
		ldArg(0, 0), jeq(v, 1, 0), ret(ActionErrno | 1),
		ret(ActionAllow),
	}
}
