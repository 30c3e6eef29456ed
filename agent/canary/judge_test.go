package canary

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"redoubt.dev/redoubt/isolation"
	"redoubt.dev/redoubt/isolation/probe"
	"redoubt.dev/redoubt/isolation/surface"
)

func ids(from uint64) map[string]uint64 {
	return map[string]uint64{"mnt": from, "pid": from + 1, "net": from + 2, "ipc": from + 3, "uts": from + 4, "user": 900}
}

// good is evidence that holds for the class: a container for runc, a sandbox
// for gvisor.
func good(class isolation.Class) evidence {
	host := kernel{vdso: "host-vdso", bootID: "host-boot", procVersion: "Linux version 6.18"}
	e := evidence{
		nonce: "n", host: host, hostNamespaces: ids(100),
		boundary: Boundary{Digest: "sha256:aa", Process: surface.Process{
			Exe: "/x/runsc", Namespaces: ids(200), NoNewPrivs: true,
			Seccomp: surface.Seccomp{Mode: surface.ModeFilter, Reachable: 80, Total: 385, Filters: 1},
		}},
		sight: Sight{Nonce: "n", VDSO: "other-vdso", BootID: "other-boot", ProcVersion: "Linux version 4.19",
			NoNewPrivs: true, Seccomp: 2, Namespaces: ids(7)},
	}
	for _, what := range mustRefuse {
		e.sight.Tries = append(e.sight.Tries, Try{what, 1})
	}
	e.candidate = gvisor
	if class == isolation.ClassContainer {
		e.candidate = probe.Candidate{Runtime: "runc", Class: class, Digest: "sha256:bb"}
		e.sight.VDSO, e.sight.BootID, e.sight.ProcVersion = host.vdso, host.bootID, host.procVersion
		e.sight.Namespaces = maps.Clone(e.boundary.Process.Namespaces)
		e.boundary.Process.Seccomp.Reachable = 265
	}
	return e
}

func TestJudge(t *testing.T) {
	const container, sandbox = isolation.ClassContainer, isolation.ClassSandbox
	tests := []struct {
		name    string
		class   isolation.Class
		spoil   func(*evidence)
		says    string
		atClass isolation.Class
	}{
		{"gvisor as promised", sandbox, func(*evidence) {}, "", sandbox},
		{"runc as promised", container, func(*evidence) {}, "", container},

		{"another nonce", sandbox, func(e *evidence) { e.sight.Nonce = "m" }, "does not come from the canary", 0},
		{"no nonce at all", sandbox, func(e *evidence) { e.nonce, e.sight.Nonce = "", "" }, "does not come from the canary", 0},
		{"the host's vDSO", sandbox, func(e *evidence) { e.sight.VDSO = e.host.vdso }, "claims to be gVisor, but the canary saw the host's kernel", 0},
		{"the host's boot id", sandbox, func(e *evidence) { e.sight.BootID = e.host.bootID }, "claims to be gVisor, but the canary saw the host's kernel", 0},
		{"the host's build", sandbox, func(e *evidence) { e.sight.ProcVersion = e.host.procVersion }, "claims to be gVisor, but the canary saw the host's kernel", 0},
		{"no vDSO to tell", sandbox, func(e *evidence) { e.sight.VDSO = "" }, "claims to be gVisor, but the canary saw the host's kernel", 0},
		{"canary on the host", sandbox, func(e *evidence) { e.onHost = 42 }, "process of the host (pid 42)", 0},
		{"another boundary program", sandbox, func(e *evidence) { e.boundary.Digest = "sha256:cc" }, "its boundary process runs /x/runsc", 0},
		{"no digest to compare with", sandbox, func(e *evidence) { e.candidate.Digest, e.boundary.Digest = "", "" }, "boundary process runs", 0},
		{"sentry without a filter", sandbox, func(e *evidence) { e.boundary.Process.Seccomp.Mode = surface.ModeOff }, "no seccomp filter", 0},
		// 200 calls, still fewer than a container's: the class falls, no further.
		{"sentry with too wide a filter", sandbox, func(e *evidence) { e.boundary.Process.Seccomp.Reachable = 200 }, "reaches 200 system calls, more than 128", container},
		{"sentry with another ABI open", sandbox, func(e *evidence) { e.boundary.Process.Seccomp.Foreign = 9 }, "another ABI", 0},

		{"runc on another kernel", container, func(e *evidence) { e.sight.VDSO, e.sight.BootID, e.sight.ProcVersion = "a", "b", "c" }, "another one", 0},
		{"another process answered", container, func(e *evidence) { e.sight.Namespaces["net"]++ }, "not the process that the host sees", 0},
		{"a host device", container, func(e *evidence) { e.sight.Devices = []Device{{"/dev/sda", true, 8, 0}} }, "host's device /dev/sda", 0},
		{"may gain privileges", container, func(e *evidence) { e.sight.NoNewPrivs = false }, "gain privileges", 0},
		{"let through", container, func(e *evidence) { e.sight.Tries[6].Errno = 0 }, "let through: " + mustRefuse[6], 0},
		{"reached the handler", container, func(e *evidence) { e.sight.Tries[3].Errno = 3 }, "let through: ptrace", 0},
		{"did not try", container, func(e *evidence) { e.sight.Tries = e.sight.Tries[1:] }, "did not say", 0},
		{"as open as containerd's default", container, func(e *evidence) { e.boundary.Process.Seccomp.Reachable = 295 }, "295 system calls", 0},
		{"the host's network", container, func(e *evidence) {
			e.boundary.Process.Namespaces["net"], e.sight.Namespaces["net"] = e.hostNamespaces["net"], e.hostNamespaces["net"]
		}, "shares the host's net namespace", 0},
		{"a device held open", container, func(e *evidence) {
			e.boundary.Process.Devices.Open = []surface.Device{{Path: "/dev/kvm", Major: 10, Minor: 232}}
		}, "/dev/kvm", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := good(tt.class)
			tt.spoil(&e)
			got := judge(e)
			if got.Class != tt.atClass || !strings.Contains(got.Reason, tt.says) || (got.Reason == "") != (tt.says == "") {
				t.Errorf("got %v, %q", got.Class, got.Reason)
			}
			if (got.Fix == "") != (got.Reason == "") {
				t.Errorf("fix %q for reason %q", got.Fix, got.Reason)
			}
		})
	}
}

func TestStandardDevicesAreNoFinding(t *testing.T) {
	e := good(isolation.ClassContainer)
	e.sight.Devices = []Device{{"/dev/null", false, 1, 3}, {"/dev/tty", false, 5, 0}, {"/dev/pts/0", false, 136, 0}}
	if got := judge(e); got.Class != isolation.ClassContainer {
		t.Errorf("got %v, %q", got.Class, got.Reason)
	}
}

// Every kind of refusal counts, and nothing else does.
func TestRefusals(t *testing.T) {
	for errno := range 134 {
		e := good(isolation.ClassContainer)
		e.sight.Tries[0].Errno = errno
		want := slices.ContainsFunc([]int{1, 2, 6, 13, 19, 30, 38, 97}, func(n int) bool { return n == errno })
		if got := judge(e).Class == isolation.ClassContainer; got != want {
			t.Errorf("errno %d: accepted %v, want %v", errno, got, want)
		}
	}
}
