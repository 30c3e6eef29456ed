package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"redoubt.dev/redoubt/integration/net/fleet"
)

// What is seen before and after a blow tells in which step it struck.
func TestABlowCountsForTheStepInWhichItStruck(t *testing.T) {
	pin := sight{pin: true}
	made := sight{pin: true, bundle: true, group: true}
	launched := sight{pin: true, bundle: true, group: true, procs: []int{7, 8}}
	runs := sight{pin: true, bundle: true, group: true, procs: []int{7, 8}, beats: true}
	told := sight{pin: true, bundle: true, group: true, procs: []int{7, 8}, beats: true, term: true}
	dead := sight{pin: true, bundle: true, group: true, beats: true, term: true}
	for _, tt := range []struct {
		name          string
		k             cell
		before, after sight
		want          string
	}{
		{"nothing moved", cell{step: network, targets: []target{agent}}, pin, pin, network},
		{"it went on before the blow", cell{step: network, targets: []target{agent}}, pin, made, create},
		{"it was launched meanwhile", cell{step: create, targets: []target{daemon}}, made, launched, launch},
		{"the blow ended the sandbox", cell{step: launch, targets: []target{sentry}}, launched, made, launch},
		{"it was heard before the blow", cell{step: launch, targets: []target{sentry}}, launched, runs, running},
		{"it was heard, and the blow ended it", cell{step: launch, targets: []target{sentry}}, launched, sight{pin: true, bundle: true, beats: true}, create},
		{"a process came meanwhile", cell{step: create, targets: []target{shim}}, made, launched, launch},
		{"the agent's death ends no sandbox", cell{step: grace, targets: []target{agent}}, told, dead, reap},
		{"the blow ended what was told to end", cell{step: grace, targets: []target{sentry}}, told, dead, grace},
		{"it ran and was ended", cell{step: running, targets: []target{initial}}, runs, sight{pin: true}, running},
		{"it did not run", cell{step: running, targets: []target{initial}}, made, made, create},
	} {
		if got := struckIn(tt.k, tt.before, tt.after); got != tt.want {
			t.Errorf("%s: it struck in %s, want %s", tt.name, got, tt.want)
		}
	}
}

// A signal that was sent is no fault; what it did is.
func TestABlowThatIsNotFeltIsNoFault(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	v := victim{target: agent, pid: cmd.Process.Pid}
	var err error
	if v.start, err = fleet.StartTime(v.pid); err != nil {
		t.Fatal(err)
	}
	for _, sig := range []unix.Signal{unix.SIGSTOP, unix.SIGKILL} {
		if s, err := v.felt(sig, nil, nil); err == nil {
			t.Errorf("%v was not sent and was felt: %+v", sig, s)
		}
		if err := v.strike(sig); err != nil {
			t.Fatal(err)
		}
		if s, err := v.felt(sig, nil, nil); err != nil || s.Pid != v.pid || s.Start != v.start {
			t.Errorf("%v: %+v, %v", sig, s, err)
		}
	}
	if err := v.strike(unix.SIGKILL); err == nil {
		t.Error("what has ended was struck once more")
	}
}

func TestWhatIsLeftIsCounted(t *testing.T) {
	before := estate{"mount": {"/a", "/b"}, "link of the switch": {"x", "y", "z"}}
	if got := (estate{"mount": {"/a", "/c"}, "link of the switch": {"x"}}).beyond(before); len(got) != 0 {
		t.Errorf("%q", got)
	}
	got := estate{"mount": {"/a", "/c", "/d"}, "process runsc-sandbox": {"runsc-sandbox rd-u"}}.beyond(before)
	if want := []string{"3 × mount, there were 2: now /c, /d", "1 × process runsc-sandbox, there were 0: now runsc-sandbox rd-u"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestARunOfTooFewFaultsFails(t *testing.T) {
	full := reckoning{least: 2, total: 4, faults: 4, rows: []row{{faults: 2}, {faults: 2}}}
	if err := full.err(); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*reckoning){
		"a cell":    func(r *reckoning) { r.rows[1].faults = 1 },
		"all":       func(r *reckoning) { r.faults = 3 },
		"a verdict": func(r *reckoning) { r.verdicts = []string{"it ran twice"} },
	} {
		r := full
		r.rows = slices.Clone(full.rows)
		spoil(&r)
		if r.err() == nil {
			t.Errorf("%s: passes", name)
		}
	}
}

func TestThePageIsWrittenBetweenItsMarks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "page.md")
	if err := os.WriteFile(path, []byte("before\n"+pageFrom+"\nold\n"+pageTo+"\nafter\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	k := cell{targets: []target{agent, daemon}, signal: unix.SIGKILL, step: grace, runtime: gvisor, within: time.Minute}
	r := reckoning{long: time.Minute, faults: 3, rows: []row{{cell: k, faults: 3, median: 1500 * time.Millisecond, worst: 2 * time.Second}}}
	for range 2 {
		if err := r.page(path); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	for _, want := range []string{"before\n" + pageFrom + "\n3 faults in 1m0s", "| agent + containerd | SIGKILL | grace | gvisor | 3 | 1.5 s | 2.0 s | 60.0 s |", "nothing ran twice", pageTo + "\nafter\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if strings.Contains(text, "old") || strings.Count(text, pageFrom) != 1 {
		t.Errorf("the old table is there:\n%s", text)
	}
	r.verdicts = []string{"w ran twice for 1s"}
	if err := r.page(path); err != nil {
		t.Fatal(err)
	}
	if data, _ := os.ReadFile(path); !strings.Contains(string(data), "- w ran twice for 1s") || strings.Contains(string(data), "nothing ran twice") {
		t.Errorf("a failed run reads\n%s", data)
	}
	if err := os.WriteFile(path, []byte("no marks\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if r.page(path) == nil {
		t.Error("a page without marks is written")
	}
}
