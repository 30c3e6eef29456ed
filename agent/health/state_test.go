package health

import (
	"strings"
	"testing"
	"time"
)

var at = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func tcp(delay time.Duration, success, failure int) *Probe {
	return &Probe{TCP: 80, InitialDelay: delay, Period: 10 * time.Second, Timeout: time.Second, Success: success, Failure: failure}
}

var good, bad, void = Outcome{}, Outcome{Why: "connection refused"}, Outcome{Void: true}

// A row of answers, and what they mean.
func TestARowOfAnswersDecides(t *testing.T) {
	type answer struct {
		k Kind
		o Outcome
	}
	all := Probes{Startup: tcp(0, 1, 2), Liveness: tcp(0, 1, 3), Readiness: tcp(0, 2, 2)}
	for _, tc := range []struct {
		name    string
		p       Probes
		answers []answer
		want    Verdict
	}{
		{"nobody asks", Probes{}, nil, Verdict{Up: true}},
		{"liveness alone is ready at once", Probes{Liveness: tcp(0, 1, 3)}, nil, Verdict{Up: true}},
		{"not asked yet", all, nil, Verdict{NotReady: "startup: tcp :80 has not succeeded yet"}},
		{"up, not ready yet", all, []answer{{Startup, good}}, Verdict{Up: true, NotReady: "readiness: tcp :80 has not succeeded yet"}},
		{"startup failed below its threshold", all, []answer{{Startup, bad}}, Verdict{NotReady: "startup: tcp :80 has not succeeded yet"}},
		{"startup failed", all, []answer{{Startup, bad}, {Startup, bad}},
			Verdict{NotReady: "startup: tcp :80 has not succeeded yet", Dead: "startup: tcp :80: connection refused, 2 times"}},
		{"one success is not two", all, []answer{{Startup, good}, {Readiness, good}}, Verdict{Up: true, NotReady: "readiness: tcp :80 has not succeeded yet"}},
		{"ready", all, []answer{{Startup, good}, {Readiness, good}, {Readiness, good}}, Verdict{Up: true}},
		{"a failure between begins the row anew", all, []answer{{Startup, good}, {Readiness, good}, {Readiness, bad}, {Readiness, good}},
			Verdict{Up: true, NotReady: "readiness: tcp :80 has not succeeded yet"}},
		{"ready, then not", all, []answer{{Startup, good}, {Readiness, good}, {Readiness, good}, {Readiness, bad}, {Readiness, bad}},
			Verdict{Up: true, NotReady: "readiness: tcp :80: connection refused, 2 times"}},
		{"told once", all, []answer{{Startup, good}, {Readiness, bad}, {Readiness, bad}, {Readiness, Outcome{Why: "500"}}, {Readiness, bad}},
			Verdict{Up: true, NotReady: "readiness: tcp :80: connection refused, 2 times"}},
		{"dead", all, []answer{{Startup, good}, {Liveness, bad}, {Liveness, bad}, {Liveness, Outcome{Why: "500"}}},
			Verdict{Up: true, NotReady: "readiness: tcp :80 has not succeeded yet", Dead: "liveness: tcp :80: 500, 3 times"}},
		{"two failures and a success are no three", all, []answer{{Startup, good}, {Liveness, bad}, {Liveness, bad}, {Liveness, good}, {Liveness, bad}},
			Verdict{Up: true, NotReady: "readiness: tcp :80 has not succeeded yet"}},
		{"what could not be asked counts for nothing", all, []answer{{Startup, good}, {Liveness, bad}, {Liveness, bad}, {Liveness, void}, {Liveness, void}},
			Verdict{Up: true, NotReady: "readiness: tcp :80 has not succeeded yet"}},
		{"and does not break the row", all, []answer{{Startup, good}, {Liveness, bad}, {Liveness, bad}, {Liveness, void}, {Liveness, bad}},
			Verdict{Up: true, NotReady: "readiness: tcp :80 has not succeeded yet", Dead: "liveness: tcp :80: connection refused, 3 times"}},
	} {
		s := Begin(tc.p, at, at, Waiting(tc.p))
		for _, a := range tc.answers {
			s.Take(a.k, a.o, at)
		}
		if got := s.Verdict(); got != tc.want {
			t.Errorf("%s:\n got %+v\nwant %+v", tc.name, got, tc.want)
		}
	}
}

func TestStartupGatesTheOthersAndDelaysCountFromTheStart(t *testing.T) {
	p := Probes{Startup: tcp(2*time.Second, 1, 9), Liveness: tcp(30*time.Second, 1, 3), Readiness: tcp(0, 1, 3)}
	s := Begin(p, at, at, Waiting(p))
	if due, ok := s.Due(Startup); !ok || due != at.Add(2*time.Second) {
		t.Errorf("startup is due %v %v", due, ok)
	}
	for _, k := range []Kind{Liveness, Readiness} {
		if due, ok := s.Due(k); ok {
			t.Errorf("%s is due %v although it has not started", k, due)
		}
	}
	s.Take(Startup, bad, at.Add(2*time.Second))
	if due, _ := s.Due(Startup); due != at.Add(12*time.Second) {
		t.Errorf("startup is repeated at %v", due)
	}
	s.Take(Startup, good, at.Add(12*time.Second))
	if _, ok := s.Due(Startup); ok {
		t.Error("startup is asked again after it succeeded")
	}
	if due, _ := s.Due(Liveness); due != at.Add(30*time.Second) {
		t.Errorf("liveness is due %v", due)
	}
	if due, _ := s.Due(Readiness); due != at.Add(12*time.Second) {
		t.Errorf("readiness is due %v", due)
	}
}

// An agent that was restarted goes on where the last one stopped.
func TestWhatWasFoundHoldsAfterARestartOfTheAgent(t *testing.T) {
	p := Probes{Startup: tcp(0, 1, 3), Liveness: tcp(time.Minute, 1, 3), Readiness: tcp(0, 3, 2)}
	now := at.Add(time.Hour)
	s := Begin(p, at, now, Verdict{Up: true})
	if v := s.Verdict(); v != (Verdict{Up: true}) {
		t.Errorf("it was ready and is %+v", v)
	}
	if _, ok := s.Due(Startup); ok {
		t.Error("startup is asked again")
	}
	if due, _ := s.Due(Liveness); due != now {
		t.Errorf("the delay of liveness begins anew: %v", due)
	}
	s.Take(Readiness, bad, now)
	if v := s.Verdict(); v.NotReady != "" {
		t.Errorf("one failure of two makes it unready: %+v", v)
	}
	s.Take(Readiness, bad, now)
	if v := s.Verdict(); v.NotReady == "" {
		t.Error("two failures do not")
	}
}

func TestWhatIsShownIsOneShortLineOfText(t *testing.T) {
	for in, want := range map[string]string{
		"a\n\x1b[31mb\x00\x9bc\td": "a [31mbc d", "\xff\xfeok": "ok", strings.Repeat("ü", 50): strings.Repeat("ü", 9) + "…",
	} {
		if got := clip(in, 10); got != want {
			t.Errorf("%q is shown as %q, want %q", in, got, want)
		}
	}
	h := &Probe{HTTP: &HTTP{Port: 8080, Path: "/healthz", TLS: true}}
	if h.String() != "GET https :8080/healthz" || (&Probe{Exec: []string{"/bin/x", "-a"}}).String() != "exec /bin/x -a" {
		t.Errorf("named %s", h)
	}
}
