package isolation

import "time"

// Name identifies a runtime, for example "gvisor" or "kata-qemu".
type Name string

// NodeID and SiteID name a node and its failure domain.
type (
	NodeID string
	SiteID string
)

// State is what a probe concluded about a runtime on a node.
type State uint8

const (
	// StateUnknown: nothing was tried, or the try gave no answer.
	StateUnknown State = iota
	// StateUnusable: it cannot work here; Finding.Reason and Fix say why.
	StateUnusable
	// StateInstalled: its parts are present, nothing was proven.
	StateInstalled
	// StateVerified: a canary ran under it here and saw what its class promises.
	StateVerified
)

var stateNames = [...]string{"unknown", "unusable", "installed", "verified"}

func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return "unknown"
}

// Surface is how much of the host a boundary process can reach. Syscalls is
// the number of host system calls that its seccomp filter lets through, of
// SyscallsTotal that the host's architecture has; Devices the number of device
// nodes that it holds open or can open. Measured is false where the numbers
// are cited for the runtime (Source says from where) and not read off a live
// process on this node.
type Surface struct {
	Syscalls      int
	SyscallsTotal int
	Devices       int
	Measured      bool
	Source        string
}

// Level is a share from 0 (nothing) to 1 (all that the term can give).
type Level float64

// Terms are the inputs of the isolation score, see Score.
type Terms struct {
	// VM: 0 without a kernel of its own on hardware virtualisation; higher the
	// smaller and the more confined the monitor is.
	VM Level
	// Sandbox: a second kernel in user space, a user namespace, dropped
	// capabilities, an LSM.
	Sandbox Level
	// Surface is the kernel attack surface.
	Surface Surface
}

// Finding is what a probe concluded about one runtime on one node.
type Finding struct {
	Runtime Name
	Class   Class // the class that the runtime is of when it works
	State   State
	// Variant tells configurations of a runtime apart, for example the gVisor
	// platform "systrap" or "kvm". Empty where there is only one.
	Variant string
	Version string // as the runtime states it; informational
	Digest  string // "sha256:…" of the runtime's main binary, empty if absent
	Terms   Terms
	// Reason says why the state is not verified; Fix the nearest remedy. Both
	// are one line, and empty when State is verified.
	Reason, Fix string
	// Overhead is what one sandbox of this runtime costs beside its workload.
	OverheadMemory int64 // bytes
	// Age is how long before the report was made the canary ran, by a clock
	// that a wrong wall clock cannot disturb. Zero unless verified.
	Age time.Duration
}

// KVMVerdict is the outcome of running a real tiny guest.
type KVMVerdict uint8

const (
	KVMUnknown KVMVerdict = iota
	// KVMAbsent: there is no /dev/kvm.
	KVMAbsent
	// KVMUnusable: it opens, but a guest does not run; the reason says how.
	KVMUnusable
	// KVMParavirtual: only guest kernels that were made for it run.
	KVMParavirtual
	// KVMUsable: an ordinary guest kernel can run.
	KVMUsable
)

var kvmNames = [...]string{"unknown", "absent", "unusable", "paravirtual", "usable"}

func (v KVMVerdict) String() string {
	if int(v) < len(kvmNames) {
		return kvmNames[v]
	}
	return "unknown"
}

// KVM is the verdict with what was measured.
type KVM struct {
	Verdict KVMVerdict
	Reason  string  // one line: what happened
	Fix     string  // nearest remedy, empty if usable
	Rate    float64 // ring-0 loop iterations per second of thread CPU time; 0 if unmeasured
}

// Host holds the facts of a node that placement and people need.
type Host struct {
	Arch, Kernel string
	BootID       string
	CgroupV2     bool
	CPUMillis    int64 // allocatable, thousandths of a core
	MemoryBytes  int64 // allocatable
	KVM          KVM
}

// Report is all findings of a node. Generation moves when facts or capacity
// change, not when a canary is renewed.
type Report struct {
	Node       NodeID
	Site       SiteID
	Generation uint64
	Host       Host
	Labels     map[string]string
	Findings   []Finding // sorted by Runtime
}
