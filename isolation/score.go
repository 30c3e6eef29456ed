package isolation

import (
	"fmt"
	"math"
)

// ScoreVersion names the formula below. It is recorded beside every score, so
// that scores of two formulas are never compared. It changes with any constant.
const ScoreVersion = 1

// The formula. A class owns a quarter of the scale, and quality places a
// finding inside its quarter:
//
//	score   = (class − 1)/4 + bandLow + quality · (1/4 − bandLow)
//	quality = weightVM·VM + weightSandbox·Sandbox
//	        + weightSyscalls·(1 − syscalls/total) + weightDevices·(1 − d/(d + deviceHalf))
//
// so container is 0.01–0.25, sandbox 0.26–0.50, vm 0.51–0.75 and microvm
// 0.76–1.00, and 0 means that no class was established.
const (
	// bandLow keeps neighbouring classes a hundredth apart, the precision that
	// people are shown. A convention, not a measurement.
	bandLow = 0.01

	// The weights sum to one. The attack surface is half of the score because
	// it is the one input read off the live boundary process, for every system
	// call number; the founding formula f(VM level, sandbox level, kernel
	// attack surface) names the other two as equals, so they share the rest.
	weightVM       = 0.25
	weightSandbox  = 0.25
	weightSyscalls = 0.375
	weightDevices  = 0.125

	// deviceHalf is the number of devices that costs half of weightDevices:
	// three, kvm, tun and vhost, the most that a microvm's monitor may hold by
	// the definition of its class.
	deviceHalf = 3
)

// Score is the isolation score of a boundary of class c with terms t: 0 for
// ClassUnknown, else within the class's quarter. It rises with either level,
// falls as the surface grows, and reads what is not known as the worst: a
// surface without a total counts as fully exposed.
func Score(c Class, t Terms) float64 {
	if c == ClassUnknown || c > ClassMicroVM {
		return 0
	}
	low, width := band(c)
	return low + width*quality(t)
}

func band(c Class) (low, width float64) {
	return float64(c-1)/4 + bandLow, 0.25 - bandLow
}

func quality(t Terms) float64 {
	return weightVM*unit(float64(t.VM)) + weightSandbox*unit(float64(t.Sandbox)) +
		weightSyscalls*(1-exposed(t.Surface)) + weightDevices*(1-deviceShare(t.Surface))
}

// unit clamps to 0…1; what is not a number counts as nothing.
func unit(v float64) float64 {
	if math.IsNaN(v) {
		return 0
	}
	return min(max(v, 0), 1)
}

// exposed is the share of the host's system calls that can be reached.
func exposed(s Surface) float64 {
	if s.SyscallsTotal <= 0 || s.Syscalls < 0 {
		return 1
	}
	return unit(float64(s.Syscalls) / float64(s.SyscallsTotal))
}

// deviceShare saturates: the first devices matter most.
func deviceShare(s Surface) float64 {
	d := float64(max(s.Devices, 0))
	return d / (d + deviceHalf)
}

// ScoreTerm is one addend of a score, in the words of the CLI.
type ScoreTerm struct {
	Name string // "class", "vm level", "sandbox level", "syscalls", "devices"
	// Input is what was measured or cited, as text: "80 of 362 reachable".
	Input string
	// Value is the input as a share 0…1 where 1 is best, and Weight what it
	// can add to the score; Points = Value·Weight. The points sum to the score.
	Value, Weight, Points float64
	Source                string // where the input comes from
}

// ExplainScore returns the addends of Score(c, t), always in the same order.
// It is empty for a class that scores 0.
func ExplainScore(c Class, t Terms) []ScoreTerm {
	if Score(c, t) == 0 {
		return nil
	}
	low, width := band(c)
	source := "cited"
	if t.Surface.Measured {
		source = "measured on the live boundary process"
	}
	if t.Surface.Source != "" {
		source += ": " + t.Surface.Source
	}
	calls := "unknown: counted as all"
	if t.Surface.SyscallsTotal > 0 && t.Surface.Syscalls >= 0 {
		calls = fmt.Sprintf("%d of %d reachable", t.Surface.Syscalls, t.Surface.SyscallsTotal)
	}
	term := func(name, input string, value, weight float64, source string) ScoreTerm {
		w := weight * width
		return ScoreTerm{Name: name, Input: input, Value: value, Weight: w, Points: value * w, Source: source}
	}
	vm, sb := unit(float64(t.VM)), unit(float64(t.Sandbox))
	return []ScoreTerm{
		{Name: "class", Input: c.String(), Value: 1, Weight: low, Points: low, Source: "the least that this class scores"},
		term("vm level", fmt.Sprintf("%.2f", vm), vm, weightVM, "probe"),
		term("sandbox level", fmt.Sprintf("%.2f", sb), sb, weightSandbox, "probe"),
		term("syscalls", calls, 1-exposed(t.Surface), weightSyscalls, source),
		term("devices", fmt.Sprintf("%d held", max(t.Surface.Devices, 0)), 1-deviceShare(t.Surface), weightDevices, source),
	}
}
