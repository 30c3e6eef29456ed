package cli

import (
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"
)

// meter shows how far something is that is waited for: on a terminal as a bar
// in one line that is written over, elsewhere as a line for every change.
type meter struct {
	w     io.Writer // nil: nobody wants to know
	width int       // of the terminal; 0: it is none
	last  string
	open  bool // a bar stands in the current line
}

func (a *app) meter() *meter {
	if a.quiet {
		return &meter{}
	}
	m := &meter{w: a.Stderr}
	if f, ok := a.Stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) && a.Getenv("TERM") != "dumb" {
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w >= 40 {
			m.width = w
		}
	}
	return m
}

const barWidth = 12

// show says that done of total are there, in words.
func (m *meter) show(done, total int, text string) {
	if m.w == nil || text == m.last {
		return
	}
	m.last = text
	text = cleanLines(text)
	if m.width == 0 {
		fmt.Fprintln(m.w, text)
		return
	}
	full := barWidth
	if total > 0 {
		full = min(max(done, 0)*barWidth/total, barWidth)
	}
	bar := "[" + strings.Repeat("#", full) + strings.Repeat(".", barWidth-full) + "] "
	fmt.Fprint(m.w, "\r\x1b[K"+bar+shorten(strings.Join(strings.Fields(text), " "), m.width-len(bar)-1))
	m.open = true
}

// end leaves the last words where the bar was.
func (m *meter) end() {
	if m.open {
		fmt.Fprint(m.w, "\r\x1b[K"+cleanLines(m.last)+"\n")
		m.open = false
	}
}
