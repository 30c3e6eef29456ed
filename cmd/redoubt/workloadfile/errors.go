package workloadfile

import (
	"fmt"
	"slices"
	"strings"
)

// Error is one thing that is wrong, at a place.
type Error struct {
	File         string
	Workload     string // its name, if it could be read
	Line, Column int
	Message      string
}

// Error says whose, where and what: `web: line 4: …  (web.yml:4:3)`.
func (e Error) Error() string {
	whose := e.Workload
	if whose == "" {
		whose = e.File
	}
	return fmt.Sprintf("%s: line %d: %s (%s:%d:%d)", whose, e.Line, e.Message, e.File, e.Line, e.Column)
}

// Errors are in the order of their lines.
type Errors []Error

func (es Errors) Error() string {
	var lines []string
	for _, e := range es {
		if e.Line == 0 {
			lines = append(lines, e.Message)
			continue
		}
		lines = append(lines, e.Error())
	}
	return strings.Join(lines, "\n")
}

// limited sorts by place and keeps MaxErrors, saying how many there were more.
func (es Errors) limited() Errors {
	slices.SortStableFunc(es, func(a, b Error) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Column - b.Column
	})
	es = slices.Compact(es)
	if more := len(es) - MaxErrors; more > 0 {
		es = append(es[:MaxErrors:MaxErrors], Error{File: es[0].File, Message: fmt.Sprintf("… and %d more", more)})
	}
	return es
}
