//go:build ignore

// Command terminal draws the text of a terminal, colours and all, as an SVG:
//
//	go run docs/gen/terminal.go -title 'make demo' <demo.txt >docs/demo.svg
//
// It knows the escape sequences that redoubt itself writes: bold, faint and the
// sixteen colours. Everything else that begins with an escape is dropped.
package main

import (
	"bufio"
	"encoding/xml"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	cell   = 8.4 // width of a character, px
	line   = 18  // height of a line, px
	margin = 16
	bar    = 34 // of the window
)

// colours of codes 30 to 37 and 90 to 97, on a dark ground.
var colours = map[int]string{
	30: "#4c566a", 31: "#e06c75", 32: "#98c379", 33: "#e5c07b", 34: "#61afef", 35: "#c678dd", 36: "#56b6c2", 37: "#d7dae0",
	90: "#7f848e", 91: "#e06c75", 92: "#98c379", 93: "#e5c07b", 94: "#61afef", 95: "#c678dd", 96: "#56b6c2", 97: "#ffffff",
}

type style struct {
	colour      string
	bold, faint bool
}

func (s style) attributes() string {
	var b strings.Builder
	if s.colour != "" {
		fmt.Fprintf(&b, ` fill="%s"`, s.colour)
	}
	if s.bold {
		b.WriteString(` font-weight="bold"`)
	}
	if s.faint {
		b.WriteString(` opacity="0.65"`)
	}
	return b.String()
}

// run is text of one style at a column.
type run struct {
	column int
	text   string
	style  style
}

func main() {
	log.SetFlags(0)
	title := flag.String("title", "", "what stands in the window's bar")
	columns := flag.Int("columns", 80, "least width")
	flag.Parse()
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		log.Fatal(err)
	}
	out := bufio.NewWriter(os.Stdout)
	draw(out, *title, *columns, strings.Split(strings.TrimRight(string(text), "\n"), "\n"))
	if err := out.Flush(); err != nil {
		log.Fatal(err)
	}
}

func draw(w io.Writer, title string, columns int, lines []string) {
	var parsed [][]run
	var s style
	for _, l := range lines {
		var runs []run
		var width int
		runs, width, s = split(l, s)
		columns = max(columns, width)
		parsed = append(parsed, runs)
	}
	width, height := int(float64(columns)*cell)+2*margin, bar+len(lines)*line+margin
	fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" role="img" aria-label="%s">`+"\n", width, height, escape(title))
	fmt.Fprintf(w, `<rect width="%d" height="%d" rx="8" fill="#1e2127"/>`+"\n", width, height)
	for i, c := range []string{"#e06c75", "#e5c07b", "#98c379"} {
		fmt.Fprintf(w, `<circle cx="%d" cy="17" r="6" fill="%s"/>`+"\n", 20+20*i, c)
	}
	fmt.Fprintf(w, `<g font-family="ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace" font-size="14" fill="#d7dae0" xml:space="preserve">`+"\n")
	fmt.Fprintf(w, `<text x="%d" y="22" text-anchor="middle" fill="#7f848e">%s</text>`+"\n", width/2, escape(title))
	for i, runs := range parsed {
		for _, r := range runs {
			if strings.TrimSpace(r.text) == "" {
				continue
			}
			// The length is stated, so that a font of another width keeps columns.
			fmt.Fprintf(w, `<text x="%.1f" y="%d" textLength="%.1f" lengthAdjust="spacingAndGlyphs"%s>%s</text>`+"\n",
				margin+float64(r.column)*cell, bar+(i+1)*line-4, float64(utf8.RuneCountInString(r.text))*cell, r.style.attributes(), escape(r.text))
		}
	}
	fmt.Fprintln(w, "</g>\n</svg>")
}

func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s))
	return b.String()
}

// split cuts a line into runs of one style; the style goes on in the next line.
// Columns that only blanks fill separate runs too, so that tables stay aligned.
func split(l string, s style) (runs []run, column int, after style) {
	var text strings.Builder
	start := 0
	end := func() {
		if t := strings.TrimRight(text.String(), " "); t != "" {
			runs = append(runs, run{start, t, s})
		}
		text.Reset()
		start = column
	}
	for len(l) > 0 {
		if l[0] == 0x1b {
			end()
			l = sequence(l, &s)
			continue
		}
		if strings.HasPrefix(l, "  ") {
			end()
			for len(l) > 0 && l[0] == ' ' {
				l = l[1:]
				column++
			}
			start = column
			continue
		}
		r, size := utf8.DecodeRuneInString(l)
		l = l[size:]
		switch {
		case r == '\t':
			end()
			column += 8 - column%8
			start = column
		case r >= ' ':
			text.WriteRune(r)
			column++
		}
	}
	end()
	return runs, column, s
}

// sequence reads one escape sequence at the beginning of l and returns the rest.
func sequence(l string, s *style) string {
	if len(l) < 2 || l[1] != '[' {
		return l[1:]
	}
	for i := 2; i < len(l); i++ {
		if c := l[i]; c >= '@' && c <= '~' {
			if c == 'm' {
				for _, p := range strings.Split(l[2:i], ";") {
					n, _ := strconv.Atoi(p)
					switch {
					case n == 0:
						*s = style{}
					case n == 1:
						s.bold = true
					case n == 2:
						s.faint = true
					case n == 22:
						s.bold, s.faint = false, false
					case n == 39:
						s.colour = ""
					case colours[n] != "":
						s.colour = colours[n]
					}
				}
			}
			return l[i+1:]
		}
	}
	return ""
}
