package containerd

import (
	"runtime"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// allowedSyscalls is what an ordinary server, shell, compiler or language
// runtime needs, and no more. Against containerd's default it leaves out, by
// what they open:
//
//   - other processes: ptrace, process_vm_*, process_madvise,
//     process_mrelease, pidfd_getfd, kcmp (the default lets ptrace and
//     process_vm_* through);
//   - namespaces, mounts, roots: unshare, setns, mount and its family, chroot,
//     pivot_root, listmount, statmount, name_to_handle_at, and clone with a
//     namespace flag;
//   - kernel subsystems with a history: bpf, perf_event_open, userfaultfd,
//     io_uring, keyctl, add_key, request_key, fanotify, io_setup and the rest
//     of Linux AIO, remap_file_pages, vmsplice, modify_ldt, memfd_secret,
//     System V semaphores, System V and POSIX message queues, protection
//     keys, the newer futex calls, mincore, quotactl, lookup_dcookie, syslog;
//   - the machine: kexec, modules, reboot, swap, iopl, clocks;
//   - sockets outside unix, inet and inet6 (netlink only for routes, which
//     getifaddrs reads);
//   - the 32-bit system call table as a whole: 32-bit programs do not run.
//
// mknod stays, without CAP_MKNOD: mkfifo is mknod.
var allowedSyscalls = strings.Fields(`
	accept accept4 access alarm arch_prctl bind brk
	capget capset chdir chmod chown clock_getres clock_gettime clock_nanosleep
	close close_range connect copy_file_range creat dup dup2 dup3
	epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait
	eventfd eventfd2 execve exit exit_group
	faccessat faccessat2 fadvise64 fallocate fchdir fchmod fchmodat fchmodat2
	fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fork
	fremovexattr fsetxattr fstat fstatfs fsync ftruncate
	futex futimesat
	get_robust_list getcpu getcwd getdents getdents64 getegid geteuid getgid
	getgroups getitimer getpeername getpgid getpgrp getpid getppid getpriority
	getrandom getresgid getresuid getrlimit getrusage getsid getsockname
	getsockopt gettid gettimeofday getuid getxattr
	inotify_add_watch inotify_init inotify_init1 inotify_rm_watch ioctl
	kill landlock_add_rule landlock_create_ruleset
	landlock_restrict_self lchown lgetxattr link linkat listen listxattr
	llistxattr lremovexattr lseek lsetxattr lstat
	madvise membarrier memfd_create mkdir mkdirat mknod mknodat
	mlock mlock2 mlockall mmap mprotect mremap msync munlock munlockall
	munmap nanosleep newfstatat open openat openat2
	pause pidfd_open pidfd_send_signal pipe pipe2
	poll ppoll prctl pread64 preadv preadv2 prlimit64 pselect6
	pwrite64 pwritev pwritev2
	read readlink readlinkat readv recvfrom recvmmsg recvmsg
	removexattr rename renameat renameat2 restart_syscall rmdir rseq
	rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn
	rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo
	sched_get_priority_max sched_get_priority_min sched_getaffinity
	sched_getparam sched_getscheduler
	sched_setaffinity
	sched_yield seccomp select sendfile sendmmsg sendmsg sendto
	shmat shmctl shmdt shmget
	set_robust_list set_tid_address setgid setgroups
	setitimer setpgid setpriority setregid setresgid setresuid setreuid
	setrlimit setsid setsockopt setuid setxattr shutdown
	sigaltstack signalfd signalfd4 socketpair splice stat statfs statx
	symlink symlinkat sync sync_file_range syncfs sysinfo
	tgkill time timer_create timer_delete timer_getoverrun timer_gettime
	timer_settime timerfd_create timerfd_gettime timerfd_settime times tkill
	truncate umask uname unlink unlinkat utime utimensat utimes
	vfork wait4 waitid write writev`)

// namespaceFlags are clone's; CLONE_NEWTIME shares its bit with the exit
// signal and can only be asked of clone3 and unshare.
const namespaceFlags = unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP

func seccompProfile() *specs.LinuxSeccomp {
	allow := func(name string, args ...specs.LinuxSeccompArg) specs.LinuxSyscall {
		return specs.LinuxSyscall{Names: []string{name}, Action: specs.ActAllow, Args: args}
	}
	equal := func(index uint, v uint64) specs.LinuxSeccompArg {
		return specs.LinuxSeccompArg{Index: index, Value: v, Op: specs.OpEqualTo}
	}
	nosys := uint(unix.ENOSYS)
	calls := []specs.LinuxSyscall{
		{Names: allowedSyscalls, Action: specs.ActAllow},
		allow("clone", specs.LinuxSeccompArg{
			Index: 0, Value: namespaceFlags, ValueTwo: 0, Op: specs.OpMaskedEqual,
		}),
		// "Not in this kernel" is what libraries have a way around: clone3,
		// whose flags lie in memory where a filter cannot look, the two kinds of
		// asynchronous I/O, and what older kernels lacked.
		{Names: []string{
			"clone3", "execveat", "futex_waitv", "io_setup", "io_uring_setup", "mincore",
			"mseal", "pkey_alloc", "semget", "tee",
		}, Action: specs.ActErrno, ErrnoRet: &nosys},
		allow("personality", equal(0, 0)),
		allow("personality", equal(0, 0xffffffff)),
		allow("socket", equal(0, unix.AF_UNIX)),
		allow("socket", equal(0, unix.AF_INET)),
		allow("socket", equal(0, unix.AF_INET6)),
		allow("socket", equal(0, unix.AF_NETLINK), equal(2, unix.NETLINK_ROUTE)),
	}
	arch := map[string]specs.Arch{"amd64": specs.ArchX86_64, "arm64": specs.ArchAARCH64}[runtime.GOARCH]
	errno := uint(unix.EPERM)
	return &specs.LinuxSeccomp{
		DefaultAction:   specs.ActErrno,
		DefaultErrnoRet: &errno,
		Architectures:   []specs.Arch{arch},
		Syscalls:        calls,
	}
}
