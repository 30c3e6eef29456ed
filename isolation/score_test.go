package isolation

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

func drawTerms(t *rapid.T, label string) Terms {
	return Terms{
		VM: Level(rapid.Float64Range(-0.5, 1.5).Draw(t, label+" vm")), Sandbox: Level(rapid.Float64Range(-0.5, 1.5).Draw(t, label+" sandbox")),
		Surface: Surface{Syscalls: rapid.IntRange(-1, 500).Draw(t, label+" calls"), SyscallsTotal: rapid.SampledFrom([]int{0, 362, 451}).Draw(t, label+" total"),
			Devices: rapid.IntRange(-1, 20).Draw(t, label+" devices")},
	}
}

func TestAStrongerClassAlwaysScoresHigher(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		weak, strong := drawTerms(t, "weak"), drawTerms(t, "strong")
		for c := ClassContainer; c < ClassMicroVM; c++ {
			if a, b := Score(c, weak), Score(c+1, strong); a >= b {
				t.Fatalf("%s %v scores %v, %s %v scores %v", c, weak, a, c+1, strong, b)
			}
		}
	})
}

func TestScoreIsMonotoneInEveryInput(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := rapid.SampledFrom(Classes()).Draw(t, "class")
		a := drawTerms(t, "a")
		for name, better := range map[string]func(*Terms){
			"vm":       func(x *Terms) { x.VM += Level(rapid.Float64Range(0, 1).Draw(t, "by")) },
			"sandbox":  func(x *Terms) { x.Sandbox += Level(rapid.Float64Range(0, 1).Draw(t, "by")) },
			"syscalls": func(x *Terms) { x.Surface.Syscalls = rapid.IntRange(0, max(x.Surface.Syscalls, 0)).Draw(t, "to") },
			"devices":  func(x *Terms) { x.Surface.Devices = rapid.IntRange(0, max(x.Surface.Devices, 0)).Draw(t, "to") },
		} {
			b := a
			better(&b)
			if Score(c, b) < Score(c, a) {
				t.Fatalf("better in %s, yet %v scores %v and %v scores %v", name, b, Score(c, b), a, Score(c, a))
			}
		}
	})
}

func TestABetterInputMovesTheScore(t *testing.T) {
	base := Terms{VM: 0.5, Sandbox: 0.5, Surface: Surface{Syscalls: 100, SyscallsTotal: 362, Devices: 2}}
	for name, better := range map[string]func(*Terms){
		"vm": func(x *Terms) { x.VM = 0.6 }, "sandbox": func(x *Terms) { x.Sandbox = 0.6 },
		"syscalls": func(x *Terms) { x.Surface.Syscalls = 99 }, "devices": func(x *Terms) { x.Surface.Devices = 1 },
	} {
		b := base
		better(&b)
		if Score(ClassVM, b) <= Score(ClassVM, base) {
			t.Errorf("%s has no effect", name)
		}
	}
}

func TestWhatIsUnknownScoresAsTheWorst(t *testing.T) {
	if s := Score(ClassUnknown, Terms{VM: 1, Sandbox: 1}); s != 0 {
		t.Errorf("an unknown class scores %v", s)
	}
	if s := Score(Class(9), Terms{}); s != 0 {
		t.Errorf("a class that does not exist scores %v", s)
	}
	open := Score(ClassSandbox, Terms{Surface: Surface{Syscalls: 362, SyscallsTotal: 362}})
	if s := Score(ClassSandbox, Terms{}); s != open {
		t.Errorf("an unmeasured surface scores %v, a fully exposed one %v", s, open)
	}
	if s := Score(ClassVM, Terms{VM: Level(math.NaN())}); math.IsNaN(s) || s != Score(ClassVM, Terms{}) {
		t.Errorf("not a number scores %v", s)
	}
}

func TestExplainedPointsSumToTheScore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, terms := rapid.SampledFrom(Classes()).Draw(t, "class"), drawTerms(t, "terms")
		sum := 0.0
		for _, e := range ExplainScore(c, terms) {
			if e.Name == "" || e.Input == "" || e.Source == "" || e.Points > e.Weight+1e-12 {
				t.Fatalf("%+v", e)
			}
			sum += e.Points
		}
		if math.Abs(sum-Score(c, terms)) > 1e-9 {
			t.Fatalf("points sum to %v, the score is %v", sum, Score(c, terms))
		}
	})
	if ExplainScore(ClassUnknown, Terms{}) != nil {
		t.Error("an unknown class is explained")
	}
}

// The formula's version must move with the formula: these are version 1's.
func TestScoreVersionPinsTheFormula(t *testing.T) {
	if ScoreVersion != 1 {
		t.Skip("pins version 1 only")
	}
	gvisor := Terms{Sandbox: 0.75, Surface: Surface{Syscalls: 80, SyscallsTotal: 362}}
	for _, c := range []struct {
		class Class
		terms Terms
		want  float64
	}{
		{ClassContainer, Terms{}, 0.04}, {ClassSandbox, gvisor, 0.4051}, {ClassMicroVM, Terms{VM: 1, Sandbox: 1, Surface: Surface{SyscallsTotal: 1}}, 1},
	} {
		if got := Score(c.class, c.terms); math.Abs(got-c.want) > 5e-5 {
			t.Errorf("%s scores %.4f, want %.4f: a change of the formula needs a new ScoreVersion", c.class, got, c.want)
		}
	}
}
