package probe

import (
	"context"

	"redoubt.dev/redoubt/isolation"
)

// What a gVisor sandbox costs beside its workload: shim, sentry and gofer,
// measured as proportional set size with ten sandboxes (20.7 MB).
const gvisorOverhead = 22 << 20

// The platforms of gVisor, as its variants are called.
const (
	gvisorSystrap = "systrap"
	gvisorKVM     = "kvm"
)

func probeGVisor(ctx context.Context, in Inputs, runner Runner) []isolation.Finding {
	base := isolation.Finding{
		Runtime: "gvisor", Class: isolation.ClassSandbox, State: isolation.StateUnusable,
		OverheadMemory: gvisorOverhead,
	}
	var digest, version string
	if base.Reason, base.Fix = in.carried("runsc", in.Binaries.Runsc); base.Reason == "" {
		var err error
		if digest, err = Digest(in.Binaries.Runsc); err != nil {
			base.Reason, base.Fix = oneLine(err.Error()), "make runsc readable for the agent"
		} else {
			version = versionOf(ctx, in.Binaries.Runsc)
		}
	}
	variants := []string{gvisorSystrap}
	// On a KVM that does not really work runsc hangs instead of failing, so it
	// is not even tried there.
	if in.Host.KVM.Verdict == isolation.KVMUsable {
		variants = append(variants, gvisorKVM)
	}
	var out []isolation.Finding
	for _, v := range variants {
		f := base
		f.Variant, f.Terms = v, gvisorTerms(v)
		f.Digest, f.Version = digest, version
		if f.Reason == "" {
			c := Candidate{Runtime: f.Runtime, Variant: v, Class: f.Class, Binary: in.Binaries.Runsc, Digest: digest}
			f = prove(ctx, runner, c, f)
		}
		out = append(out, f)
	}
	return out
}

// gvisorTerms stand until a canary has measured.
func gvisorTerms(variant string) isolation.Terms {
	s := isolation.Surface{Syscalls: 96, SyscallsTotal: 362, Source: "cited: the sentry's filter on systrap with directfs"}
	if variant == gvisorKVM {
		s = isolation.Surface{Syscalls: 94, SyscallsTotal: 362, Devices: 1, Source: "cited: the sentry's filters on kvm"}
	}
	return isolation.Terms{Sandbox: sandboxSecondKernel + sandboxNoNewPrivs, Surface: s}
}
