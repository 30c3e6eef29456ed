package cli

import (
	"bytes"
	"cmp"
	"io"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
)

// maxLine is how much of a line without an end is held.
const maxLine = 64 << 10

// nameColours are those that are told apart on dark and on light.
var nameColours = []string{"\x1b[36m", "\x1b[33m", "\x1b[32m", "\x1b[35m", "\x1b[34m", "\x1b[31m"}

// lineWriter writes whole lines, each with what belongs before it, or
// everything as it comes if nothing does. Where a second instance speaks up,
// names are written from then on.
type lineWriter struct {
	w      io.Writer
	prefix bool
	times  bool
	colour bool

	first string // the instance that spoke first
	lines map[string]*partLine
}

// partLine is what an instance wrote of a line without its end.
type partLine struct {
	data   []byte
	time   time.Time // of its beginning; zero: not known
	colour string
}

func (p *lineWriter) write(instance string, data []byte, at *timestamppb.Timestamp) error {
	if len(data) == 0 {
		return nil
	}
	if p.first == "" {
		p.first = instance
	}
	var out []byte
	if !p.prefix && instance != p.first {
		p.prefix = true
	}
	if !p.prefix && !p.times {
		_, err := p.w.Write(data)
		return err
	}
	if p.lines == nil {
		p.lines = map[string]*partLine{}
	}
	l := p.lines[instance]
	if l == nil {
		l = &partLine{colour: nameColours[len(p.lines)%len(nameColours)]}
		p.lines[instance] = l
	}
	for len(data) > 0 {
		if len(l.data) == 0 {
			l.time = time.Time{}
			if at != nil {
				l.time = at.AsTime()
			}
		}
		i := bytes.IndexByte(data, '\n')
		if i < 0 {
			l.data = append(l.data, data...)
			// A line without an end must not be held for ever.
			if len(l.data) > maxLine {
				out = p.line(out, instance, l)
			}
			break
		}
		l.data = append(l.data, data[:i]...)
		out = p.line(out, instance, l)
		data = data[i+1:]
	}
	_, err := p.w.Write(out)
	return err
}

// line appends l with all that belongs before it, and empties it.
func (p *lineWriter) line(out []byte, instance string, l *partLine) []byte {
	if p.prefix {
		if p.colour {
			out = append(append(append(out, l.colour...), instance...), "\x1b[0m  "...)
		} else {
			out = append(append(out, instance...), "  "...)
		}
	}
	if p.times {
		if l.time.IsZero() {
			out = append(out, "-                     "...)
		} else {
			out = append(l.time.UTC().AppendFormat(out, time.RFC3339), "  "...)
		}
	}
	out = append(append(out, l.data...), '\n')
	l.data = l.data[:0]
	return out
}

// cut ends the line of an instance that is missing its rest.
func (p *lineWriter) cut(instance string) error {
	if l := p.lines[instance]; l != nil && len(l.data) > 0 {
		_, err := p.w.Write(p.line(nil, instance, l))
		return err
	}
	return nil
}

// flush writes what came without an end of line.
func (p *lineWriter) flush() error {
	type left struct {
		instance string
		l        *partLine
	}
	var all []left
	for i, l := range p.lines {
		if len(l.data) > 0 {
			all = append(all, left{i, l})
		}
	}
	slices.SortFunc(all, func(a, b left) int { return cmp.Compare(a.instance, b.instance) })
	var out []byte
	for _, x := range all {
		out = p.line(out, x.instance, x.l)
	}
	_, err := p.w.Write(out)
	return err
}
