package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
)

const columns = 80

// show writes for a person who watches.
type show struct {
	w      io.Writer
	colour bool
	step   int
}

func newShow(f *os.File) *show {
	return &show{w: f, colour: os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && term.IsTerminal(int(f.Fd()))}
}

const (
	bold  = "1"
	dim   = "2"
	green = "32"
	red   = "31"
	cyan  = "36"
)

func (s *show) paint(code, text string) string {
	if !s.colour || text == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// Errors of writing are left: a closed terminal comes as a signal.
func (s *show) line(text string) { fmt.Fprintln(s.w, text) }

func (s *show) headline(text string) {
	s.step++
	head := fmt.Sprintf("── %d  %s ", s.step, text)
	s.line("")
	s.line(s.paint(bold, head+strings.Repeat("─", max(3, columns-len([]rune(head))))))
}

func (s *show) note(format string, args ...any) {
	for _, l := range wrap(fmt.Sprintf(format, args...), columns) {
		s.line(l)
	}
}

func (s *show) ok(format string, args ...any) {
	for i, l := range wrap(fmt.Sprintf(format, args...), columns-2) {
		mark := "✓ "
		if i > 0 {
			mark = "  "
		}
		s.line(s.paint(green, mark) + l)
	}
}

// command shows what a person would type.
func (s *show) command(words ...string) {
	lines := []string{"$"}
	for _, w := range words {
		last := len(lines) - 1
		room := columns
		if len([]rune(lines[last]))+1+len([]rune(w)) > room-2 && lines[last] != "$" {
			lines[last] += ` \`
			lines = append(lines, "   ")
			last++
		}
		lines[last] += " " + w
	}
	s.line("")
	for _, l := range lines {
		s.line(s.paint(cyan, l))
	}
}

func (s *show) output(text string) {
	if text = strings.TrimRight(text, "\n"); text != "" {
		s.line(text)
	}
}

func (s *show) fail(err error) int {
	s.line(s.paint(red, "✗ ") + "demo: " + err.Error())
	return 1
}

func (s *show) end(err error) int {
	if err != nil {
		return s.fail(err)
	}
	return 0
}

// quote writes a word as a shell would need it.
func quote(w string) string {
	if w != "" && !strings.ContainsAny(w, " \t\n\"'\\$&|;<>()*?[]#~`!{}") {
		return w
	}
	return "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
}

func quoted(words []string) []string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = quote(w)
	}
	return out
}

// wrap breaks text at blanks; a line that begins with a blank stays as it is.
func wrap(text string, width int) []string {
	var out []string
	for _, para := range strings.Split(text, "\n") {
		if strings.HasPrefix(para, " ") {
			out = append(out, para)
			continue
		}
		line := ""
		for _, w := range strings.Fields(para) {
			switch {
			case line == "":
				line = w
			case len([]rune(line))+1+len([]rune(w)) > width:
				out = append(out, line)
				line = w
			default:
				line += " " + w
			}
		}
		out = append(out, line)
	}
	return out
}

func seconds(d time.Duration) string {
	if d < 100*time.Millisecond {
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}
