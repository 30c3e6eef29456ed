package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var zero = time.Unix(1_800_000_000, 0)

func at(s float64) time.Time { return zero.Add(time.Duration(s * float64(time.Second))) }

// run is a start that beats every 100 ms from a to b, in seconds.
func run(uid, nonce string, fence uint64, a, b float64) start {
	s := start{site: "n1", uid: uid, nonce: nonce, fence: fence}
	for t := a; t <= b; t += 0.1 {
		s.beats = append(s.beats, at(t))
	}
	return s
}

func TestJudge(t *testing.T) {
	whole := promise{workload: "w", from: at(0), within: 10 * time.Second}
	stopped := promise{workload: "w", from: at(0), within: 10 * time.Second, until: at(20), stopped: at(20), stopWithin: 5 * time.Second}
	with := func(replace string) promise { p := whole; p.replace = replace; return p }
	away := []loss{{workload: "w", from: at(4), over: at(20)}}
	for _, tt := range []struct {
		name   string
		starts []start
		p      promise
		blows  []*blow
		losses []loss
		want   string // part of the one verdict; empty: none
	}{
		{"quiet", []start{run("u", "1", 5, 1, 30)}, whole, nil, nil, ""},
		{"never", nil, whole, nil, nil, "never ran"},
		{"late", []start{run("u", "1", 5, 11, 30)}, whole, nil, nil, "ran 11s after"},
		{"two starts at once", []start{run("u", "1", 5, 1, 10), run("u", "2", 5, 9, 30)}, whole, nil, nil, "ran twice for"},
		{"two instances at once", []start{run("u", "1", 5, 1, 10), run("v", "2", 9, 9, 30)}, whole, nil, nil, "ran twice for"},
		{"a short start within a long one", []start{run("u", "1", 5, 1, 30), run("u", "2", 5, 9, 10)}, whole, nil, nil, "ran twice for"},
		{"an older fence after a newer", []start{run("u", "1", 9, 1, 10), run("v", "2", 5, 10.2, 30)}, whole, nil, nil, "has fence 5"},
		{"a gap", []start{run("u", "1", 5, 1, 10), run("u", "2", 5, 13, 30)}, whole, nil, nil, "was silent for 3s"},
		{"silent at the end", []start{run("u", "1", 5, 1, 20)}, whole, nil, nil, "was silent for 10"},
		{"a gap that a fault explains", []start{run("u", "1", 5, 1, 10), run("u", "2", 5, 13, 30)}, whole,
			[]*blow{{workload: "w", site: "n1", at: at(10), within: 4 * time.Second}}, nil, ""},
		{"a gap too long for its fault", []start{run("u", "1", 5, 1, 10), run("u", "2", 5, 15, 30)}, whole,
			[]*blow{{workload: "w", site: "n1", at: at(10), within: 4 * time.Second}}, nil, "was silent for 5s"},
		{"a gap and a fault on another node", []start{run("u", "1", 5, 1, 10), run("u", "2", 5, 13, 30)}, whole,
			[]*blow{{site: "n2", at: at(10), within: 4 * time.Second}}, nil, "was silent for 3s"},
		{"a gap before its fault", []start{run("u", "1", 5, 1, 10), run("u", "2", 5, 13, 30)}, whole,
			[]*blow{{site: "n1", at: at(14), within: 4 * time.Second}}, nil, "was silent for 3s"},
		{"a gap that begins before all is well again", []start{run("u", "1", 5, 1, 10), run("u", "2", 5, 13, 30)}, whole,
			[]*blow{{workload: "w", site: "n1", at: at(7), within: 8 * time.Second, over: at(13.2)}}, nil, ""},
		{"a gap that begins after all was well again", []start{run("u", "1", 5, 1, 10), run("u", "2", 5, 13, 30)}, whole,
			[]*blow{{workload: "w", site: "n1", at: at(7), within: 8 * time.Second, over: at(9)}}, nil, "was silent for 3s"},
		{"stopped", []start{run("u", "1", 5, 1, 22)}, stopped, nil, nil, ""},
		{"not stopped", []start{run("u", "1", 5, 1, 29)}, stopped, nil, nil, "ran on for"},

		{"Eager: both run while a node is lost", []start{run("u", "1", 5, 1, 15), run("v", "2", 9, 9, 30)}, with("Eager"), nil, away, ""},
		{"Eager: both run and no node is lost", []start{run("u", "1", 5, 1, 15), run("v", "2", 9, 9, 30)}, with("Eager"), nil, nil, "ran twice for"},
		{"Eager: both run for longer than stated", []start{run("u", "1", 5, 1, 21), run("v", "2", 9, 9, 30)}, with("Eager"), nil, away, "ran twice for"},
		{"Eager: replaced before the node was lost", []start{run("u", "1", 5, 1, 15), run("v", "2", 9, 3, 30)}, with("Eager"), nil, away, "ran twice for"},
		{"Eager: the older is started once more", []start{run("u", "1", 5, 1, 4), run("v", "2", 9, 5, 30), run("u", "3", 5, 10, 12)}, with("Eager"), nil, away, ""},
		{"Eager: another workload's node is lost", []start{run("u", "1", 5, 1, 15), run("v", "2", 9, 9, 30)}, with("Eager"), nil,
			[]loss{{workload: "x", from: at(4), over: at(20)}}, "ran twice for"},
		{"Eager: two starts of one instance", []start{run("u", "1", 5, 1, 15), run("u", "2", 5, 9, 30)}, with("Eager"), nil, away, "ran twice for"},
		{"Eager: two instances of one fence", []start{run("u", "1", 5, 1, 8), run("v", "2", 5, 9, 30)}, with("Eager"), nil, away, "has fence 5"},
		{"Safe: both run while a node is lost", []start{run("u", "1", 5, 1, 15), run("v", "2", 9, 9, 30)}, with("Safe"), nil, away, "ran twice for"},
		{"Safe: one after the other", []start{run("u", "1", 5, 1, 8), run("v", "2", 9, 9, 30)}, with("Safe"), nil, away, ""},
		{"Safe: the older is started once more", []start{run("u", "1", 5, 1, 4), run("v", "2", 9, 5, 9), run("u", "3", 5, 10, 30)}, with("Safe"), nil, away, "has fence 5"},
		{"Never: replaced", []start{run("u", "1", 5, 1, 8), run("v", "2", 9, 9, 30)}, with("Never"), nil, away, "never to be replaced"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := judge(map[string][]start{"w": tt.starts}, []promise{tt.p}, tt.blows, tt.losses, at(30))
			if tt.want == "" && len(got) != 0 || tt.want != "" && (len(got) != 1 || !strings.Contains(got[0], tt.want)) {
				t.Errorf("verdicts %q, want %q", got, tt.want)
			}
		})
	}
}

