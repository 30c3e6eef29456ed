package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// page writes benchmarks.md and its plots from benchmarks.json: a section for
// each benchmark, its figures as a table, their ratios as bars, and its curves.
func page(dir string) error {
	all, err := recall(dir)
	if err != nil {
		return err
	}
	old, _ := filepath.Glob(filepath.Join(dir, "benchmarks*.svg"))
	for _, f := range old {
		if err := os.Remove(f); err != nil {
			return err
		}
	}
	var b strings.Builder
	b.WriteString("# Benchmarks\n\n" +
		"Made by `make bench PAGE=docs` (`go run ./integration/bench -page docs`), which notes what\n" +
		"was measured in [benchmarks.json](benchmarks.json) and makes this page and its plots\n" +
		"from it; with names it measures those anew and keeps the rest. Each figure stands beside\n" +
		"what it is held against: a peer or a bound measured in the same run, or an aim. Where\n" +
		"pairs were taken in turn, the ratio is the median of the pairs, with the bounds of 95 %\n" +
		"confidence. The machine is small and shared; ratios are worth more than milliseconds.\n")
	if more, err := os.ReadFile(filepath.Join(dir, "benchmarks.in.md")); err == nil {
		b.WriteString("\n" + string(more))
	}
	for _, k := range benchmarks {
		t, ok := all[k.name]
		if !ok {
			continue
		}
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n`bench %s`, %s", k.title, strings.TrimSpace(k.about), k.name, t.Date)
		if t.Commit != "" {
			fmt.Fprintf(&b, " at %s", t.Commit)
		}
		fmt.Fprintf(&b, ", %d cores of %s, Linux %s, in %s", t.Cores, t.Arch, t.Linux, t.Took)
		if t.Quick {
			b.WriteString("; **a quick run**, of few rounds")
		}
		if t.Load > 2*float64(t.Cores) {
			fmt.Fprintf(&b, "; **on a machine that was busy with other work**, at a load of %.0f", t.Load)
		}
		b.WriteString(".\n\n| figure | value | held against | its value | ratio |\n|---|---|---|---|---|\n")
		for _, f := range t.Figures {
			fmt.Fprintf(&b, "| %s | %s |%s\n", f.Name, strings.TrimSpace(fmt.Sprintf("%s %s", number(f.Value), f.Unit)), held(f))
		}
		stem := "benchmarks-" + strings.ReplaceAll(k.name, "/", "-")
		plots := t.Plots
		if p, any := ratios(t.Figures); any {
			plots = append([]plot{p}, plots...)
		}
		for i, p := range plots {
			name := stem + ".svg"
			if i > 0 {
				name = fmt.Sprintf("%s-%d.svg", stem, i+1)
			}
			if err := os.WriteFile(filepath.Join(dir, name), []byte(p.svg()), 0o644); err != nil {
				return err
			}
			fmt.Fprintf(&b, "\n![%s](%s)\n", p.Title, name)
		}
	}
	return os.WriteFile(filepath.Join(dir, "benchmarks.md"), []byte(b.String()), 0o644)
}

// held is the part of a row that says against what.
func held(f figure) string {
	if f.Peer == "" {
		return " | | |"
	}
	ratio := ""
	if f.Ratio != 0 {
		ratio = fmt.Sprintf("%.2f", f.Ratio)
	}
	if f.High > 0 {
		ratio += fmt.Sprintf(" (%.2f to %.2f)", f.Low, f.High)
	}
	return fmt.Sprintf(" %s | %s | %s |", f.Peer, number(f.Bound), ratio)
}

// number has four digits that mean something, and all those of a whole number.
func number(v float64) string {
	if v == float64(int64(v)) && v < 1e9 && v > -1e9 {
		return fmt.Sprintf("%d", int64(v))
	}
	return fmt.Sprintf("%.4g", v)
}
