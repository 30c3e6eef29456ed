package main

import (
	"runtime"
	"syscall"
	"unsafe"
)

// noProcess is a process id beyond the largest that a kernel gives out.
const noProcess = 1 << 30

// tries makes every forbidden attempt. Whoever reads the answer knows which
// errors mean a refusal; an error that only a handler of the call can give (no
// such process, bad address) means that the call went through.
func tries() []Try {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var out []Try
	note := func(what string, errno syscall.Errno) { out = append(out, Try{what, int(errno)}) }
	call := func(what string, nr uintptr, args ...uintptr) (result uintptr, ok bool) {
		var a [6]uintptr
		copy(a[:], args)
		r, _, errno := syscall.Syscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
		note(what, errno)
		return r, errno == 0
	}
	open := func(what, path string, flags int) {
		fd, err := syscall.Open(path, flags|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
		if err == nil {
			_ = syscall.Close(fd)
			note(what, 0)
		} else if errno, ok := err.(syscall.Errno); ok {
			note(what, errno)
		}
	}
	// Go's wrappers take care of paths; the raw calls get constants only.
	err := syscall.Mknod("/dev/canary", syscall.S_IFCHR|0o600, 1<<8|1) // the machine's memory
	if err == nil {
		note("mknod", 0)
		_ = syscall.Unlink("/dev/canary")
	} else if errno, ok := err.(syscall.Errno); ok {
		note("mknod", errno)
	}
	const allProtocols = 0x0300 // ETH_P_ALL in network order
	for _, s := range []struct {
		what                    string
		family, kind, protocols uintptr
	}{
		{"packet socket", syscall.AF_PACKET, syscall.SOCK_RAW, allProtocols},
		{"raw socket", syscall.AF_INET, syscall.SOCK_RAW, syscall.IPPROTO_ICMP},
	} {
		if fd, ok := call(s.what, syscall.SYS_SOCKET, s.family, s.kind, s.protocols); ok {
			_ = syscall.Close(int(fd))
		}
	}
	call("ptrace", syscall.SYS_PTRACE, syscall.PTRACE_ATTACH, noProcess)
	call("process_vm_readv", sysProcessVMReadv, noProcess)
	const sessionKeyring = ^uintptr(2) // KEY_SPEC_SESSION_KEYRING, -3
	call("keyctl", sysKeyctl, 0, sessionKeyring)
	call("bpf", sysBPF, 0xffff)
	call("perf_event_open", sysPerfEventOpen, 0, 0, 0, ^uintptr(0), 0)
	if fd, ok := call("userfaultfd", sysUserfaultfd, syscall.O_CLOEXEC); ok {
		_ = syscall.Close(int(fd))
	}
	call("io_uring", sysIOUringSetup)
	// A process of several threads cannot get a user namespace; EINVAL says
	// that the call was let through as far as that.
	call("unshare", syscall.SYS_UNSHARE, syscall.CLONE_NEWUSER|syscall.CLONE_NEWNS)
	call("setns", sysSetns, ^uintptr(0))
	if err := syscall.Mount("canary", "/proc", "tmpfs", 0, ""); err == nil {
		note("mount", 0)
		_ = syscall.Unmount("/proc", syscall.MNT_DETACH)
	} else if errno, ok := err.(syscall.Errno); ok {
		note("mount", errno)
	}
	call("open_by_handle_at", sysOpenByHandleAt, ^uintptr(0))
	var nothing [1]byte
	call("init_module", syscall.SYS_INIT_MODULE, 0, 0, uintptr(unsafe.Pointer(&nothing[0])))
	call("reboot", syscall.SYS_REBOOT) // without its magic numbers
	const bufferSize = 10
	call("kernel log", syscall.SYS_SYSLOG, bufferSize)

	open("write /proc/sys", "/proc/sys/kernel/core_pattern", syscall.O_WRONLY)
	open("write sysrq", "/proc/sysrq-trigger", syscall.O_WRONLY)
	open("read /dev/kmsg", "/dev/kmsg", syscall.O_RDONLY)
	open("read /dev/mem", "/dev/mem", syscall.O_RDONLY)
	open("read kcore", "/proc/kcore", syscall.O_RDONLY)
	open("use /dev/kvm", "/dev/kvm", syscall.O_RDWR)
	return out
}
