package probe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"redoubt.dev/redoubt/isolation"
	"redoubt.dev/redoubt/isolation/surface"
)

type runnerFunc func(context.Context, Candidate) (Observation, error)

func (f runnerFunc) RunCanary(ctx context.Context, c Candidate) (Observation, error) {
	return f(ctx, c)
}

var (
	kvmUsable = isolation.KVM{Verdict: isolation.KVMUsable, Rate: 2e9}
	kvmLies   = isolation.KVM{Verdict: isolation.KVMParavirtual, Reason: "KVM is paravirtual", Fix: "use another host"}
)

// inputs has what this agent carries, and the named programs and paths.
func inputs(t *testing.T, kvm isolation.KVM, there ...string) Inputs {
	t.Helper()
	dir := t.TempDir()
	part := func(name string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\necho "+name+" version 1.2\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return Inputs{
		Host: isolation.Host{Arch: "amd64", KVM: kvm},
		Binaries: Binaries{Containerd: part("containerd"), Shim: part("containerd-shim-runc-v2"),
			Runc: part("runc"), Runsc: part("runsc"), Wrapper: part("redoubt-oci")},
		Find: func(name string) (string, error) {
			if slices.Contains(there, name) {
				return part(name), nil
			}
			return "", exec.ErrNotFound
		},
		Exists: func(path string) bool { return strings.HasPrefix(path, dir) || slices.Contains(there, path) },
	}
}

func find(t *testing.T, found []isolation.Finding, name isolation.Name, variant string) isolation.Finding {
	t.Helper()
	for _, f := range found {
		if f.Runtime == name && f.Variant == variant {
			return f
		}
	}
	t.Fatalf("no finding of %s/%s", name, variant)
	return isolation.Finding{}
}

func asPromised(_ context.Context, c Candidate) (Observation, error) {
	return Observation{Class: c.Class, At: BootTime() - time.Second,
		Terms: isolation.Terms{Sandbox: 0.9, Surface: isolation.Surface{Syscalls: 80, SyscallsTotal: 385, Measured: true}}}, nil
}

func TestOnlyACanaryVerifies(t *testing.T) {
	in := inputs(t, kvmUsable, "crun", "urunc", "solo5-spt", "virtiofsd", "qemu-system-x86_64", "cloud-hypervisor",
		"containerd-shim-kata-v2", "/dev/vhost-vsock", "/dev/mapper/control")
	var ran []string
	found := Findings(t.Context(), in, runnerFunc(func(ctx context.Context, c Candidate) (Observation, error) {
		ran = append(ran, c.String())
		if c.Digest == "" || c.Binary == "" {
			t.Errorf("%s: no binary to compare with", c)
		}
		return asPromised(ctx, c)
	}))
	if want := []string{"runc", "gvisor/systrap", "gvisor/kvm"}; !slices.Equal(ran, want) {
		t.Errorf("canaries for %v, want %v", ran, want)
	}
	for _, f := range found {
		proven := slices.Contains([]isolation.Name{"runc", "gvisor"}, f.Runtime)
		if proven != (f.State == isolation.StateVerified) {
			t.Errorf("%s is %v", f.Runtime, f.State)
		}
		if (f.State == isolation.StateVerified) != (f.Reason == "" && f.Fix == "") {
			t.Errorf("%s is %v with reason %q and fix %q", f.Runtime, f.State, f.Reason, f.Fix)
		}
		if proven && (f.Age < time.Second || f.Age > time.Minute || !f.Terms.Surface.Measured || f.Version != "1.2" || !strings.HasPrefix(f.Digest, "sha256:")) {
			t.Errorf("%s: %+v", f.Runtime, f)
		}
		if !proven && (f.Age != 0 || f.Terms.Surface.Measured || f.Terms.Surface.Source == "") {
			t.Errorf("%s: cited numbers must say so: %+v", f.Runtime, f)
		}
		if f.OverheadMemory <= 0 || f.Class == isolation.ClassUnknown || strings.Contains(f.Reason+f.Fix, "\n") {
			t.Errorf("%s: %+v", f.Runtime, f)
		}
	}
	if !slices.IsSortedFunc(found, func(a, b isolation.Finding) int {
		return strings.Compare(string(a.Runtime)+a.Variant, string(b.Runtime)+b.Variant)
	}) {
		t.Error("not sorted")
	}
	for _, name := range []isolation.Name{"kata-qemu", "kata-clh", "crun", "nabla"} {
		if f := find(t, found, name, ""); f.State != isolation.StateInstalled || f.Reason != unproven {
			t.Errorf("%s: %v %q", name, f.State, f.Reason)
		}
	}
}

func TestWhatIsSwitchedOffIsNeitherTriedNorOffered(t *testing.T) {
	in := inputs(t, kvmUsable, "crun", "urunc", "solo5-spt")
	in.Allowed = []isolation.Name{"runc", "nabla"}
	var ran []string
	found := Findings(t.Context(), in, runnerFunc(func(ctx context.Context, c Candidate) (Observation, error) {
		ran = append(ran, c.String())
		return asPromised(ctx, c)
	}))
	if !slices.Equal(ran, []string{"runc"}) {
		t.Errorf("canaries for %v", ran)
	}
	for _, f := range found {
		switch f.Runtime {
		case "runc":
			if f.State != isolation.StateVerified || f.Class != isolation.ClassContainer {
				t.Errorf("runc: %+v", f)
			}
		case "nabla": // allowed is not proven
			if f.State != isolation.StateInstalled {
				t.Errorf("nabla: %+v", f)
			}
		default:
			if f.State != isolation.StateUnusable || !strings.Contains(f.Reason, "switched off") || !strings.Contains(f.Fix, string(f.Runtime)) || f.Digest != "" || f.Age != 0 {
				t.Errorf("%s: %+v", f.Runtime, f)
			}
			if f.Class != isolation.PromisedClass(f.Runtime) {
				t.Errorf("%s is of class %v", f.Runtime, f.Class)
			}
		}
	}
	if find(t, found, "gvisor", "kvm").State != isolation.StateUnusable {
		t.Error("a variant stayed on")
	}
}

func TestWhatIsMissingIsNamedDeepestFirst(t *testing.T) {
	all := []string{"containerd-shim-kata-qemu-v2", "containerd-shim-kata-fc-v2", "qemu-system-x86_64", "virtiofsd", "/dev/vhost-vsock"}
	tests := []struct {
		name    string
		kvm     isolation.KVM
		there   []string
		runtime isolation.Name
		reason  string
		fix     string
	}{
		{"KVM before programs", kvmLies, nil, "kata-qemu", "KVM is paravirtual", "use another host"},
		{"KVM even with all installed", kvmLies, all, "kata-qemu", "KVM is paravirtual", "use another host"},
		{"firecracker too", kvmLies, nil, "firecracker", "KVM is paravirtual", "use another host"},
		{"nothing known of KVM", isolation.KVM{}, nil, "kata-fc", "nothing is known", "probe"},
		{"shim", kvmUsable, all[2:], "kata-qemu", "containerd-shim-kata-qemu-v2 is not on PATH", "Kata"},
		{"monitor", kvmUsable, all[:1], "kata-qemu", "qemu-system-x86_64 is not on PATH", "install qemu-system-x86_64"},
		{"virtiofsd", kvmUsable, all[:3], "kata-qemu", "virtiofsd is not on PATH", "virtiofsd"},
		{"vsock", kvmUsable, all[:4], "kata-qemu", "there is no /dev/vhost-vsock", "vhost_vsock"},
		{"kata-fc's monitor", kvmUsable, all, "kata-fc", "firecracker is not on PATH", "firecracker"},
		{"firecracker", kvmUsable, nil, "firecracker", "firecracker is not on PATH", "musl"},
		{"firecracker that is no program", kvmUsable, []string{"firecracker"}, "firecracker", "cannot be read", "musl"},
		{"crun", kvmLies, nil, "crun", "crun is not on PATH", "runc"},
		{"urunc", kvmLies, nil, "nabla", "urunc is not on PATH", "unikernel"},
		{"the tender", kvmLies, []string{"urunc"}, "nabla", "solo5-spt is not on PATH", "Solo5"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := find(t, Findings(t.Context(), inputs(t, tt.kvm, tt.there...), nil), tt.runtime, "")
			if f.State != isolation.StateUnusable || !strings.Contains(f.Reason, tt.reason) || !strings.Contains(f.Fix, tt.fix) {
				t.Errorf("%v, reason %q, fix %q", f.State, f.Reason, f.Fix)
			}
		})
	}
}

