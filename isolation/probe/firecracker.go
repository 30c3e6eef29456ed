package probe

import (
	"context"
	"debug/elf"
	"fmt"

	"redoubt.dev/redoubt/isolation"
)

// firecrackerTerms are cited from the release builds' own filters: the thread
// with the most calls has 50.
func firecrackerTerms() isolation.Terms {
	return isolation.Terms{
		VM: vmOwnKernel + vmFewDevices + vmConfined,
		Surface: isolation.Surface{Syscalls: 50, SyscallsTotal: 362, Devices: 2,
			Source: "cited: the seccomp filter of Firecracker's musl release builds"},
	}
}

func probeFirecracker(ctx context.Context, in Inputs, _ Runner) []isolation.Finding {
	f := isolation.Finding{
		Runtime: "firecracker", Class: isolation.ClassMicroVM, State: isolation.StateUnusable,
		Terms: firecrackerTerms(),
		// 5 MiB by its specification, and a small guest kernel and its agent.
		OverheadMemory: 64 << 20,
	}
	done := func(reason, fix string) []isolation.Finding {
		f.Reason, f.Fix = reason, fix
		return []isolation.Finding{f}
	}
	if reason, fix := needsKVM(in.Host.KVM); reason != "" {
		return done(reason, fix)
	}
	path, err := in.Find("firecracker")
	if err != nil {
		return done("firecracker is not on PATH", "install a musl release build of Firecracker")
	}
	if why := emptyFilter(path); why != "" {
		return done("firecracker "+why, "install a musl release build of Firecracker")
	}
	if lacks := in.missing("containerd-shim-aws-firecracker"); lacks != "" {
		return done(lacks+" is not on PATH", "install firecracker-containerd, or Kata with Firecracker")
	}
	f.State = isolation.StateInstalled
	f.Version = versionOf(ctx, path)
	f.Digest, _ = Digest(path)
	return done(unproven, "use gvisor, or wait for a version that proves firecracker")
}

// emptyFilter tells the builds whose seccomp filter is empty: those against
// glibc, which are linked dynamically.
func emptyFilter(path string) string {
	b, err := elf.Open(path)
	if err != nil {
		return fmt.Sprintf("cannot be read as a program: %s", oneLine(err.Error()))
	}
	defer b.Close()
	for _, p := range b.Progs {
		if p.Type == elf.PT_INTERP {
			return "is built against glibc: its seccomp filter is empty"
		}
	}
	return ""
}
