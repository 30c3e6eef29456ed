package surface

import (
	"runtime"
	"slices"
)

// Audit architecture words, as struct seccomp_data carries them.
const (
	archX8664   = 0xc000003e
	archI386    = 0x40000003
	archAARCH64 = 0xc00000b7
	archARM     = 0x40000028

	// x32Bit marks a call of the x32 ABI, which shares archX8664.
	x32Bit = 0x40000000
	// foreignCalls is the range of numbers that is tried for an ABI that has
	// no table here.
	foreignCalls = 512
)

// abi is one way to enter the kernel.
type abi struct {
	arch uint32
	bit  uint32 // ored into the number
}

// machine is the native call table of an architecture, and the other ABIs by
// which a program could get round a filter that forgets them.
type machine struct {
	calls   map[uint32]string
	numbers []uint32 // sorted
	native  abi
	foreign []abi
}

func newMachine(goarch string) machine {
	var m machine
	switch goarch {
	case "amd64":
		m = machine{
			calls:   callsAMD64,
			native:  abi{arch: archX8664},
			foreign: []abi{{arch: archI386}, {arch: archX8664, bit: x32Bit}},
		}
	case "arm64":
		m = machine{
			calls:   callsARM64,
			native:  abi{arch: archAARCH64},
			foreign: []abi{{arch: archARM}},
		}
	}
	for n := range m.calls {
		m.numbers = append(m.numbers, n)
	}
	slices.Sort(m.numbers)
	return m
}

// local is this machine. Where its architecture is not known here the table is
// empty, and Measure says so.
var local = newMachine(runtime.GOARCH)

// CallName names a system call number of this machine, or gives "".
func CallName(nr uint32) string { return local.calls[nr] }
