package probe

import (
	"context"
	"fmt"

	"redoubt.dev/redoubt/isolation"
)

// kata is one monitor under which Kata runs its guests.
type kata struct {
	name     isolation.Name
	class    isolation.Class
	shim     string // what containerd starts
	monitor  string
	programs []string
	device   string // beside /dev/kvm
	help     string // how that device comes to be there
	overhead int64
	terms    isolation.Terms
}

// The overheads are those that Kata's own runtime classes declare. Nothing of
// their surface was measured; where no filter is on by default it counts as
// everything.
func katas(arch string) []kata {
	qemu := map[string]string{"amd64": "qemu-system-x86_64", "arm64": "qemu-system-aarch64"}[arch]
	if qemu == "" {
		qemu = "qemu-system-" + arch
	}
	unfiltered := func(devices int) isolation.Surface {
		return isolation.Surface{Syscalls: 362, SyscallsTotal: 362, Devices: devices,
			Source: "assumed: no seccomp filter unless measured"}
	}
	return []kata{
		{
			name: "kata-qemu", class: isolation.ClassVM, shim: "containerd-shim-kata-qemu-v2", monitor: qemu,
			programs: []string{"virtiofsd"},
			device:   "/dev/vhost-vsock", help: "load the module vhost_vsock",
			overhead: 160 << 20, terms: isolation.Terms{VM: vmOwnKernel, Surface: unfiltered(3)},
		},
		{
			name: "kata-clh", class: isolation.ClassVM, shim: "containerd-shim-kata-clh-v2", monitor: "cloud-hypervisor",
			programs: []string{"virtiofsd"},
			overhead: 130 << 20, terms: isolation.Terms{VM: vmOwnKernel + vmFewDevices, Surface: unfiltered(2)},
		},
		{
			name: "kata-fc", class: isolation.ClassMicroVM, shim: "containerd-shim-kata-fc-v2", monitor: "firecracker",
			device: "/dev/mapper/control", help: "load the module dm_mod and configure containerd's devmapper snapshotter: Firecracker takes block devices only",
			overhead: 130 << 20, terms: firecrackerTerms(),
		},
	}
}

func probeKata(_ context.Context, in Inputs, _ Runner) []isolation.Finding {
	var out []isolation.Finding
	for _, k := range katas(in.Host.Arch) {
		f := isolation.Finding{
			Runtime: k.name, Class: k.class, State: isolation.StateUnusable,
			Terms: k.terms, OverheadMemory: k.overhead,
		}
		if f.Reason, f.Fix = needsKVM(in.Host.KVM); f.Reason != "" {
			out = append(out, f)
			continue
		}
		// Kata 4 has one shim for all monitors as well as one for each.
		shim := in.missing(k.shim)
		if shim != "" && in.missing("containerd-shim-kata-v2") == "" {
			shim = ""
		}
		lacks := in.missing(append([]string{k.monitor}, k.programs...)...)
		switch {
		case shim != "":
			f.Reason, f.Fix = shim+" is not on PATH", "install Kata Containers"
		case lacks != "":
			f.Reason, f.Fix = lacks+" is not on PATH", fmt.Sprintf("install %s, which %s runs on", lacks, k.name)
		case k.device != "" && !in.Exists(k.device):
			f.Reason, f.Fix = "there is no "+k.device, k.help
		default:
			f.State = isolation.StateInstalled
			f.Reason, f.Fix = unproven, "use gvisor, or wait for a version that proves "+string(k.name)
		}
		out = append(out, f)
	}
	return out
}

// needsKVM gives reason and fix where virtual machines cannot run: what is
// missing beside that does not matter then.
func needsKVM(k isolation.KVM) (reason, fix string) {
	if k.Verdict == isolation.KVMUsable {
		return "", ""
	}
	if k.Reason == "" {
		return "nothing is known about KVM here", "probe the node again"
	}
	return k.Reason, k.Fix
}
