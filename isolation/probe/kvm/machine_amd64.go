package kvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The part of the KVM API that the probe needs.
const (
	kvmGetAPIVersion     = 0xae00
	kvmCreateVM          = 0xae01
	kvmGetVCPUMmapSize   = 0xae04
	kvmCreateVCPU        = 0xae41
	kvmSetTSSAddr        = 0xae47
	kvmRun               = 0xae80
	kvmSetUserMemory     = 0x4020ae46
	kvmGetSupportedCPUID = 0xc008ae05
	kvmSetCPUID2         = 0x4008ae90
	kvmGetRegs           = 0x8090ae81
	kvmSetRegs           = 0x4090ae82
	kvmGetSregs          = 0x8138ae83
	kvmSetSregs          = 0x4138ae84

	exitIO        = 2
	exitHalt      = 5
	exitShutdown  = 8
	exitFailEntry = 9
	exitInternal  = 17
)

type memoryRegion struct {
	slot, flags      uint32
	guest, size, own uint64
}

type regs struct {
	rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp uint64
	r                                      [8]uint64
	rip, rflags                            uint64
}

type segment struct {
	base                        uint64
	limit                       uint32
	selector                    uint16
	kind, present, dpl, db, s   uint8
	l, g, avl, unusable, filler uint8
}

type table struct {
	base   uint64
	limit  uint16
	filler [3]uint16
}

type sregs struct {
	cs, ds, es, fs, gs, ss, tr, ldt segment
	gdt, idt                        table
	cr0, cr2, cr3, cr4, cr8         uint64
	efer, apicBase                  uint64
	interrupts                      [4]uint64
}

type cpuidEntry struct {
	function, index, flags, eax, ebx, ecx, edx uint32
	filler                                     [3]uint32
}

type cpuid struct {
	n, filler uint32
	entries   [256]cpuidEntry
}

// machine is a VM with one processor and its memory.
type machine struct {
	vm, vcpu   int
	mem, state []byte
	xsave      bool
}

// newMachine makes the machine ready in long mode; stage names what failed.
func newMachine(kvm int) (m *machine, stage string, err error) {
	m = &machine{vm: -1, vcpu: -1}
	defer func() {
		if err != nil {
			m.close()
		}
	}()
	if version, err := m.call(kvm, kvmGetAPIVersion, 0); err != nil || version != 12 {
		return m, "answer its version", errors.Join(err, fmt.Errorf("version %d, not 12", version))
	}
	if m.vm, err = m.call(kvm, kvmCreateVM, 0); err != nil {
		m.vm = -1
		return m, "create a machine", err
	}
	// Three pages that some Intel processors want outside the guest's memory.
	// Processors that need none refuse nothing.
	_ = m.ioctl(m.vm, kvmSetTSSAddr, 0xfffbd000)
	if m.mem, err = unix.Mmap(-1, 0, memorySize, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
		return m, "get memory", err
	}
	image(m.mem)
	region := memoryRegion{size: memorySize, own: uint64(uintptr(unsafe.Pointer(&m.mem[0])))}
	if err = m.ioctl(m.vm, kvmSetUserMemory, uintptr(unsafe.Pointer(&region))); err != nil {
		return m, "map memory", err
	}
	if m.vcpu, err = m.call(m.vm, kvmCreateVCPU, 0); err != nil {
		m.vcpu = -1
		return m, "create a processor", err
	}
	size, err := m.call(kvm, kvmGetVCPUMmapSize, 0)
	if err != nil {
		return m, "size the processor's state", err
	}
	if m.state, err = unix.Mmap(m.vcpu, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return m, "map the processor's state", err
	}
	if err = m.setCPUID(kvm); err != nil {
		return m, "describe the processor", err
	}
	if err = m.setLongMode(); err != nil {
		return m, "enter long mode", err
	}
	return m, "", nil
}

func (m *machine) close() {
	if m.state != nil {
		_ = unix.Munmap(m.state)
	}
	if m.vcpu >= 0 {
		_ = unix.Close(m.vcpu)
	}
	if m.vm >= 0 {
		_ = unix.Close(m.vm)
	}
	if m.mem != nil {
		_ = unix.Munmap(m.mem)
	}
}

