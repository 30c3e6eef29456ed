// Command bench measures what is said about speed, size and what stays behind.
// `go run ./integration/bench` runs every benchmark, with names only those (a
// name takes those below it along: latency is latency and latency/dev). -o json
// prints for programs, -quick is for trying: few rounds and a short churn.
//
// Each figure is printed with its unit, and with what it is held against, which
// is measured in the same run on the same host: a peer or a physical bound, or
// else an aim. The ratio is the figure over that.
//
// -page FOLDER notes what was measured in FOLDER/benchmarks.json, where it takes
// the place of what the same benchmark gave before and leaves the others', and
// makes the page and its plots anew from all of it. With -render only that is
// done. It needs root and bin/redoubt, and nothing else should run meanwhile.
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
	"time"
)

// figure is one line of the result.
type figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	// Peer is what it is held against; Bound is the peer's value in Unit. Both
	// are empty for what stands for itself.
	Peer  string  `json:"peer,omitempty"`
	Bound float64 `json:"bound"`
	Ratio float64 `json:"ratio"`
	// Low and High bound the ratio with 95 % confidence, where it is of pairs
	// taken in turn.
	Low  float64 `json:"low,omitempty"`
	High float64 `json:"high,omitempty"`
}

// against makes a figure. One that has a peer of zero has no ratio, unless it is
// zero too and so just what it should be.
func against(name string, value float64, unit, peer string, bound float64) figure {
	f := figure{Name: name, Value: value, Unit: unit, Peer: peer, Bound: bound}
	switch {
	case bound != 0:
		f.Ratio = value / bound
	case value == 0 && peer != "":
		f.Ratio = 1
	}
	return f
}

// settings are what a person asks of a run.
type settings struct {
	quick bool
	// churn is how long instances come and go; memory is what sandboxes may
	// take of the host before it counts as short.
	churn  time.Duration
	memory int64
	// instances on each node of the churn.
	instances int
}

// of is n, or less in a quick run.
func (s settings) of(n, quick int) int {
	if s.quick {
		return quick
	}
	return n
}

// result is what one benchmark found.
type result struct {
	Figures []figure `json:"figures"`
	Plots   []plot   `json:"plots,omitempty"`
}

func (r *result) add(f ...figure) { r.Figures = append(r.Figures, f...) }

type benchmark struct {
	name string
	// title and about say on the page what was measured, and how.
	title, about string
	run          func(context.Context, settings, *result) error
}

var benchmarks = []benchmark{
	{"start", "Starting a container", aboutStart, benchStart},
	{"latency", "From apply to running", aboutLatency, benchLatency},
	{"latency/dev", "A fleet of one machine", aboutDev, benchDev},
	{"net", "Through a published port", aboutNet, benchNet},
	{"density", "Sandboxes on a node", aboutDensity, benchDensity},
	{"density/churn", "Two hundred instances that come and go", aboutChurn, benchChurn},
	{"footprint", "At rest", aboutFootprint, benchFootprint},
	{"cli", "The command", aboutCLI, benchCLI},
	{"propose", "An acknowledged write", aboutPropose, benchPropose},
	{"gossip", "A dead node", aboutGossip, benchGossip},
}

func main() {
	if err := command(os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func command(args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(stderr)
	var set settings
	format := fs.String("o", "", "json, for programs")
	doc := fs.String("page", "", "note the figures in `FOLDER`/benchmarks.json, and make the page and its plots")
	render := fs.Bool("render", false, "measure nothing: make the page of -page anew")
	memory := fs.Int("memory", 2048, "`MB` that sandboxes may take of the host's memory")
	fs.DurationVar(&set.churn, "churn", 10*time.Minute, "how long instances come and go")
	fs.IntVar(&set.instances, "instances", 200, "how many instances each node of the churn has, at least 20")
	fs.BoolVar(&set.quick, "quick", false, "few rounds; a churn of at most 40 s and 20 instances; 512 MB")
	fs.Usage = func() {
		fmt.Fprintf(stderr, "Usage: bench [NAME...] [flags]\n\nNames: %s\n\n", strings.Join(names(), ", "))
		fs.PrintDefaults()
	}
	// Flags may stand behind names.
	var asked []string
	for rest := args; ; {
		if err := fs.Parse(rest); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				return nil
			}
			return err
		}
		if fs.NArg() == 0 {
			break
		}
		asked, rest = append(asked, fs.Arg(0)), fs.Args()[1:]
	}
	set.memory = int64(*memory) << 20
	if set.instances < 20 || set.instances > 250 {
		return fmt.Errorf("-instances %d: 20 to 250", set.instances)
	}
	if set.quick {
		set.instances = min(set.instances, 20)
		set.churn, set.memory = min(set.churn, 40*time.Second), min(set.memory, 512<<20)
	}
	if *format != "" && *format != "json" {
		return fmt.Errorf("-o %q: only json", *format)
	}
	chosen, err := choose(asked)
	if err != nil {
		return err
	}
	if *render {
		if *doc == "" || len(asked) > 0 {
			return errors.New("-render needs -page FOLDER, and no names")
		}
		return page(*doc)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return bench(ctx, stdout, stderr, chosen, set, *format, *doc)
}

func names() (out []string) {
	for _, b := range benchmarks {
		out = append(out, b.name)
	}
	return out
}

// choose are the benchmarks of these names and those below them; all if none.
func choose(asked []string) (out []benchmark, err error) {
	for _, a := range asked {
		if !slices.ContainsFunc(benchmarks, func(b benchmark) bool { return below(b.name, a) }) {
			return nil, fmt.Errorf("there is no benchmark %q; there are %s", a, strings.Join(names(), ", "))
		}
	}
	for _, b := range benchmarks {
		if len(asked) == 0 || slices.ContainsFunc(asked, func(a string) bool { return below(b.name, a) }) {
			out = append(out, b)
		}
	}
	return out, nil
}

func below(name, a string) bool { return name == a || strings.HasPrefix(name, a+"/") }

// bench runs them one after the other. One that fails hinders no other, and its
// figures so far are shown but not noted.
func bench(ctx context.Context, stdout, stderr io.Writer, chosen []benchmark, set settings, format, doc string) error {
	all := []figure{}
	var errs []error
	begun, busy := time.Now(), load()
	for _, b := range chosen {
		from := time.Now()
		var r result
		err := b.run(ctx, set, &r)
		took := time.Since(from)
		all = append(all, r.Figures...)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("%s: %w", b.name, err))
		case doc != "":
			errs = append(errs, note(doc, b.name, set, busy, took, r))
		}
		fmt.Fprintf(stderr, "%s took %v\n", b.name, took.Round(time.Second))
		if ctx.Err() != nil {
			break
		}
	}
	fmt.Fprintf(stderr, "all took %v\n", time.Since(begun).Round(time.Second))
	if doc != "" {
		errs = append(errs, page(doc))
	}
	return errors.Join(append(errs, show(stdout, all, format))...)
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
		bound, ratio := "", ""
		if f.Peer != "" {
			bound = fmt.Sprintf("%.4g", f.Bound)
		}
		if f.Ratio != 0 {
			ratio = fmt.Sprintf("%.2f", f.Ratio)
		}
		if f.High > 0 {
			ratio += fmt.Sprintf(" (%.2f to %.2f)", f.Low, f.High)
		}
		fmt.Fprintf(t, "%s\t%.4g\t%s\t%s\t%s\t%s\n", f.Name, f.Value, f.Unit, f.Peer, bound, ratio)
	}
	return t.Flush()
}
