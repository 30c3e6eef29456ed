package main

import (
	"fmt"
	"html"
	"math"
	"strings"
	"time"
)

// plot is a picture of one benchmark: curves over x, or bars.
type plot struct {
	Title string  `json:"title"`
	X     string  `json:"x,omitempty"`
	Y     string  `json:"y,omitempty"`
	Lines []curve `json:"lines,omitempty"`
	Bars  []bar   `json:"bars,omitempty"`
	// Mark is a line across that is named: an aim.
	Mark     float64 `json:"mark,omitempty"`
	MarkName string  `json:"markName,omitempty"`
}

// curve is one line; points are x, y.
type curve struct {
	Name   string       `json:"name"`
	Points [][2]float64 `json:"points"`
}

type bar struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
}

// moreIsBetter ends the peer of a figure whose ratio says the opposite of the
// others'.
const moreIsBetter = "(more is better)"

// ratios are the figures' as bars.
func ratios(figures []figure) (p plot, any bool) {
	p = plot{Title: "ratio to what it is held against", Mark: 1}
	for _, f := range figures {
		if f.Ratio > 0 && !strings.HasSuffix(f.Peer, moreIsBetter) {
			p.Bars = append(p.Bars, bar{f.Name, f.Ratio})
		}
	}
	return p, len(p.Bars) > 0
}

// spread is the distribution of measurements: which share took at most so long.
func spread(name string, took []time.Duration) curve {
	c := curve{Name: name}
	sorted := sortedCopy(took)
	step := max(1, len(sorted)/100)
	for i := 0; i < len(sorted); i += step {
		c.Points = append(c.Points, [2]float64{ms(sorted[i]), 100 * float64(i+1) / float64(len(sorted))})
	}
	if n := len(sorted); n > 0 {
		c.Points = append(c.Points, [2]float64{ms(sorted[n-1]), 100})
	}
	return c
}

func (p plot) svg() string {
	if len(p.Bars) > 0 {
		return p.bars()
	}
	return p.lines()
}

const svgHead = `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">
<rect width="100%%" height="100%%" fill="white"/>
`

// bars draws them; the line is at the mark, and what is longer than three times
// that is cut and says so by its number.
func (p plot) bars() string {
	const left, unit, row, most = 430, 110, 22, 3.0
	height := row*len(p.Bars) + 30
	var b strings.Builder
	fmt.Fprintf(&b, svgHead, left+int(most*unit)+70, height)
	for i, r := range p.Bars {
		y := 10 + row*i
		colour := "#3b7d4f"
		if r.Value > 1 {
			colour = "#b5653a"
		}
		long := min(r.Value/p.Mark, most) * unit
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text><rect x="%d" y="%d" width="%.0f" height="14" fill="%s"/><text x="%.0f" y="%d">%.2f</text>
`, left-8, y+12, html.EscapeString(r.Name), left, y, long, colour, left+long+6, y+12, r.Value)
	}
	fmt.Fprintf(&b, `<line x1="%d" y1="4" x2="%d" y2="%d" stroke="black" stroke-dasharray="3 3"/>
</svg>
`, left+unit, left+unit, height-20)
	return b.String()
}

var colours = []string{"#2f6f9f", "#b5653a", "#3b7d4f", "#7a4f9a", "#8a8a2f", "#555555"}

// lines draws curves with both axes from zero.
func (p plot) lines() string {
	const left, top, width, height = 60, 30, 560, 260
	var maxX, maxY float64
	for _, c := range p.Lines {
		for _, q := range c.Points {
			maxX, maxY = max(maxX, q[0]), max(maxY, q[1])
		}
	}
	stepX, stepY := tick(max(maxX, 1e-9)), tick(max(maxY, p.Mark, 1e-9))
	maxX, maxY = math.Ceil(maxX/stepX)*stepX, math.Ceil(max(maxY, p.Mark)/stepY)*stepY
	maxX, maxY = max(maxX, stepX), max(maxY, stepY)
	x := func(v float64) float64 { return left + v/maxX*width }
	y := func(v float64) float64 { return top + height - v/maxY*height }
	var b strings.Builder
	fmt.Fprintf(&b, svgHead, left+width+40, top+height+60+16*len(p.Lines))
	fmt.Fprintf(&b, `<text x="%d" y="18" font-weight="bold">%s</text>
`, left, html.EscapeString(p.Title))
	for v := 0.0; v <= maxX*1.0001; v += stepX {
		fmt.Fprintf(&b, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#e4e4e4"/><text x="%.1f" y="%d" text-anchor="middle">%.4g</text>
`, x(v), top, x(v), top+height, x(v), top+height+16, v)
	}
	for v := 0.0; v <= maxY*1.0001; v += stepY {
		fmt.Fprintf(&b, `<line x1="%d" y1="%.1f" x2="%d" y2="%.1f" stroke="#e4e4e4"/><text x="%d" y="%.1f" text-anchor="end">%.4g</text>
`, left, y(v), left+width, y(v), left-6, y(v)+4, v)
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text><text x="%d" y="18" text-anchor="end">%s</text>
`, left+width, top+height+32, html.EscapeString(p.X), left+width, html.EscapeString(p.Y))
	if p.Mark > 0 {
		fmt.Fprintf(&b, `<line x1="%d" y1="%.1f" x2="%d" y2="%.1f" stroke="black" stroke-dasharray="4 3"/><text x="%d" y="%.1f" text-anchor="end">%s</text>
`, left, y(p.Mark), left+width, y(p.Mark), left+width-4, y(p.Mark)-4, html.EscapeString(p.MarkName))
	}
	for i, c := range p.Lines {
		colour := colours[i%len(colours)]
		var points []string
		for _, q := range c.Points {
			points = append(points, fmt.Sprintf("%.1f,%.1f", x(q[0]), y(q[1])))
		}
		legend := top + height + 48 + 16*i
		fmt.Fprintf(&b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="1.5"/><rect x="%d" y="%d" width="14" height="3" fill="%s"/><text x="%d" y="%d">%s</text>
`, strings.Join(points, " "), colour, left, legend, colour, left+22, legend+5, html.EscapeString(c.Name))
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// tick is a round step that gives four to ten of them.
func tick(most float64) float64 {
	step := math.Pow(10, math.Floor(math.Log10(most)))
	for _, f := range []float64{0.1, 0.2, 0.5, 1} {
		if most/(step*f) <= 10 {
			return step * f
		}
	}
	return step
}
