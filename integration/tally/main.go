// Command tally reads what `go test -json` writes, shows it as it comes, and
// counts it: `go test -json ./... | tally -into DIR/NAME.json` shows a line for
// each package and the output of what fails; `tally -sum DIR` says at the end,
// over all such files, how many tests ran, which were skipped and why, and ends
// with 1 if any failed or may not be skipped.
//
// A test is counted where it has no subtests; with them, they are counted.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"
)

// event is a line of `go test -json`.
type event struct {
	Action     string
	Package    string
	ImportPath string
	Test       string
	Elapsed    float64
	Output     string
}

// outcome is a test's, or a package's, with Test empty.
type outcome struct {
	Package, Test, Action, Reason string
}

func main() {
	into := flag.String("into", "", "show the events on stdin and keep the outcomes in this file")
	sum := flag.String("sum", "", "sum up the files of this folder")
	never := flag.String("never-skip", "", "a skip whose reason matches is a failure")
	flag.Parse()
	code, err := run(*into, *sum, *never)
	if err != nil {
		fmt.Fprintln(os.Stderr, "tally:", err)
		code = 2
	}
	os.Exit(code)
}

func run(into, sum, never string) (int, error) {
	if into != "" {
		list, err := follow(os.Stdin, os.Stdout)
		if err != nil {
			return 2, err
		}
		data, err := json.MarshalIndent(list, "", " ")
		if err != nil {
			return 2, err
		}
		return failed(list), os.WriteFile(into, data, 0o644)
	}
	if sum == "" {
		return 2, errors.New("give -into FILE or -sum DIR")
	}
	pattern, err := regexp.Compile(never)
	if err != nil {
		return 2, err
	}
	files, err := filepath.Glob(filepath.Join(sum, "*.json"))
	if err != nil || len(files) == 0 {
		return 2, fmt.Errorf("no results in %s", sum)
	}
	var all []outcome
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			return 2, err
		}
		var list []outcome
		if err := json.Unmarshal(data, &list); err != nil {
			return 2, fmt.Errorf("read %s: %w", f, err)
		}
		all = append(all, list...)
	}
	if never == "" {
		pattern = nil
	}
	return report(os.Stdout, all, pattern), nil
}

func failed(list []outcome) int {
	if slices.ContainsFunc(list, func(o outcome) bool { return o.Action == "fail" }) {
		return 1
	}
	return 0
}

var location = regexp.MustCompile(`^\s*[\w./-]+\.go:\d+: `)

