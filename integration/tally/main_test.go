package main

import (
	"bytes"
	"regexp"
	"strings"
	"testing"
)

const events = `
{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p","Test":"TestA/one"}
{"Action":"output","Package":"p","Test":"TestA/two","Output":"    a_test.go:7: needs root: mounts\n"}
{"Action":"skip","Package":"p","Test":"TestA/two"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestB","Output":"    b_test.go:3: it broke\n"}
{"Action":"fail","Package":"p","Test":"TestB"}
{"Action":"fail","Package":"p","Elapsed":1}
{"ImportPath":"q","Action":"build-output","Output":"q.go:1: syntax error\n"}
{"ImportPath":"q","Action":"build-fail"}
not json
`

func TestWhatFailsIsShownAndCounted(t *testing.T) {
	var shown, summed bytes.Buffer
	list, err := follow(strings.NewReader(events[1:]), &shown)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"it broke", "syntax error", "not json", "FAIL  p"} {
		if !strings.Contains(shown.String(), want) {
			t.Errorf("%q is not shown:\n%s", want, shown.String())
		}
	}
	if failed(list) == 0 || report(&summed, list, nil) == 0 {
		t.Error("a failure counts as success")
	}
	for _, want := range []string{"3 tests ran: 1 passed, 2 failed, 1 skipped", "needs root: mounts", "p TestB", "q  does not build"} {
		if !strings.Contains(summed.String(), want) {
			t.Errorf("%q is not in the sum:\n%s", want, summed.String())
		}
	}
}

func TestAForbiddenSkipAndAnEmptyRunFail(t *testing.T) {
	list := []outcome{{"p", "TestA", "pass", ""}, {"p", "TestB", "skip", "needs the carried runtimes: none"}}
	var out bytes.Buffer
	if report(&out, list, nil) != 0 {
		t.Errorf("an allowed skip fails:\n%s", out.String())
	}
	if report(&out, list, regexp.MustCompile("carried")) != 1 {
		t.Error("a forbidden skip passes")
	}
	if report(&out, nil, nil) != 1 {
		t.Error("a run of no test passes")
	}
	// The same test in two runs: skipped in one, passed in the other.
	if got := leaves([]outcome{{"p", "T", "pass", ""}, {"p", "T", "fail", ""}}); len(got) != 1 || got[0].Action != "fail" {
		t.Errorf("two runs of a test give %v", got)
	}
}

func TestWhatEndedInTheMiddleIsShown(t *testing.T) {
	var shown bytes.Buffer
	if _, err := follow(strings.NewReader(`{"Action":"output","Package":"p","Test":"TestHung","Output":"=== RUN TestHung\n"}
{"Action":"output","Package":"p","Test":"TestHung","Output":"panic: test timed out\n"}
{"Action":"fail","Package":"p","Elapsed":600}
`), &shown); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(shown.String(), "panic: test timed out") {
		t.Errorf("the panic is not shown:\n%s", shown.String())
	}
}
