package probe

import (
	"fmt"
	"math/bits"

	"redoubt.dev/redoubt/isolation"
	"redoubt.dev/redoubt/isolation/surface"
)

// What the classes demand of the boundary process.
const (
	// ContainerCalls: containerd's default profile, which is too wide, lets
	// 295 system calls through; a container must reach fewer.
	ContainerCalls = 295
	SandboxCalls   = 128
	MicroVMCalls   = 64
)

// Seen is what was measured of a boundary: the process that stands between a
// workload and the host, and which kernel the workload met.
type Seen struct {
	Process surface.Process
	// OtherKernel: the workload met a kernel that is not the host's, by its
	// behaviour.
	OtherKernel bool
	// HostNamespaces are this host's own, to tell which of the process's are
	// shared with it.
	HostNamespaces map[string]uint64
}

// Class is the strongest class up to promised whose demands are all met. For
// anything below promised, reason says what is missing.
func (s Seen) Class(promised isolation.Class) (got isolation.Class, reason string) {
	for c := promised; c > isolation.ClassUnknown; c-- {
		why := s.misses(c)
		if why == "" {
			return c, reason
		}
		if reason == "" {
			reason = why
		}
	}
	return isolation.ClassUnknown, reason
}

// misses says which demand of class c is not met, or "".
func (s Seen) misses(c isolation.Class) string {
	p := s.Process
	switch c {
	case isolation.ClassContainer:
		for _, ns := range []string{"mnt", "pid", "net", "ipc", "uts"} {
			if p.Namespaces[ns] == 0 || p.Namespaces[ns] == s.HostNamespaces[ns] {
				return fmt.Sprintf("it shares the host's %s namespace", ns)
			}
		}
		if why := s.filtered(ContainerCalls - 1); why != "" {
			return why
		}
		if n := p.Devices.Notable(); len(n) > 0 {
			return fmt.Sprintf("it holds the device %s", n[0])
		}
	case isolation.ClassSandbox:
		if !s.OtherKernel {
			return "the canary saw the host's kernel"
		}
		return s.filtered(SandboxCalls)
	case isolation.ClassVM, isolation.ClassMicroVM:
		if !s.OtherKernel {
			return "the canary saw the host's kernel"
		}
		if p.Devices.KVMs == 0 {
			return "its boundary process holds no virtual machine"
		}
		if c == isolation.ClassVM {
			return ""
		}
		if why := s.filtered(MicroVMCalls); why != "" {
			return why
		}
		if d := s.beyondVM(); len(d) > 0 {
			return fmt.Sprintf("it holds the device %s", d[0])
		}
	}
	return ""
}

// filtered says why the process is not filtered to at most most calls.
func (s Seen) filtered(most int) string {
	c := s.Process.Seccomp
	switch {
	case c.Mode == surface.ModeOff:
		return "a thread of its boundary process has no seccomp filter"
	case c.Reachable > most:
		return fmt.Sprintf("its boundary process reaches %d system calls, more than %d", c.Reachable, most)
	case c.Foreign > 0:
		return fmt.Sprintf("its boundary process reaches %d system calls of another ABI", c.Foreign)
	}
	return ""
}

// beyondVM lists the devices that a minimal monitor has no use for: all but
// kvm, tun and vhost.
func (s Seen) beyondVM() []surface.Device {
	var out []surface.Device
	for _, d := range s.Process.Devices.Notable() {
		const misc, kvm, tun, vhostVsock, vhostNet = 10, 232, 200, 241, 238
		if !d.Block && d.Major == misc && (d.Minor == kvm || d.Minor == tun || d.Minor == vhostVsock || d.Minor == vhostNet) {
			continue
		}
		out = append(out, d)
	}
	return out
}

// Shares of the levels: how much each property contributes. They add up to 1.
const (
	vmOwnKernel, vmFewDevices, vmConfined = 0.5, 0.2, 0.3

	sandboxSecondKernel, sandboxUserNamespace = 0.5, 0.15
	sandboxFewCapabilities, sandboxNoNewPrivs = 0.15, 0.1
	sandboxSecurityModule                     = 0.1
)

// fewCapabilities is the number of capabilities below which a process counts
// as stripped of them; none at all gives the whole share, up to this half.
const fewCapabilities = 10

// Terms are the inputs of the isolation score, as measured.
func (s Seen) Terms() isolation.Terms {
	p := s.Process
	out := isolation.Terms{Surface: p.Surface()}
	vm := s.OtherKernel && p.Devices.KVMs > 0
	if vm {
		out.VM += vmOwnKernel
		if len(s.beyondVM()) == 0 {
			out.VM += vmFewDevices
		}
		if s.filtered(MicroVMCalls) == "" {
			out.VM += vmConfined
		}
	}
	if s.OtherKernel {
		out.Sandbox += sandboxSecondKernel
	}
	if ns := p.Namespaces["user"]; ns != 0 && ns != s.HostNamespaces["user"] {
		out.Sandbox += sandboxUserNamespace
	}
	switch n := bits.OnesCount64(p.Caps.Effective | p.Caps.Permitted); {
	case n == 0:
		out.Sandbox += sandboxFewCapabilities
	case n <= fewCapabilities:
		out.Sandbox += sandboxFewCapabilities / 2
	}
	if p.NoNewPrivs {
		out.Sandbox += sandboxNoNewPrivs
	}
	if p.Label != "" {
		out.Sandbox += sandboxSecurityModule
	}
	return out
}
