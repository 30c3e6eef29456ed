package main

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"os"
	"strings"
	"syscall"
	"unsafe"
)

// logLines is how much of the kernel's log is of interest: its first words.
const logLines = 8

func (s *Sight) kernel() {
	var u syscall.Utsname
	if syscall.Uname(&u) == nil {
		s.Release, s.Version, s.Machine = word(u.Release[:]), word(u.Version[:]), word(u.Machine[:])
	}
	s.ProcVersion = line("/proc/version")
	s.BootID = line("/proc/sys/kernel/random/boot_id")
	s.VDSO = vdso()
	const clockBoottime = 7
	var ts syscall.Timespec
	if _, _, errno := syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, clockBoottime,
		uintptr(unsafe.Pointer(&ts)), 0); errno == 0 {
		s.UptimeNs = ts.Nano()
	}
	s.KernelLog = kernelLog()
}

// vdso hashes the code that the kernel maps into every process. Each kernel
// build has its own, so equal hashes inside and outside mean one kernel,
// whatever names the sandbox shows.
func vdso() string {
	auxv, err := os.ReadFile("/proc/self/auxv")
	if err != nil {
		return ""
	}
	const atSysinfoEHDR = 33
	var base uint64
	for ; len(auxv) >= 16; auxv = auxv[16:] {
		if binary.NativeEndian.Uint64(auxv) == atSysinfoEHDR {
			base = binary.NativeEndian.Uint64(auxv[8:])
		}
	}
	if base == 0 {
		return ""
	}
	// An address that the kernel gave, outside anything Go manages. The memory
	// is read through the kernel, which checks what the header claims.
	mem, err := os.Open("/proc/self/mem")
	if err != nil {
		return ""
	}
	defer mem.Close()
	header := make([]byte, 64)
	if _, err := mem.ReadAt(header, int64(base)); err != nil || string(header[:4]) != "\x7fELF" {
		return ""
	}
	sections := binary.NativeEndian.Uint64(header[40:])
	size := sections + uint64(binary.NativeEndian.Uint16(header[58:]))*uint64(binary.NativeEndian.Uint16(header[60:]))
	if size < 64 || size > 1<<16 {
		return ""
	}
	image := make([]byte, size)
	if _, err := mem.ReadAt(image, int64(base)); err != nil {
		return ""
	}
	sum := sha256.Sum256(image)
	return hex.EncodeToString(sum[:])
}

// kernelLog gives the first lines that the kernel logged, if it shows them.
func kernelLog() []string {
	const readAll = 3
	buf := make([]byte, 1<<20)
	n, _, errno := syscall.RawSyscall(syscall.SYS_SYSLOG, readAll, uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)))
	if errno != 0 {
		return nil
	}
	lines := strings.SplitN(string(buf[:n]), "\n", logLines+1)
	for i, l := range lines {
		lines[i] = l[:min(len(l), 200)]
	}
	return lines[:min(len(lines), logLines)]
}

// line is the first line of a file, or "".
func line(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	first, _, _ := strings.Cut(string(text), "\n")
	return strings.TrimSpace(first)
}

// word reads a field of utsname, whose characters are signed on some
// architectures and not on others.
func word[T int8 | uint8](field []T) string {
	var b strings.Builder
	for _, c := range field {
		if c == 0 {
			break
		}
		b.WriteByte(byte(c))
	}
	return b.String()
}