// follow reads events to the end and shows what a person wants to see.
func follow(r io.Reader, w io.Writer) ([]outcome, error) {
	var list []outcome
	output := map[string][]string{} // by package and test
	counts := map[string]int{}
	br := bufio.NewReaderSize(r, 1<<20)
	for {
		line, err := br.ReadString('\n')
		if line != "" {
			var e event
			if json.Unmarshal([]byte(line), &e) != nil {
				fmt.Fprint(w, line) // what the go command itself says
			} else {
				list = take(w, list, output, counts, e)
			}
		}
		if err == io.EOF {
			return list, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

func take(w io.Writer, list []outcome, output map[string][]string, counts map[string]int, e event) []outcome {
	key := e.Package + "\x00" + e.Test
	switch e.Action {
	case "build-output":
		fmt.Fprint(w, e.Output)
	case "build-fail":
		list = append(list, outcome{Package: e.ImportPath, Action: "fail", Reason: "does not build"})
	case "output":
		output[key] = append(output[key], e.Output)
	case "pass", "fail", "skip":
		o := outcome{Package: e.Package, Test: e.Test, Action: e.Action}
		if e.Action == "skip" {
			o.Reason = reason(output[key])
		}
		if e.Test == "" {
			if e.Action == "fail" {
				unfinished(w, output, e.Package)
			}
			finish(w, e, output[key], counts[e.Package])
			if e.Action == "fail" && slices.ContainsFunc(list, func(o outcome) bool { return o.Package == e.Package && o.Action == "fail" }) {
				break // its tests say so already
			}
			if e.Action != "fail" {
				break
			}
		} else {
			counts[e.Package]++
			if e.Action == "fail" {
				fmt.Fprint(w, strings.Join(output[key], ""))
			}
		}
		list = append(list, o)
		delete(output, key)
	}
	return list
}

// unfinished shows what tests said that were in the middle of it when their
// package came to a bad end, as in a panic or past a deadline.
func unfinished(w io.Writer, output map[string][]string, pkg string) {
	for _, key := range slices.Sorted(maps.Keys(output)) {
		if test, ok := strings.CutPrefix(key, pkg+"\x00"); ok && test != "" {
			fmt.Fprint(w, strings.Join(output[key], ""))
			delete(output, key)
		}
	}
}

func finish(w io.Writer, e event, said []string, tests int) {
	name := strings.TrimPrefix(e.Package, "redoubt.dev/redoubt/")
	switch {
	case e.Action == "fail":
		fmt.Fprintf(w, "FAIL  %-34s %6.1f s\n%s", name, e.Elapsed, strings.Join(said, ""))
	case tests > 0:
		fmt.Fprintf(w, "ok    %-34s %6.1f s  %4d tests\n", name, e.Elapsed, tests)
	}
}

// reason is what a test said when it skipped.
func reason(said []string) string {
	for _, line := range slices.Backward(said) {
		if location.MatchString(line) {
			return strings.TrimSpace(location.ReplaceAllString(line, ""))
		}
	}
	return "no reason given"
}

// leaves drops tests that only hold subtests, and tests that a further run
// repeats: the worse outcome stays.
func leaves(all []outcome) []outcome {
	parents := map[string]bool{}
	rank := map[string]int{"pass": 0, "skip": 1, "fail": 2}
	best := map[string]outcome{}
	var order []string
	for _, o := range all {
		if i := strings.LastIndexByte(o.Test, '/'); i >= 0 {
			for j := range o.Test {
				if o.Test[j] == '/' {
					parents[o.Package+"\x00"+o.Test[:j]] = true
				}
			}
		}
		key := o.Package + "\x00" + o.Test
		old, ok := best[key]
		if !ok {
			order = append(order, key)
		}
		if !ok || rank[o.Action] > rank[old.Action] {
			best[key] = o
		}
	}
	var out []outcome
	for _, k := range order {
		if !parents[k] || best[k].Action == "fail" && !slices.ContainsFunc(all, func(o outcome) bool {
			return o.Action == "fail" && o.Package == best[k].Package && strings.HasPrefix(o.Test, best[k].Test+"/")
		}) {
			out = append(out, best[k])
		}
	}
	return out
}

// report prints the sum and returns the exit code.
func report(w io.Writer, all []outcome, never *regexp.Regexp) int {
	count := map[string]int{}
	skips := map[string][]string{}
	var bad []string
	for _, o := range leaves(all) {
		name := strings.TrimPrefix(o.Package, "redoubt.dev/redoubt/") + " " + o.Test
		count[o.Action]++
		switch o.Action {
		case "fail":
			bad = append(bad, strings.TrimSpace(name+" "+o.Reason))
		case "skip":
			skips[o.Reason] = append(skips[o.Reason], name)
			if never != nil && never.MatchString(o.Reason) {
				bad = append(bad, fmt.Sprintf("%s must not skip on this machine: %s", name, o.Reason))
			}
		}
	}
	if len(skips) > 0 {
		fmt.Fprintln(w, "\nskipped:")
		var reasons []string
		for r := range skips {
			reasons = append(reasons, r)
		}
		sort.Strings(reasons)
		for _, r := range reasons {
			fmt.Fprintf(w, "  %3d  %s\n", len(skips[r]), r)
			for _, name := range skips[r][:min(3, len(skips[r]))] {
				fmt.Fprintf(w, "         %s\n", name)
			}
		}
	}
	if len(bad) > 0 {
		fmt.Fprintln(w, "\nfailed:")
		for _, b := range bad {
			fmt.Fprintln(w, "  "+b)
		}
	}
	fmt.Fprintf(w, "\n%d tests ran: %d passed, %d failed, %d skipped\n", count["pass"]+count["fail"], count["pass"], count["fail"], count["skip"])
	if len(bad) > 0 || count["pass"] == 0 {
		return 1
	}
	return 0
}
