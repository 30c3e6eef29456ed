package cli

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"gopkg.in/yaml.v3"

	"redoubt.dev/redoubt/control/fleet"
)

var formats = []string{"table", "wide", "json", "yaml", "name"}

func (a *app) formatted(c *cobra.Command) {
	c.Flags().StringVarP(&a.format, "output", "o", "table", "`FORMAT`: table, wide, json, yaml or name")
}

// output writes one command's data in the format that was asked for.
type output struct {
	w      io.Writer
	format string
	width  int // of the terminal; 0: do not shorten
	colour bool
}

func (a *app) output() (*output, error) {
	format := a.format
	if format == "" {
		format = "table"
	}
	if !slices.Contains(formats, format) {
		hint := ""
		if near := fleet.Nearest(format, formats); near != "" {
			hint = fmt.Sprintf(". Did you mean %q?", near)
		}
		return nil, fmt.Errorf("-o %q is not table, wide, json, yaml or name%s", format, hint)
	}
	o := &output{w: a.Stdout, format: format}
	o.width, o.colour = a.screen()
	if format == "wide" {
		o.width = 0
	}
	return o, nil
}

// screen is the width of standard output, 0 if it is no terminal, and whether
// it takes colours.
func (a *app) screen() (width int, colour bool) {
	if f, ok := a.Stdout.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		width = 80
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
			width = w
		}
		colour = a.Getenv("NO_COLOR") == "" && a.Getenv("TERM") != "dumb"
	}
	if n, err := strconv.Atoi(a.Getenv("COLUMNS")); err == nil && n >= 40 {
		width = n
	}
	return width, colour
}

// prose is the width to wrap text at.
func (a *app) prose() int {
	if w, _ := a.screen(); w > 0 {
		return min(w, 120)
	}
	return 80
}

func (o *output) structured() bool { return o.format == "json" || o.format == "yaml" }

// message writes a protobuf message, or what fill makes of it as a table.
func (o *output) message(m proto.Message, fill func(*table)) error {
	if !o.structured() {
		return o.table(fill)
	}
	raw, err := protojson.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode as JSON: %w", err)
	}
	return o.raw(raw)
}

// values is message for values that are no protobuf messages.
func (o *output) values(v any, fill func(*table)) error {
	if !o.structured() {
		return o.table(fill)
	}
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode as JSON: %w", err)
	}
	return o.raw(raw)
}

func (o *output) raw(raw []byte) error {
	var b bytes.Buffer
	if o.format == "json" {
		// protojson varies its spaces on purpose; this does not.
		if err := json.Indent(&b, raw, "", "  "); err != nil {
			return fmt.Errorf("encode as JSON: %w", err)
		}
		b.WriteByte('\n')
	} else {
		var n yaml.Node // keeps the order of the fields
		if err := yaml.Unmarshal(raw, &n); err != nil {
			return fmt.Errorf("encode as YAML: %w", err)
		}
		blockStyle(&n)
		enc := yaml.NewEncoder(&b)
		enc.SetIndent(2)
		if err := enc.Encode(&n); err != nil {
			return fmt.Errorf("encode as YAML: %w", err)
		}
	}
	_, err := o.w.Write(b.Bytes())
	return err
}

// blockStyle takes the marks of JSON off; a text that needs quotes keeps them.
func blockStyle(n *yaml.Node) {
	n.Style = 0
	for _, c := range n.Content {
		blockStyle(c)
	}
}

func (o *output) table(fill func(*table)) error {
	t := &table{out: o}
	fill(t)
	return t.write()
}

// cell is text with a colour that does not count as width.
type cell struct {
	text, colour string
}

// table holds rows until the widths of its columns are known.
type table struct {
	out     *output
	heads   []string
	narrow  int // columns before the wide ones
	names   []string
	rows    [][]cell
	nothing string
	fitted  int
}

// head names the columns; wide adds those that only -o wide shows.
func (t *table) head(heads ...string) { t.heads, t.narrow = heads, len(heads) }

// fit shortens the last column so that rows fit n columns where the screen's
// width is not known: in a pipe, too.
func (t *table) fit(n int)            { t.fitted = n }
func (t *table) wide(heads ...string) { t.heads = append(t.heads, heads...) }

// row adds a row; cells are strings or cells. name is what -o name prints.
func (t *table) row(name string, cells ...any) {
	row := make([]cell, len(cells))
	for i, c := range cells {
		switch c := c.(type) {
		case cell:
			row[i] = cell{clean(c.text), c.colour}
		default:
			row[i] = cell{text: clean(fmt.Sprint(c))}
		}
	}
	t.names, t.rows = append(t.names, clean(name)), append(t.rows, row)
}

// empty is what a table without rows says, on a person's screen only.
func (t *table) empty(text string) { t.nothing = text }

func (t *table) write() error {
	var b strings.Builder
	if t.out.format == "name" {
		for _, n := range t.names {
			b.WriteString(n + "\n")
		}
		_, err := io.WriteString(t.out.w, b.String())
		return err
	}
	if len(t.rows) == 0 && t.nothing != "" {
		_, err := io.WriteString(t.out.w, t.nothing+"\n")
		return err
	}
	columns := t.narrow
	if t.out.format == "wide" {
		columns = len(t.heads)
	}
	widths := make([]int, columns)
	for i := range widths {
		widths[i] = width(t.heads[i])
		for _, r := range t.rows {
			widths[i] = max(widths[i], width(r[i].text))
		}
	}
	line := func(get func(i int) cell) {
		var l strings.Builder
		used := 0
		for i := range columns {
			c := get(i)
			last := i == columns-1
			if limit := cmp.Or(t.out.width, t.fitted); last && limit > 0 && t.out.format != "wide" {
				c.text = shorten(c.text, max(limit-used, 12))
			}
			l.WriteString(t.out.paint(c))
			if !last {
				l.WriteString(strings.Repeat(" ", widths[i]-width(c.text)+2))
			}
			used += widths[i] + 2
		}
		b.WriteString(strings.TrimRight(l.String(), " ") + "\n")
	}
	line(func(i int) cell { return cell{text: t.heads[i]} })
	for _, r := range t.rows {
		line(func(i int) cell { return r[i] })
	}
	_, err := io.WriteString(t.out.w, b.String())
	return err
}

const (
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
	bold   = "\x1b[1m"
	reset  = "\x1b[0m"
)

// paint is the only way to a colour: what else looks like one is cleaned away.
func (o *output) paint(c cell) string {
	c.text = clean(c.text)
	if !o.colour || c.colour == "" || c.text == "" {
		return c.text
	}
	return c.colour + c.text + reset
}
