package main

import (
	"fmt"
	"html"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// page writes docs/benchmarks.md and docs/benchmarks.svg: all figures of one
// run, and their ratios as bars.
func page(dir string, figures []figure) error {
	var b strings.Builder
	fmt.Fprintf(&b, `# Benchmarks

Made by `+"`go run ./integration/bench -page docs`"+` on %s, %d cores of %s, Linux %s.
Each figure stands beside what it is held against: a peer or a bound measured in
the same run, or an aim. A ratio below one is better than that. Where pairs were
taken in turn, the ratio is the median of the pairs, with the bounds of 95 %%
confidence. The machine is shared; ratios are worth more than milliseconds.

![ratios](benchmarks.svg)

| figure | value | held against | its value | ratio |
|---|---|---|---|---|
`, time.Now().UTC().Format(time.DateOnly), runtime.NumCPU(), runtime.GOARCH, release())
	for _, f := range figures {
		sure := ""
		if f.High > 0 {
			sure = fmt.Sprintf(" (%.2f to %.2f)", f.Low, f.High)
		}
		fmt.Fprintf(&b, "| %s | %.4g %s | %s | %.4g | %.2f%s |\n", f.Name, f.Value, f.Unit, f.Peer, f.Bound, f.Ratio, sure)
	}
	if more, err := os.ReadFile(filepath.Join(dir, "benchmarks.in.md")); err == nil {
		b.WriteString("\n" + string(more))
	}
	if err := os.WriteFile(filepath.Join(dir, "benchmarks.md"), []byte(b.String()), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "benchmarks.svg"), []byte(bars(figures)), 0o644)
}

func release() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	version, _, _ := strings.Cut(unix.ByteSliceToString(u.Release[:]), "-")
	return version
}

// bars draws the ratios; the line is at one, and what is longer than three is
// cut and says so by its number.
func bars(figures []figure) string {
	const left, unit, row, most = 430, 110, 22, 3.0
	height := row*len(figures) + 30
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">
<rect width="100%%" height="100%%" fill="white"/>
`, left+int(most*unit)+70, height)
	for i, f := range figures {
		y := 10 + row*i
		colour := "#3b7d4f"
		if f.Ratio > 1 {
			colour = "#b5653a"
		}
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text><rect x="%d" y="%d" width="%.0f" height="14" fill="%s"/><text x="%.0f" y="%d">%.2f</text>
`, left-8, y+12, html.EscapeString(f.Name), left, y, min(f.Ratio, most)*unit, colour, float64(left)+min(f.Ratio, most)*unit+6, y+12, f.Ratio)
	}
	fmt.Fprintf(&b, `<line x1="%d" y1="4" x2="%d" y2="%d" stroke="black" stroke-dasharray="3 3"/>
</svg>
`, left+unit, left+unit, height-20)
	return b.String()
}
