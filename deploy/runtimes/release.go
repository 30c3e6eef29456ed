package runtimes

import (
	"bufio"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// release lets go of what was read of this program's own constants, the carried
// parts above all: 25 MB that no agent reads a second time would be counted as
// its memory for as long as it lives. They are clean pages of its file: what is
// needed of them again comes from there. It is a hint, and no error if refused.
func release() {
	for _, m := range constants() {
		// By number: a pointer to memory that is not Go's must not be made.
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED)
	}
}

type mapping struct{ start, end uintptr }

// constants are the mappings of this program's file that it can only read.
func constants() (out []mapping) {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return nil
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return nil
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// START-END PERMISSIONS OFFSET DEVICE INODE PATH
		line := lines.Text()
		fields := strings.Fields(line)
		if len(fields) < 6 || fields[1] != "r--p" || !strings.HasSuffix(line, " "+self) {
			continue
		}
		from, to, _ := strings.Cut(fields[0], "-")
		start, err1 := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		if err1 == nil && err2 == nil && start < end {
			out = append(out, mapping{uintptr(start), uintptr(end)})
		}
	}
	return out
}
