package conformance

import (
	"bytes"
	"fmt"
	"os"
)

// alive tells whether a process of that pid is there and not merely waiting to
// be reaped.
func alive(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, after, _ := bytes.Cut(data[bytes.LastIndexByte(data, ')'):], []byte(" "))
	return !bytes.HasPrefix(after, []byte("Z"))
}