func TestTooLittleTrafficShowsNothing(t *testing.T) {
	p := []promise{{workload: "w", from: at(0)}}
	if got := traffic(map[string][]start{"w": {run("u", "1", 5, 1, 30)}}, p, at(30)); len(got) != 0 {
		t.Errorf("enough was heard, and yet %q", got)
	}
	for _, starts := range [][]start{nil, {run("u", "1", 5, 1, 10)}} {
		if got := traffic(map[string][]start{"w": starts}, p, at(30)); len(got) != 1 || !strings.Contains(got[0], "fewer than the 150") {
			t.Errorf("verdicts %q", got)
		}
	}
}

func TestRecorderReadsWhatIsWrittenMeanwhile(t *testing.T) {
	dir := t.TempDir()
	r := newRecorder(map[string]string{"n1": dir})
	f, err := os.Create(filepath.Join(dir, "u1_aa"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	write := func(s string) {
		t.Helper()
		if _, err := f.WriteString(s); err != nil {
			t.Fatal(err)
		}
	}
	write("instance web-1 fen")
	if got := r.look("u1"); len(got) != 0 {
		t.Errorf("half a line counted: %v", got)
	}
	write("ce 17\nbeat 1800000000100\nbeat 18000000")
	if got := r.look("u1"); len(got) != 1 || got[0].fence != 17 || got[0].instance != "web-1" || len(got[0].beats) != 1 {
		t.Fatalf("read %+v", got)
	}
	write("00200\nterm 1800000000300\n")
	got := r.look("")
	if len(got) != 1 || len(got[0].beats) != 3 || !got[0].term.Equal(time.UnixMilli(1800000000300)) || got[0].site != "n1" {
		t.Fatalf("read %+v", got)
	}
	if len(r.bad) != 0 {
		t.Errorf("%q", r.bad)
	}
}
