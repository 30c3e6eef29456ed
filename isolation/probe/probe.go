package probe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"redoubt.dev/redoubt/isolation"
)

// Binaries are the absolute paths of the parts that this agent runs, carried
// or the host's own. An empty one is not there.
type Binaries struct {
	Containerd, Shim string // shim: containerd-shim-runc-v2
	Runc, Runsc      string
	Wrapper          string // stands between shim and runtime
	Crun             string
}

// Inputs are all that findings depend on beside the canaries.
type Inputs struct {
	Host     isolation.Host
	Binaries Binaries
	// Allowed are the only runtimes that this node offers; none: all.
	Allowed []isolation.Name
	// Find gives the path of a program that is not carried, or an error; nil
	// looks on PATH and in the folders where such programs are installed.
	Find func(name string) (string, error)
	// Exists says whether a path is there; nil asks the file system.
	Exists func(path string) bool
}

// Candidate is one configuration of a runtime that may be proven.
type Candidate struct {
	Runtime isolation.Name
	Variant string
	Class   isolation.Class // what it promises
	Binary  string          // the runtime's main program
	Digest  string          // "sha256:…" of Binary
}

func (c Candidate) String() string {
	if c.Variant == "" {
		return string(c.Runtime)
	}
	return string(c.Runtime) + "/" + c.Variant
}

// Observation is what a canary and the host saw together.
type Observation struct {
	// Class is the strongest class, up to the promised one, whose demands were
	// all met; ClassUnknown if not even a container's were.
	Class isolation.Class
	Terms isolation.Terms
	// Reason says in one line what was missing for the promised class, and Fix
	// what to do; both empty when it is met.
	Reason, Fix string
	// At is when the canary had answered, on the boot clock (BootTime).
	At time.Duration
}

// ErrNoAnswer is wrapped by a Runner whose canary neither failed nor answered
// in time: nothing is known then.
var ErrNoAnswer = errors.New("the canary gave no answer")

// Runner starts a canary under a candidate and observes it from both sides. An
// error means that nothing was observed: it wraps ErrNoAnswer if that says
// nothing about the runtime, and anything else if the runtime failed.
type Runner interface {
	RunCanary(ctx context.Context, c Candidate) (Observation, error)
}

// Findings probes every runtime that this version knows. A nil runner proves
// nothing and leaves what is there as installed.
func Findings(ctx context.Context, in Inputs, runner Runner) []isolation.Finding {
	if in.Find == nil {
		in.Find = findProgram
	}
	if in.Exists == nil {
		in.Exists = func(path string) bool { _, err := os.Stat(path); return err == nil }
	}
	if runner != nil {
		runner = allowedOnly{runner, in.Allowed}
	}
	var out []isolation.Finding
	for _, probe := range []func(context.Context, Inputs, Runner) []isolation.Finding{
		probeRunc, probeCrun, probeGVisor, probeKata, probeFirecracker, probeNabla,
	} {
		out = append(out, probe(ctx, in, runner)...)
	}
	slices.SortFunc(out, func(a, b isolation.Finding) int {
		return cmp.Or(cmp.Compare(a.Runtime, b.Runtime), cmp.Compare(a.Variant, b.Variant))
	})
	SwitchOff(out, in.Allowed)
	return out
}

// SwitchOff makes every finding of a runtime that is not among the allowed ones
// say so, whatever was found. It takes away and never adds: what is allowed
// counts as what it was proven to be. Where none is named, all are allowed.
func SwitchOff(found []isolation.Finding, allowed []isolation.Name) {
	if len(allowed) == 0 {
		return
	}
	for i, f := range found {
		if slices.Contains(allowed, f.Runtime) {
			continue
		}
		// No digest: nothing of it is watched here, and nobody looks again soon.
		found[i] = isolation.Finding{
			Runtime: f.Runtime, Variant: f.Variant, Class: isolation.PromisedClass(f.Runtime), State: isolation.StateUnusable,
			Terms: f.Terms, OverheadMemory: f.OverheadMemory,
			Reason: "switched off by this node's operator",
			Fix:    fmt.Sprintf("add %s to allow-runtime of this node's agent", f.Runtime),
		}
	}
}

// allowedOnly runs no canary under what is switched off.
type allowedOnly struct {
	Runner
	allowed []isolation.Name
}

func (r allowedOnly) RunCanary(ctx context.Context, c Candidate) (Observation, error) {
	if len(r.allowed) > 0 && !slices.Contains(r.allowed, c.Runtime) {
		return Observation{}, fmt.Errorf("%s is switched off", c.Runtime)
	}
	return r.Runner.RunCanary(ctx, c)
}

// prove runs the canary of c and completes f, which holds what is known of the
// runtime without it.
func prove(ctx context.Context, runner Runner, c Candidate, f isolation.Finding) isolation.Finding {
	f.State = isolation.StateInstalled
	if runner == nil {
		f.Reason, f.Fix = "present, not proven: no canary was run", "let the agent probe this node"
		return f
	}
	seen, err := runner.RunCanary(ctx, c)
	switch {
	case err != nil && (errors.Is(err, ErrNoAnswer) || ctx.Err() != nil):
		f.State = isolation.StateUnknown
		f.Reason, f.Fix = oneLine(err.Error()), "probe again when the node is less busy"
	case err != nil:
		f.State = isolation.StateUnusable
		f.Reason = fmt.Sprintf("a canary does not run under %s: %s", c, oneLine(err.Error()))
		f.Fix = fmt.Sprintf("see the agent's log of this probe; %s must be able to start a container here", c.Runtime)
	case seen.Class < c.Class:
		f.State = isolation.StateUnusable
		f.Terms = seen.Terms
		f.Reason, f.Fix = oneLine(seen.Reason), oneLine(seen.Fix)
	default:
		f.State = isolation.StateVerified
		f.Terms = seen.Terms
		f.Reason, f.Fix = "", ""
		f.Age = max(0, BootTime()-seen.At)
	}
	return f
}

// carried checks what every runtime that this agent drives needs, and gives
// the reason and the fix if something is missing.
func (in Inputs) carried(program, path string) (reason, fix string) {
	for _, part := range []struct{ name, path string }{
		{"containerd", in.Binaries.Containerd},
		{"containerd-shim-runc-v2", in.Binaries.Shim},
		{"the runtime wrapper", in.Binaries.Wrapper},
		{program, path},
	} {
		switch {
		case part.path == "":
			return part.name + " is neither carried nor on PATH", "use a redoubt that was built with make, or install " + part.name
		case !in.Exists(part.path):
			return part.name + " is gone from " + part.path, "restart the agent, which unpacks what it carries"
		}
	}
	return "", ""
}

// missing gives the first of the programs that cannot be found.
func (in Inputs) missing(programs ...string) string {
	for _, p := range programs {
		if _, err := in.Find(p); err != nil {
			return p
		}
	}
	return ""
}

// elsewhere are folders in which runtimes are installed but that services
// often lack in PATH.
var elsewhere = []string{"/opt/kata/bin", "/opt/kata/libexec", "/usr/local/bin", "/usr/local/sbin",
	"/usr/libexec", "/usr/lib/qemu", "/usr/sbin", "/sbin"}

func findProgram(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	for _, dir := range elsewhere {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p, nil
		}
	}
	return "", err
}

// oneLine keeps a reason on one line and within bounds.
func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	const longest = 240
	if len(s) > longest {
		s = strings.ToValidUTF8(s[:longest], "") + "…"
	}
	return s
}