func TestFirecrackerAgainstGlibcIsRefused(t *testing.T) {
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("needs a dynamically linked program")
	}
	if why := emptyFilter(sh); !strings.Contains(why, "glibc") {
		t.Errorf("%s: %q", sh, why)
	}
}

func TestGVisorOnKVMIsOnlyTriedWhereKVMWorks(t *testing.T) {
	for _, kvm := range []isolation.KVM{{}, kvmLies, {Verdict: isolation.KVMAbsent}, {Verdict: isolation.KVMUnusable}} {
		Findings(t.Context(), inputs(t, kvm), runnerFunc(func(ctx context.Context, c Candidate) (Observation, error) {
			if c.Variant == "kvm" {
				t.Errorf("tried with KVM %v", kvm.Verdict)
			}
			return asPromised(ctx, c)
		}))
	}
}

func TestCanariesThatFail(t *testing.T) {
	tests := []struct {
		name   string
		run    runnerFunc
		state  isolation.State
		reason string
	}{
		{"refuted", func(context.Context, Candidate) (Observation, error) {
			return Observation{Class: isolation.ClassUnknown, Reason: "saw the host's kernel", Fix: "replace it"}, nil
		}, isolation.StateUnusable, "saw the host's kernel"},
		{"weaker class", func(_ context.Context, c Candidate) (Observation, error) {
			return Observation{Class: c.Class - 1, Reason: "too many calls", Fix: "replace it"}, nil
		}, isolation.StateUnusable, "too many calls"},
		{"does not start", func(context.Context, Candidate) (Observation, error) {
			return Observation{}, errors.New("no such\nfile")
		}, isolation.StateUnusable, "does not run under gvisor/systrap: no such file"},
		{"no answer", func(context.Context, Candidate) (Observation, error) {
			return Observation{}, fmt.Errorf("%w in 15 s", ErrNoAnswer)
		}, isolation.StateUnknown, "no answer in 15 s"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := find(t, Findings(t.Context(), inputs(t, kvmLies), tt.run), "gvisor", "systrap")
			if f.State != tt.state || !strings.Contains(f.Reason, tt.reason) || f.Fix == "" || f.Age != 0 {
				t.Errorf("%v, reason %q, fix %q", f.State, f.Reason, f.Fix)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	f := find(t, Findings(ctx, inputs(t, kvmLies), runnerFunc(func(ctx context.Context, _ Candidate) (Observation, error) {
		return Observation{}, ctx.Err()
	})), "gvisor", "systrap")
	if f.State != isolation.StateUnknown {
		t.Errorf("interrupted: %v", f.State)
	}
}

func TestMissingParts(t *testing.T) {
	in := inputs(t, kvmLies)
	in.Binaries.Runsc = ""
	found := Findings(t.Context(), in, runnerFunc(asPromised))
	if f := find(t, found, "gvisor", "systrap"); f.State != isolation.StateUnusable || !strings.Contains(f.Reason, "runsc is neither carried") {
		t.Errorf("gvisor: %v %q", f.State, f.Reason)
	}
	if f := find(t, found, "runc", ""); f.State != isolation.StateVerified {
		t.Errorf("runc: %v %q", f.State, f.Reason)
	}
	in.Binaries.Shim += "-gone"
	in.Exists = func(path string) bool { return !strings.HasSuffix(path, "-gone") }
	if f := find(t, Findings(t.Context(), in, runnerFunc(asPromised)), "runc", ""); !strings.Contains(f.Reason, "containerd-shim-runc-v2 is gone from") {
		t.Errorf("runc: %v %q", f.State, f.Reason)
	}
}

func TestHost(t *testing.T) {
	h, err := Host(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if h.Arch == "" || h.Kernel == "" || len(h.BootID) != 36 || h.CPUMillis < 500 || h.MemoryBytes < 64<<20 {
		t.Errorf("got %+v", h)
	}
	_, err = os.Stat("/sys/fs/cgroup/cgroup.controllers")
	if v2 := err == nil; v2 != h.CgroupV2 {
		t.Errorf("cgroup v2: %v", h.CgroupV2)
	}
	for _, text := range []string{"", "MemTotal: x kB\n", "MemTotal: -1 kB\n", "MemTotal: 99999999999999999 kB\n"} {
		if n, err := memTotal([]byte(text)); err == nil {
			t.Errorf("%q: %d", text, n)
		}
	}
}

func TestClassesByMeasuredFacts(t *testing.T) {
	ns := func(from uint64) map[string]uint64 {
		return map[string]uint64{"mnt": from, "pid": from, "net": from, "ipc": from, "uts": from, "user": from}
	}
	vmm := func(calls, kvms int, devices ...surface.Device) Seen {
		return Seen{OtherKernel: true, HostNamespaces: ns(1), Process: surface.Process{
			Namespaces: ns(2),
			Seccomp:    surface.Seccomp{Mode: surface.ModeFilter, Reachable: calls, Total: 385},
			Devices:    surface.Devices{KVMs: kvms, Open: devices},
		}}
	}
	kvm := surface.Device{Path: "/dev/kvm", Major: 10, Minor: 232}
	tun := surface.Device{Path: "/dev/net/tun", Major: 10, Minor: 200}
	disk := surface.Device{Path: "/dev/sda", Block: true, Major: 8}
	off := vmm(385, 1, kvm)
	off.Process.Seccomp.Mode = surface.ModeOff
	hostKernel := vmm(50, 1, kvm)
	hostKernel.OtherKernel = false
	const vm, micro, sandbox, container = isolation.ClassVM, isolation.ClassMicroVM, isolation.ClassSandbox, isolation.ClassContainer
	tests := []struct {
		name     string
		seen     Seen
		promised isolation.Class
		want     isolation.Class
		reason   string
	}{
		{"microvm", vmm(64, 1, kvm, tun), micro, micro, ""},
		{"microvm with a disk", vmm(64, 1, kvm, disk), micro, vm, "/dev/sda"},
		{"microvm too open", vmm(65, 1, kvm), micro, vm, "65 system calls, more than 64"},
		{"qemu without a filter", off, vm, vm, ""},
		{"no guest in it", vmm(60, 0), vm, sandbox, "no virtual machine"},
		{"the host's kernel", hostKernel, vm, isolation.ClassUnknown, "the host's kernel"},
		{"never above the promise", vmm(60, 1, kvm), sandbox, sandbox, ""},
		{"sandbox", vmm(128, 0), sandbox, sandbox, ""},
		{"sandbox too open", vmm(129, 0), sandbox, container, "129"},
		{"container", vmm(294, 0), container, container, ""},
		{"container too open", vmm(295, 0), container, isolation.ClassUnknown, "295"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, reason := tt.seen.Class(tt.promised)
			if got != tt.want || !strings.Contains(reason, tt.reason) || (reason == "") != (tt.reason == "") {
				t.Errorf("got %v, %q", got, reason)
			}
		})
	}
	if a, b := vmm(64, 1, kvm).Terms(), off.Terms(); a.VM != 1 || b.VM >= a.VM || !a.Surface.Measured {
		t.Errorf("levels: %+v, %+v", a, b)
	}
}
