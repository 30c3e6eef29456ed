package health

import (
	"fmt"
	"time"
)

// Outcome is one answer. Why says what was wrong, "" if nothing was. Void is no
// answer at all: the question could not be put, which is not the instance's fault.
type Outcome struct {
	Why  string
	Void bool
}

// Good tells whether the probe succeeded.
func (o Outcome) Good() bool { return o.Why == "" }

// Verdict is what the answers so far mean.
type Verdict struct {
	// Up: the startup probe has succeeded, or there is none.
	Up bool
	// NotReady says why the instance is not ready; empty: it is.
	NotReady string
	// Dead says why the container must be restarted; empty: it need not.
	Dead string
}

// Waiting is the verdict before anything was asked.
func Waiting(p Probes) Verdict {
	for _, k := range []Kind{Startup, Readiness} {
		if q := p.of(k); q != nil {
			return Verdict{Up: k != Startup, NotReady: fmt.Sprintf("%s: %s has not succeeded yet", k, q)}
		}
	}
	return Verdict{Up: true}
}

// State is what the probes of one attempt have shown. It reads no clock.
type State struct {
	probes  Probes
	verdict Verdict
	// told: NotReady names a failure, and not only that nothing is known yet.
	told  bool
	tally [kinds]tally
}

// tally is a row of equal answers of one probe.
type tally struct {
	good bool
	row  int
	due  time.Time
}

// Begin starts the book of an attempt that began at. Before is the verdict that
// it left off with, Waiting's if it is new.
func Begin(p Probes, began, now time.Time, before Verdict) *State {
	s := &State{probes: p, verdict: before}
	if p.Startup == nil {
		s.verdict.Up = true
	}
	for k := range kinds {
		if q := p.of(k); q != nil {
			s.tally[k].due = later(began.Add(q.InitialDelay), now)
		}
	}
	return s
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// Verdict as of the last answer.
func (s *State) Verdict() Verdict { return s.verdict }

// Due is when probe k is to be put next; false: not before another has
// answered, or never.
func (s *State) Due(k Kind) (time.Time, bool) {
	if s.probes.of(k) == nil || s.verdict.Dead != "" || (k == Startup) == s.verdict.Up {
		return time.Time{}, false
	}
	return s.tally[k].due, true
}

// Take enters an answer that came at now.
func (s *State) Take(k Kind, o Outcome, now time.Time) {
	p, t := s.probes.of(k), &s.tally[k]
	t.due = now.Add(p.Period)
	if o.Void {
		return
	}
	if t.row == 0 || t.good != o.Good() {
		t.good, t.row = o.Good(), 0
	}
	t.row++
	switch {
	case t.good && t.row >= p.Success:
		s.good(k, now)
	case !t.good && t.row >= p.Failure:
		s.bad(k, fmt.Sprintf("%s: %s: %s%s", k, p, o.Why, times(t.row)))
	}
}

func times(n int) string {
	if n == 1 {
		return ""
	}
	return fmt.Sprintf(", %d times", n)
}

func (s *State) good(k Kind, now time.Time) {
	switch k {
	case Startup:
		s.verdict.Up = true
		if s.probes.Readiness == nil {
			s.verdict.NotReady = ""
		} else {
			s.verdict.NotReady = fmt.Sprintf("%s: %s has not succeeded yet", Readiness, s.probes.Readiness)
		}
		for _, other := range []Kind{Liveness, Readiness} {
			s.tally[other].due = later(s.tally[other].due, now)
		}
	case Readiness:
		s.verdict.NotReady, s.told = "", false
	}
}

func (s *State) bad(k Kind, why string) {
	if k != Readiness {
		s.verdict.Dead = why
		return
	}
	if !s.told {
		s.verdict.NotReady, s.told = why, true
	}
}
