package probe

import (
	"context"

	"redoubt.dev/redoubt/isolation"
)

func probeCrun(ctx context.Context, in Inputs, _ Runner) []isolation.Finding {
	f := isolation.Finding{
		Runtime: "crun", Class: isolation.ClassContainer, State: isolation.StateUnusable,
		Terms: containerTerms(), OverheadMemory: runcOverhead,
	}
	path := in.Binaries.Crun
	if path == "" {
		path, _ = in.Find("crun")
	}
	if path == "" {
		f.Reason, f.Fix = "crun is not on PATH", "none needed: runc gives the same class; or install crun"
		return []isolation.Finding{f}
	}
	f.State = isolation.StateInstalled
	f.Version = versionOf(ctx, path)
	f.Digest, _ = Digest(path)
	f.Reason, f.Fix = unproven, "none needed: runc gives the same class"
	return []isolation.Finding{f}
}

// unproven is the reason of what is there but has no canary in this version.
const unproven = "present, not proven: this version has no canary for it"
