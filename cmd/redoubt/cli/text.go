package cli

import (
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"redoubt.dev/redoubt/control/fleet"
)

// clean makes text that came from a server, a node or an instance fit for a
// terminal: what would move the cursor, change colours or turn the direction of
// writing is a question mark. It is one line.
func clean(s string) string { return strings.Map(cleanRune, s) }

// cleanLines is clean for text that may be lines.
func cleanLines(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' {
			return r
		}
		return cleanRune(r)
	}, s)
}

func cleanRune(r rune) rune {
	switch {
	case r == '\n' || r == '\t':
		return ' '
	case unicode.IsControl(r), unicode.Is(unicode.Bidi_Control, r), r == '\u2028', r == '\u2029', r == utf8.RuneError:
		return '?'
	}
	return r
}

func width(s string) int { return utf8.RuneCountInString(s) }

// shorten cuts s to at most n runes, with an ellipsis.
func shorten(s string, n int) string {
	if width(s) <= n {
		return s
	}
	r := []rune(s)
	return strings.TrimRight(string(r[:n-1]), " ") + "…"
}

// wrap breaks text at blanks into lines of at most n runes; a longer word
// stands alone. There is at least one line.
func wrap(text string, n int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		word = clean(word)
		switch {
		case line == "":
			line = word
		case width(line)+1+width(word) <= n:
			line += " " + word
		default:
			lines = append(lines, line)
			line = word
		}
	}
	return append(lines, line)
}

// hang writes label and then text, wrapped at n and indented below its start.
func hang(label, text string, n int) string {
	var b strings.Builder
	for i, l := range wrap(text, max(n-width(label), 24)) {
		if i == 0 {
			b.WriteString(label)
		} else {
			b.WriteString(strings.Repeat(" ", width(label)))
		}
		b.WriteString(l + "\n")
	}
	return b.String()
}

// age is a duration as a person says it: the largest unit that fits, two below
// ten minutes.
func age(d time.Duration) string {
	switch d = d.Round(time.Second); {
	case d < 0:
		return "0s"
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < 10*time.Minute && d%time.Minute >= time.Second:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dd", d/(24*time.Hour))
}

// list joins up to n texts and counts the rest; n 0 joins all.
func list(texts []string, n int) string {
	if n > 0 && len(texts) > n {
		return fmt.Sprintf("%s +%d", strings.Join(texts[:n], " "), len(texts)-n)
	}
	return strings.Join(texts, " ")
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// cores and bytes are short forms for tables: "1.5", "3.8Gi".
func cores(millis int64) string {
	if millis%1000 == 0 {
		return fmt.Sprint(millis / 1000)
	}
	return strings.TrimRight(fmt.Sprintf("%.2f", float64(millis)/1000), "0")
}

func size(bytes int64) string {
	units := []string{"", "Ki", "Mi", "Gi", "Ti"}
	v, u := float64(bytes), 0
	for v >= 1000 && u < len(units)-1 {
		v, u = v/1024, u+1
	}
	if v < 10 && v != float64(int64(v)) {
		return strings.TrimSuffix(fmt.Sprintf("%.1f", v), ".0") + units[u]
	}
	return fmt.Sprintf("%.0f%s", v, units[u])
}

// named is a workload's or instance's name, with its namespace if it is not
// the default one.
func named(namespace, name string) string {
	if namespace == "" || namespace == fleet.DefaultNamespace {
		return name
	}
	return namespace + "/" + name
}
