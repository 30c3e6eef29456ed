package kvm

import "encoding/hex"

// The guest's memory. All of it lies in one page table entry of 2 MiB, of
// which the guest has the first 64 KiB.
const (
	memorySize = 64 << 10

	pml4At, pdptAt, pdAt = 0x1000, 0x2000, 0x3000
	gdtAt, idtAt, tssAt  = 0x4000, 0x5000, 0x6000
	codeAt               = 0x8000
	rateAt               = codeAt + 0x200
	breakpointAt         = codeAt + 0x280
	kernelStack          = 0xb000

	port           = 0x10
	rateIterations = 200_000
)

// Segment selectors; ring 3 ones carry the ring in their low bits. User data
// stands before user code, where SYSRET would look for it.
const (
	kernelCode, kernelData = 0x08, 0x10
	taskState              = 0x30
)

// guestCode is testdata/guest.S, assembled: offset in the code and bytes.
var guestCode = []struct {
	at   int
	code string
}{
	{0x0, // start
		"48c7c400b00000b04ce6104531e4cc4183fc010f85070100" +
			"00b058e610bf00d0000031c031d231c9bb11110000f0480f" +
			"c70f0f85e800000048813f111100000f85db00000085f674" +
			"210f20e0480d000004000f22e031c9b80300000031d20f01" +
			"d1bf00e00000480fae2fb049e610b9810000c031c0ba0800" +
			"18000f30b9820000c0b80081000031d20f30b9840000c0b8" +
			"000200000f306a236800c000006a026a2b688081000048cf"},
	{0x100, // entry
		"48c7c400b000004183e5034183fd03750f83f877750ab053" +
			"e610f4b048e610f4b042e610f4"},
	{0x180, // user
		"418ccdb8770000000f050f0b"},
	{0x200, // rate
		"48c7c1400d030048ffc975fbb052e610f4"},
	{0x280, // breakpoint
		"41ffc448cf"},
}

// image lays out the guest's memory: tables and code.
func image(mem []byte) {
	put64 := func(at int, v uint64) {
		for i := range 8 {
			mem[at+i] = byte(v >> (8 * i))
		}
	}
	const present, writable, user, large = 1, 2, 4, 0x80
	put64(pml4At, pdptAt|present|writable|user)
	put64(pdptAt, pdAt|present|writable|user)
	put64(pdAt, 0|present|writable|user|large)

	put64(gdtAt+0x08, 0x00af9b000000ffff) // kernel code, 64 bit
	put64(gdtAt+0x10, 0x00cf93000000ffff) // kernel data
	put64(gdtAt+0x20, 0x00cff3000000ffff) // user data
	put64(gdtAt+0x28, 0x00affb000000ffff) // user code, 64 bit
	put64(gdtAt+0x30, 0x00008b0000000067|uint64(tssAt&0xffffff)<<16)
	put64(gdtAt+0x38, 0)

	// Vector 3: an interrupt gate that ring 3 may use as well.
	const gate = breakpointAt
	put64(idtAt+3*16, gate&0xffff|kernelCode<<16|0xee00<<32|(gate>>16)<<48)
	put64(idtAt+3*16+8, 0)

	put64(tssAt+4, kernelStack) // where an exception from ring 3 finds a stack

	for _, part := range guestCode {
		code, err := hex.DecodeString(part.code)
		if err != nil {
			panic("kvm: guest code is not hexadecimal: " + err.Error())
		}
		copy(mem[codeAt+part.at:], code)
	}
}
