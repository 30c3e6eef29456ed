package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestAPageKeepsWhatWasNotMeasuredAnew: one benchmark's figures take the place
// of its earlier ones and leave the others'; one that failed leaves all.
func TestAPageKeepsWhatWasNotMeasuredAnew(t *testing.T) {
	dir := t.TempDir()
	value := 1.0
	var fail error
	fake := func(name string) benchmark {
		return benchmark{name: name, title: name, run: func(_ context.Context, _ settings, r *result) error {
			r.add(against("of "+name, value, "ms", "a peer", 2))
			r.Plots = append(r.Plots, plot{Title: "<curve & co>", X: "x", Lines: []curve{{"a", [][2]float64{{0, 1}, {3, 9}}}}})
			return fail
		}}
	}
	measure := func(names ...string) error {
		var chosen []benchmark
		for _, n := range names {
			chosen = append(chosen, fake(n))
		}
		return bench(context.Background(), io.Discard, io.Discard, chosen, settings{}, "", dir)
	}
	if err := measure("start", "latency/dev"); err != nil {
		t.Fatal(err)
	}
	value = 7
	if err := measure("latency/dev"); err != nil {
		t.Fatal(err)
	}
	value, fail = 9, errors.New("broke")
	if err := measure("start"); !errors.Is(err, fail) {
		t.Fatalf("a benchmark that fails is an error: %v", err)
	}
	all, err := recall(dir)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]float64{"start": 1, "latency/dev": 7} {
		if got := all[name].Figures[0].Value; got != want {
			t.Errorf("%s: %v is noted, want %v", name, got, want)
		}
	}
	text, err := os.ReadFile(filepath.Join(dir, "benchmarks.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"| of start | 1 ms | a peer | 2 | 0.50 |", "| of latency/dev | 7 ms | a peer | 2 | 3.50 |", "(benchmarks-latency-dev-2.svg)"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the page has no %q", want)
		}
	}
	plots, _ := filepath.Glob(filepath.Join(dir, "*.svg"))
	if len(plots) != 4 {
		t.Errorf("%d plots, want 4: %v", len(plots), plots)
	}
	for _, p := range plots {
		data, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		for d := xml.NewDecoder(bytes.NewReader(data)); ; {
			if _, err := d.Token(); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("%s is not XML: %v", p, err)
			}
		}
	}
}

func TestNamesAndFlagsInAnyOrder(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"nothing", "-o", "json"}, "there is no benchmark"},
		{[]string{"start", "-o", "yaml"}, "only json"},
		{[]string{"-render"}, "needs -page"},
		{[]string{"start", "-render", "-page", "x"}, "no names"},
	} {
		if err := command(c.args, io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("bench %v: %v, want %q", c.args, err, c.want)
		}
	}
	chosen, err := choose([]string{"latency", "density/churn"})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, b := range chosen {
		got = append(got, b.name)
	}
	if s := strings.Join(got, " "); s != "latency latency/dev density/churn" {
		t.Errorf("chosen: %s", s)
	}
}

// TestTheRatioIsOfPairs: a machine that gets slower on the way changes both
// sides, and so the ratio of medians of what was not paired, but not this one.
func TestTheRatioIsOfPairs(t *testing.T) {
	var ours, theirs []float64
	for i := range 51 {
		base := float64(1 + i*i)
		ours, theirs = append(ours, 1.1*base), append(theirs, base)
	}
	ours[7] *= 50 // a moment in which something else had the machine
	f := ratioed("x", "ms", ours, theirs, "peer")
	if f.Ratio < 1.099 || f.Ratio > 1.101 || f.Low < 1.099 || f.High > 1.101 {
		t.Errorf("ratio %v (%v to %v), want 1.1", f.Ratio, f.Low, f.High)
	}
	var d []time.Duration
	for i := 1; i <= 100; i++ {
		d = append(d, time.Duration(101-i))
	}
	if p := percentile(d, 95); p != 96 {
		t.Errorf("the 95th percentile of 1 to 100 is %d", p)
	}
	if p := percentile(d, 100); p != 100 {
		t.Errorf("the greatest of 1 to 100 is %d", p)
	}
}

// TestFiguresAreForPrograms: what -o json prints has every field that the
// table shows.
func TestFiguresAreForPrograms(t *testing.T) {
	var b bytes.Buffer
	if err := show(&b, []figure{against("a", 3, "ms", "p", 2)}, "json"); err != nil {
		t.Fatal(err)
	}
	var got []map[string]any
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	for k, want := range map[string]any{"name": "a", "value": 3.0, "unit": "ms", "peer": "p", "bound": 2.0, "ratio": 1.5} {
		if got[0][k] != want {
			t.Errorf("%s is %v, want %v", k, got[0][k], want)
		}
	}
}

// TestALeakIsTold: one mount too many, when all is stopped, has a line and is
// counted; what is as it was is not.
func TestALeakIsTold(t *testing.T) {
	empty, full := census{"mounts": 2, "shims": 0, "the agent": 25}, census{"mounts": 42, "shims": 20, "the agent": 26}
	ch := &churner{runtime: "runc"}
	ch.starts.Store(100)
	told := func(again census) map[string]figure {
		var r result
		tellChurn(ch, empty, full, full, again, &r, false)
		out := map[string]figure{}
		for _, f := range r.Figures {
			out[f.Name] = f
		}
		return out
	}
	const left, line = "shims, groups, mounts, rules and so on left by runc, all stopped", "mounts, runc, all stopped"
	if f, ok := told(empty)[left]; !ok || f.Value != 0 || f.Ratio != 1 {
		t.Errorf("nothing is left, and this is told: %+v", f)
	}
	leaked := told(census{"mounts": 3, "shims": 0, "the agent": 25})
	if f := leaked[left]; f.Value != 1 {
		t.Errorf("a mount is left, and this is told: %+v", f)
	}
	if f := leaked[line]; f.Value != 3 || f.Bound != 2 {
		t.Errorf("a mount is left, and its line is %+v", f)
	}
	if f := leaked["shims, runc, after the churn"]; f.Value != 20 || f.Ratio != 1 {
		t.Errorf("the shims are as before, and this is told: %+v", f)
	}
}
