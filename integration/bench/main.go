// Command bench measures what is said about speed. `go run ./integration/bench`
// runs every benchmark, with names only those; -o json prints for programs.
//
// Each figure is printed with its unit, and with what it is held against, which
// is measured in the same run on the same host: a peer or a physical bound. The
// ratio is the figure over that.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
)

// figure is one line of the result.
type figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	// Peer is what it is held against; Bound is the peer's value in Unit.
	Peer  string  `json:"peer"`
	Bound float64 `json:"bound"`
	Ratio float64 `json:"ratio"`
	// Low and High bound the ratio with 95 % confidence, where it is of pairs
	// taken in turn.
	Low  float64 `json:"low,omitempty"`
	High float64 `json:"high,omitempty"`
}

// against makes a figure.
func against(name string, value float64, unit, peer string, bound float64) figure {
	f := figure{Name: name, Value: value, Unit: unit, Peer: peer, Bound: bound}
	if bound != 0 {
		f.Ratio = value / bound
	}
	return f
}

type benchmark struct {
	name string
	run  func(context.Context) ([]figure, error)
}

var benchmarks = []benchmark{
	{"start", benchStart}, {"propose", benchPropose}, {"gossip", benchGossip},
	{"footprint", benchFootprint}, {"cli", benchCLI}, {"latency", benchLatency},
}

func main() {
	format := flag.String("o", "", "json, for programs")
	doc := flag.String("page", "", "write the figures into this `FOLDER` too, as benchmarks.md and benchmarks.svg")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := bench(ctx, os.Stdout, flag.Args(), *format, *doc); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func bench(ctx context.Context, w io.Writer, names []string, format, doc string) error {
	var known []string
	for _, b := range benchmarks {
		known = append(known, b.name)
	}
	for _, n := range names {
		if !slices.Contains(known, n) {
			return fmt.Errorf("there is no benchmark %q; there are %s", n, strings.Join(known, ", "))
		}
	}
	if format != "" && format != "json" {
		return fmt.Errorf("-o %q: only json", format)
	}
	figures := []figure{}
	var errs []error
	for _, b := range benchmarks {
		if len(names) > 0 && !slices.Contains(names, b.name) {
			continue
		}
		fs, err := b.run(ctx)
		figures = append(figures, fs...)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", b.name, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	if doc != "" {
		errs = append(errs, page(doc, figures))
	}
	return errors.Join(append(errs, show(w, figures, format))...)
}

func show(w io.Writer, figures []figure, format string) error {
	if format == "json" {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(figures)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tVALUE\tUNIT\tBOUND OR PEER\tITS VALUE\tRATIO")
	for _, f := range figures {
		sure := ""
		if f.High > 0 {
			sure = fmt.Sprintf(" (%.2f to %.2f)", f.Low, f.High)
		}
		fmt.Fprintf(t, "%s\t%.4g\t%s\t%s\t%.4g\t%.2f%s\n", f.Name, f.Value, f.Unit, f.Peer, f.Bound, f.Ratio, sure)
	}
	return t.Flush()
}
