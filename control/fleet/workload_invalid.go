package fleet

import (
	"fmt"
	"strconv"
	"strings"
)

// FieldError is one thing that is wrong with a workload. Path is the field's
// in the words of the file: "containers[0].resources.limits.memory"; a map's
// key follows a dot as it stands. Problem is the rest of the sentence.
type FieldError struct {
	Path, Problem string
}

func (e FieldError) Error() string { return e.Path + ": " + e.Problem }

// InvalidWorkload holds everything that is wrong with a workload, in the order
// of its fields.
type InvalidWorkload struct {
	Name   string // of the workload, "" if it has none
	Fields []FieldError
}

func (e *InvalidWorkload) Error() string {
	var b strings.Builder
	name := e.Name
	if name == "" {
		name = "workload"
	}
	// It goes to terminals and logs as it is.
	if quoted := strconv.Quote(name); quoted != `"`+name+`"` {
		name = quoted
	}
	for i, f := range e.Fields {
		if i > 0 {
			b.WriteString("\n")
		}
		fmt.Fprintf(&b, "%s: %s", name, f.Error())
	}
	return b.String()
}
