package containerd

import (
	"errors"
	"testing"
)

// The texts are what runsc 20260905 and runc 1.5.2 say.
func TestWhatTheProgramIsAtFaultFor(t *testing.T) {
	for _, tt := range []struct {
		says string
		code int
		why  string
	}{
		{`OCI runtime start failed: starting container: starting root container: starting sandbox: error finding executable "nosuch" in PATH [/bin /usr/bin]: no such file or directory`,
			127, `the program "nosuch" is not in the image's PATH [/bin /usr/bin]`},
		{`OCI runtime start failed: starting container: starting root container: starting sandbox: creating process: failed to load /nosuch/x: no such file or directory`,
			127, `the program "/nosuch/x" cannot be run: no such file or directory`},
		{`OCI runtime start failed: starting container: starting root container: starting sandbox: creating process: failed to load /etc/passwd: permission denied`,
			126, `the program "/etc/passwd" cannot be run: permission denied`},
		{`OCI runtime create failed: runc create failed: unable to start container process: error during container init: exec: "nosuch": executable file not found in $PATH`,
			127, `the program "nosuch" cannot be run: executable file not found in $PATH`},
		{`OCI runtime create failed: runc create failed: unable to start container process: error during container init: exec: "/nosuch/x": stat /nosuch/x: no such file or directory`,
			127, `the program "/nosuch/x" cannot be run: no such file or directory`},
		{`OCI runtime create failed: runc create failed: unable to start container process: error during container init: exec: "/etc/passwd": permission denied`,
			126, `the program "/etc/passwd" cannot be run: permission denied`},
		{`OCI runtime create failed: open /proc/self/fd: no such file or directory`, 0, ""},
		{`context deadline exceeded`, 0, ""},
	} {
		got := commandFault(errors.New(tt.says))
		switch {
		case got == nil && tt.code != 0, got != nil && (got.Code != tt.code || got.Reason != tt.why):
			t.Errorf("%s\nis %+v, want %d %s", tt.says, got, tt.code, tt.why)
		}
	}
}
