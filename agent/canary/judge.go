package canary

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"redoubt.dev/redoubt/isolation"
	"redoubt.dev/redoubt/isolation/probe"
)

// evidence is both sides of one canary.
type evidence struct {
	candidate probe.Candidate
	nonce     string
	sight     Sight
	boundary  Boundary

	host           kernel
	hostNamespaces map[string]uint64
	// onHost is the pid of a process of this host that carries the nonce, 0 if
	// there is none.
	onHost int
}

// mustRefuse is what a container's kernel must have refused the canary. It may
// refuse in its own way; what counts is that the call never came to its
// handler.
var mustRefuse = []string{
	"mknod", "packet socket", "raw socket", "ptrace", "process_vm_readv", "keyctl", "bpf",
	"perf_event_open", "userfaultfd", "io_uring", "unshare", "setns", "mount", "open_by_handle_at",
	"init_module", "reboot", "kernel log", "write /proc/sys", "write sysrq",
	"read /dev/kmsg", "read /dev/mem", "read kcore", "use /dev/kvm",
}

// refusals are the errors with which a sandbox refuses. ENOENT and ENXIO are
// those of a file that is masked or not there.
var refusals = []unix.Errno{unix.EPERM, unix.EACCES, unix.ENOSYS, unix.EROFS, unix.ENOENT, unix.ENXIO, unix.ENODEV, unix.EAFNOSUPPORT}

// judge compares the two sides. The class is what both of them support.
func judge(e evidence) probe.Observation {
	seen := probe.Seen{Process: e.boundary.Process, HostNamespaces: e.hostNamespaces}
	refuse := func(class isolation.Class, fix, format string, args ...any) probe.Observation {
		return probe.Observation{Class: class, Terms: seen.Terms(), Reason: fmt.Sprintf(format, args...), Fix: fix}
	}
	replace := fmt.Sprintf("replace the %s on this node by the one that redoubt carries", e.candidate.Runtime)

	// Whose answer is it?
	if e.nonce == "" || e.sight.Nonce != e.nonce {
		return refuse(isolation.ClassUnknown, replace, "the answer does not come from the canary that was started")
	}
	shared := e.host.same(e.sight)

	if e.candidate.Class == isolation.ClassContainer {
		if shared == "" {
			return refuse(isolation.ClassUnknown, replace, "claims to be a container on the host's kernel, but the canary saw another one")
		}
		if why := e.insideContainer(); why != "" {
			return refuse(isolation.ClassUnknown, replace, "%s", why)
		}
	} else {
		if shared != "" {
			return refuse(isolation.ClassUnknown, replace, "claims to be %s, but the canary saw the host's kernel", title(e.candidate.Runtime))
		}
		if e.onHost != 0 {
			return refuse(isolation.ClassUnknown, replace, "claims to be %s, but the canary is a process of the host (pid %d)",
				title(e.candidate.Runtime), e.onHost)
		}
		if e.candidate.Digest == "" || e.boundary.Digest != e.candidate.Digest {
			return refuse(isolation.ClassUnknown, replace, "claims to be %s, but its boundary process runs %s",
				title(e.candidate.Runtime), e.boundary.Process.Exe)
		}
		seen.OtherKernel = true
	}
	out := probe.Observation{Terms: seen.Terms()}
	if out.Class, out.Reason = seen.Class(e.candidate.Class); out.Reason != "" {
		out.Fix = replace
	}
	return out
}

// insideContainer says what the canary saw that a container must not show.
func (e evidence) insideContainer() string {
	// The boundary process is the canary itself: what it says of its
	// namespaces must be what the host says of them.
	for _, ns := range []string{"mnt", "pid", "net", "ipc", "uts"} {
		if in, out := e.sight.Namespaces[ns], e.boundary.Process.Namespaces[ns]; in == 0 || in != out {
			return fmt.Sprintf("the canary is not the process that the host sees: its %s namespace is %d, the host sees %d", ns, in, out)
		}
	}
	if d := e.sight.notable(); len(d) > 0 {
		return fmt.Sprintf("the canary found the host's device %s", d[0])
	}
	if !e.sight.NoNewPrivs || e.sight.Seccomp != 2 {
		return "the canary ran without a seccomp filter or could gain privileges"
	}
	for _, what := range mustRefuse {
		i := slices.IndexFunc(e.sight.Tries, func(t Try) bool { return t.What == what })
		if i < 0 {
			return fmt.Sprintf("the canary did not say whether it is refused: %s", what)
		}
		if errno := unix.Errno(e.sight.Tries[i].Errno); !slices.Contains(refusals, errno) {
			return fmt.Sprintf("the canary was let through: %s", what)
		}
	}
	return ""
}

// title is how people write a runtime's name.
func title(n isolation.Name) string {
	if n == "gvisor" {
		return "gVisor"
	}
	return string(n)
}
