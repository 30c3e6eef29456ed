package probe

import (
	"context"

	"redoubt.dev/redoubt/isolation"
)

func probeNabla(_ context.Context, in Inputs, _ Runner) []isolation.Finding {
	f := isolation.Finding{
		Runtime: "nabla", Class: isolation.ClassSandbox, State: isolation.StateUnusable,
		Terms: isolation.Terms{
			Sandbox: sandboxSecondKernel,
			Surface: isolation.Surface{Syscalls: 9, SyscallsTotal: 362, Devices: 1,
				Source: "cited: the filter of Solo5's spt tender with net and block"},
		},
		OverheadMemory: 8 << 20, // a shim and a tender
	}
	switch lacks := in.missing("urunc", "solo5-spt"); {
	case lacks != "":
		f.Reason = lacks + " is not on PATH"
		f.Fix = "install urunc and Solo5; they run unikernel images only"
	default:
		f.State = isolation.StateInstalled
		f.Reason, f.Fix = unproven, "use gvisor, which runs ordinary images"
	}
	return []isolation.Finding{f}
}
