package containerd

import (
	"fmt"
	"regexp"

	"redoubt.dev/redoubt/agent/driver"
)

// How the runtimes say that the workload's program cannot be run: runsc at
// start, runc at create.
var commandFaults = []struct {
	says *regexp.Regexp
	code int
	why  string // of what the program's name and the rest are put into
}{
	{regexp.MustCompile(`error finding executable "([^"]*)" in PATH (\[[^\]]*\])`), 127, "the program %q is not in the image's PATH %s"},
	{regexp.MustCompile(`failed to load ([^:]+): (no such file or directory)`), 127, "the program %q cannot be run: %s"},
	{regexp.MustCompile(`failed to load ([^:]+): ([a-z ]+)`), 126, "the program %q cannot be run: %s"},
	{regexp.MustCompile(`exec: "([^"]*)": (executable file not found in \$PATH)`), 127, "the program %q cannot be run: %s"},
	{regexp.MustCompile(`exec: "([^"]*)": stat [^:]+: (no such file or directory)`), 127, "the program %q cannot be run: %s"},
	{regexp.MustCompile(`exec: "([^"]*)": ([a-z ]+)`), 126, "the program %q cannot be run: %s"},
}

// commandFault tells whether a runtime refused to start because of the
// workload's program; nil if for another reason.
func commandFault(err error) *driver.CommandError {
	for _, f := range commandFaults {
		if m := f.says.FindStringSubmatch(err.Error()); m != nil {
			return &driver.CommandError{Code: f.code, Reason: fmt.Sprintf(f.why, m[1], m[2])}
		}
	}
	return nil
}
