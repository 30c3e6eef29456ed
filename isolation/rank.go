package isolation

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Requirement is what a workload asks of a runtime.
type Requirement struct {
	// Floor is the least class allowed. ClassUnknown allows every real class.
	Floor Class
	// Prefer is the class aimed at; ClassUnknown stands for "strongest", which
	// whatever is strongest meets.
	Prefer Class
	// Pend refuses what does not meet Prefer; without it the strongest at or
	// above the floor is taken.
	Pend bool
	// Arch is the architecture that the image needs, "" for any.
	Arch string
	// NeedsOCIImage: the workload is an ordinary OCI image, no unikernel.
	NeedsOCIImage bool
}

// Codes of reasons. They are stable, for programs.
const (
	CodeBelowFloor   = "below-floor"
	CodeNotVerified  = "not-verified"
	CodeStale        = "stale"
	CodeIncompatible = "incompatible"
	CodeArchMismatch = "arch-mismatch"
	CodePreferUnmet  = "prefer-unmet"
)

// Reason is one ground for a rejection, a line for people with a code for
// programs. Fix is the nearest remedy, "" if none is known.
type Reason struct {
	Code, Text, Fix string
}

// Choice is one finding as an answer to a requirement.
type Choice struct {
	Finding     Finding
	Score       float64 // by ScoreVersion
	MeetsPrefer bool
	// Rejected holds every reason against it; empty: it can be taken.
	Rejected []Reason
}

// OK tells whether the choice can be taken.
func (c Choice) OK() bool { return len(c.Rejected) == 0 }

// Rank orders all findings of a report for a requirement: first what can be
// taken, best first (meets prefer, score, fewer syscalls, fewer devices, then
// name and variant), then the rejects in the same order, each with every
// reason that holds. fresh tells whether a verified finding still counts; it is
// asked for verified findings only. The result does not depend on the order of
// the report's findings.
func Rank(req Requirement, report Report, fresh func(Finding) bool) []Choice {
	choices := make([]Choice, 0, len(report.Findings))
	for _, f := range report.Findings {
		choices = append(choices, Choice{
			Finding:     f,
			Score:       Score(f.Class, f.Terms),
			MeetsPrefer: f.Class >= req.Prefer && f.Class != ClassUnknown,
			Rejected:    reject(req, report.Host, f, fresh),
		})
	}
	slices.SortStableFunc(choices, func(a, b Choice) int {
		return cmp.Or(
			first(a.OK(), b.OK()),
			CompareChoices(a, b),
		)
	})
	return choices
}

// CompareChoices orders two choices by isolation alone: meets prefer, score,
// fewer syscalls, fewer devices, then runtime and variant.
func CompareChoices(a, b Choice) int {
	s, t := a.Finding.Terms.Surface, b.Finding.Terms.Surface
	return cmp.Or(
		first(a.MeetsPrefer, b.MeetsPrefer),
		cmp.Compare(b.Score, a.Score),
		cmp.Compare(s.Syscalls, t.Syscalls),
		cmp.Compare(s.Devices, t.Devices),
		cmp.Compare(a.Finding.Runtime, b.Finding.Runtime),
		cmp.Compare(a.Finding.Variant, b.Finding.Variant),
	)
}

// first puts true before false.
func first(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

func reject(req Requirement, host Host, f Finding, fresh func(Finding) bool) []Reason {
	var rs []Reason
	add := func(code, fix, format string, args ...any) {
		rs = append(rs, Reason{Code: code, Text: fmt.Sprintf(format, args...), Fix: fix})
	}
	if f.State != StateVerified {
		text := f.Reason
		if text == "" {
			text = f.State.String() + ", not proven here"
		}
		add(CodeNotVerified, f.Fix, "%s", text)
	} else if fresh == nil || !fresh(f) {
		add(CodeStale, "the agent proves it again by itself once it reaches a server",
			"the proof of %s is too old to count on", Label(f))
	}
	if f.Class == ClassUnknown {
		add(CodeBelowFloor, "", "the class of %s is not established", Label(f))
	} else if f.Class < req.Floor {
		add(CodeBelowFloor, "", "%s gives %s, below the floor %s", Label(f), f.Class, req.Floor)
	}
	if req.Pend && f.Class < req.Prefer {
		add(CodePreferUnmet, "set isolation.onUnavailable to Degrade",
			"%s gives %s, and the workload waits for %s", Label(f), f.Class, req.Prefer)
	}
	if req.NeedsOCIImage && !RunsOrdinaryImages(f.Runtime) {
		add(CodeIncompatible, "", "%s runs unikernel images only", f.Runtime)
	}
	if req.Arch != "" && host.Arch != "" && host.Arch != req.Arch {
		add(CodeArchMismatch, "give an image for "+host.Arch, "the image is for %s, the node is %s", req.Arch, host.Arch)
	}
	return rs
}

// Label names a finding for people: "gvisor" or "gvisor (systrap)".
func Label(f Finding) string {
	if f.Variant == "" {
		return string(f.Runtime)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s (%s)", f.Runtime, f.Variant)
	return b.String()
}
