package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

// row is what came of the faults of one cell.
type row struct {
	cell          cell
	faults        int
	missed        int // the step was over before the blow
	median, worst time.Duration
}

// reckoning is what came of a run.
type reckoning struct {
	long         time.Duration
	least, total int // faults that each cell, and the run, must have
	rows         []row
	faults       int
	starts       int
	workloads    int
	beats        int
	verdicts     []string
}

func (c *chaos) reckon(long time.Duration, least, total int) reckoning {
	r := reckoning{long: long, least: least, total: total, faults: len(c.faults), workloads: len(c.promises), verdicts: c.verdicts}
	for _, k := range c.cells {
		one := row{cell: k, missed: c.missed[k.String()]}
		var took []time.Duration
		for _, f := range c.faults {
			if f.Cell == k.String() {
				took = append(took, f.Took)
			}
		}
		slices.Sort(took)
		if one.faults = len(took); one.faults > 0 {
			one.median, one.worst = took[one.faults/2], took[one.faults-1]
		}
		r.rows = append(r.rows, one)
	}
	for _, s := range c.rec.look("") {
		r.starts++
		r.beats += len(s.beats)
	}
	return r
}

// err is nil if the run shows what it is to show.
func (r reckoning) err() error {
	few := 0
	for _, one := range r.rows {
		if one.faults < r.least {
			few++
		}
	}
	switch {
	case len(r.verdicts) > 0:
		return fmt.Errorf("%d things were not as promised", len(r.verdicts))
	case few > 0:
		return fmt.Errorf("%d cells had fewer than %d faults", few, r.least)
	case r.faults < r.total:
		return fmt.Errorf("%d faults, %d are needed", r.faults, r.total)
	}
	return nil
}

// sum is the run in a sentence.
func (r reckoning) sum() string {
	return fmt.Sprintf("%d faults in %v; %d starts of %d workloads were heard %d times.", r.faults, r.long, r.starts, r.workloads, r.beats)
}

const wholly = "Nothing ran twice, nothing was lost, nothing was left."

func (r reckoning) print(w io.Writer) {
	fmt.Fprintf(w, "%-56s %6s %8s %8s %8s\n", "CELL", "FAULTS", "MEDIAN", "WORST", "STATED")
	for _, one := range r.rows {
		median, worst := "-", "-"
		if one.faults > 0 {
			median, worst = seconds(one.median), seconds(one.worst)
		}
		fmt.Fprintf(w, "%-56s %6d %8s %8s %8s\n", one.cell, one.faults, median, worst, seconds(one.cell.within))
	}
	fmt.Fprintf(w, "\n%s\n", r.sum())
	for _, v := range r.verdicts {
		fmt.Fprintln(w, "✗ "+v)
	}
	if r.err() == nil {
		fmt.Fprintln(w, "✓ "+wholly)
	}
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

// What a page has around the table, so that a run can replace it.
const (
	pageFrom = "<!-- faults -->"
	pageTo   = "<!-- end of faults -->"
)

// page replaces the table in a Markdown file, whatever the verdicts: what is
// written there is what the last run showed.
func (r reckoning) page(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	head, rest, ok := strings.Cut(string(data), pageFrom)
	_, tail, also := strings.Cut(rest, pageTo)
	if !ok || !also {
		return fmt.Errorf("%s has no line %s before a line %s", path, pageFrom, pageTo)
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, []byte(head+pageFrom+"\n"+r.markdown()+pageTo+tail), info.Mode().Perm())
}

func (r reckoning) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n", r.sum())
	b.WriteString("| struck | with | in | under | faults | median | worst | stated |\n|---|---|---|---|---:|---:|---:|---:|\n")
	for _, one := range r.rows {
		median, worst := "–", "–"
		if one.faults > 0 {
			median, worst = seconds(one.median), seconds(one.worst)
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %d | %s | %s | %s |\n", one.cell.who(), one.cell.how(), one.cell.where(), cmp.Or(one.cell.runtime, "–"),
			one.faults, median, worst, seconds(one.cell.within))
	}
	b.WriteString("\n")
	switch err := r.err(); {
	case err == nil:
		b.WriteString("The recorder's verdict: " + strings.ToLower(wholly[:1]) + wholly[1:] + "\n")
	default:
		fmt.Fprintf(&b, "This run failed: %v.\n", err)
		for _, v := range r.verdicts {
			fmt.Fprintf(&b, "- %s\n", v)
		}
	}
	return b.String()
}

func (c *chaos) keep(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	e := json.NewEncoder(f)
	for _, fault := range c.faults {
		if err := e.Encode(fault); err != nil {
			return err
		}
	}
	return errors.Join(f.Sync(), f.Close())
}