// setCPUID gives the guest all that KVM supports, as any monitor does.
func (m *machine) setCPUID(kvm int) error {
	c := &cpuid{n: uint32(len(cpuid{}.entries))}
	if err := m.ioctl(kvm, kvmGetSupportedCPUID, uintptr(unsafe.Pointer(c))); err != nil {
		return err
	}
	for _, e := range c.entries[:min(int(c.n), len(c.entries))] {
		if e.function == 1 {
			m.xsave = e.ecx&(1<<26) != 0
		}
	}
	return m.ioctl(m.vcpu, kvmSetCPUID2, uintptr(unsafe.Pointer(c)))
}

func (m *machine) setLongMode() error {
	var s sregs
	if err := m.ioctl(m.vcpu, kvmGetSregs, uintptr(unsafe.Pointer(&s))); err != nil {
		return err
	}
	data := segment{limit: 0xffffffff, selector: kernelData, kind: 3, present: 1, db: 1, s: 1, g: 1}
	s.ds, s.es, s.fs, s.gs, s.ss = data, data, data, data, data
	s.cs = segment{limit: 0xffffffff, selector: kernelCode, kind: 11, present: 1, s: 1, l: 1, g: 1}
	s.tr = segment{base: tssAt, limit: 0x67, selector: taskState, kind: 11, present: 1}
	s.ldt = segment{unusable: 1}
	s.gdt = table{base: gdtAt, limit: 0x3f}
	s.idt = table{base: idtAt, limit: 0xff}
	s.cr0 = 1<<31 | 1<<16 | 1<<5 | 1<<4 | 1<<1 | 1 // paging, write protect, numeric error, ET, MP, protection
	s.cr3 = pml4At
	s.cr4 = 1<<10 | 1<<9 | 1<<5 // SIMD exceptions, FXSAVE, PAE
	s.efer = 1<<10 | 1<<8 | 1   // long mode active and enabled, SYSCALL
	return m.ioctl(m.vcpu, kvmSetSregs, uintptr(unsafe.Pointer(&s)))
}

// setRegs points the processor at rip.
func (m *machine) setRegs(rip uint64) error {
	r := regs{rip: rip, rsp: kernelStack, rflags: 2}
	if m.xsave {
		r.rsi = 1
	}
	return m.ioctl(m.vcpu, kvmSetRegs, uintptr(unsafe.Pointer(&r)))
}

// progress gives the loop's counter and where the guest is.
func (m *machine) progress() (left, rip uint64, err error) {
	var r regs
	err = m.ioctl(m.vcpu, kvmGetRegs, uintptr(unsafe.Pointer(&r)))
	return r.rcx, r.rip, err
}

// word reads struct kvm_run.
func (m *machine) word(at int) uint32 { return binary.LittleEndian.Uint32(m.state[at:]) }

func (m *machine) exitReason() uint32 { return m.word(8) }

// ioByte is the byte that the guest wrote to the probe's port, or '?' for
// anything else that it did with ports.
func (m *machine) ioByte() byte {
	const directionOut = 1
	offset := binary.LittleEndian.Uint64(m.state[40:])
	if m.state[32] != directionOut || m.state[33] != 1 || binary.LittleEndian.Uint16(m.state[34:]) != port ||
		offset >= uint64(len(m.state)) {
		return '?'
	}
	return m.state[offset]
}

func (m *machine) ioctl(fd int, request, arg uintptr) error {
	_, err := m.call(fd, request, arg)
	return err
}

// call repeats what a signal of the Go runtime interrupted: making a machine,
// for one, gives up then.
func (m *machine) call(fd int, request, arg uintptr) (int, error) {
	const patience = 100
	for try := 0; ; try++ {
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, arg)
		if errno == unix.EINTR && try < patience {
			continue
		}
		if errno != 0 {
			return 0, errno
		}
		return int(n), nil
	}
}

// enter lets the processor run until it exits or a signal comes.
func (m *machine) enter() error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(m.vcpu), kvmRun, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
