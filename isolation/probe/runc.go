package probe

import (
	"context"

	"redoubt.dev/redoubt/isolation"
)

// What a runc container costs beside its workload: its shim, measured as
// proportional set size with ten containers (5.3 MB).
const runcOverhead = 6 << 20

const containerSource = "cited: the default seccomp profile of containerd"

// containerTerms stand for a shared kernel until a canary has measured.
func containerTerms() isolation.Terms {
	return isolation.Terms{
		Sandbox: sandboxNoNewPrivs,
		Surface: isolation.Surface{Syscalls: ContainerCalls, SyscallsTotal: 362, Source: containerSource},
	}
}

func probeRunc(ctx context.Context, in Inputs, runner Runner) []isolation.Finding {
	f := isolation.Finding{
		Runtime: "runc", Class: isolation.ClassContainer, State: isolation.StateUnusable,
		Terms: containerTerms(), OverheadMemory: runcOverhead,
	}
	if f.Reason, f.Fix = in.carried("runc", in.Binaries.Runc); f.Reason != "" {
		return []isolation.Finding{f}
	}
	var err error
	if f.Digest, err = Digest(in.Binaries.Runc); err != nil {
		f.Reason, f.Fix = oneLine(err.Error()), "make runc readable for the agent"
		return []isolation.Finding{f}
	}
	f.Version = versionOf(ctx, in.Binaries.Runc)
	c := Candidate{Runtime: f.Runtime, Class: f.Class, Binary: in.Binaries.Runc, Digest: f.Digest}
	return []isolation.Finding{prove(ctx, runner, c, f)}
}
