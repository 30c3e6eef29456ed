package containerd

import (
	"strings"
	"syscall"
	"testing"
)

func TestAnExitSaysWhatHappened(t *testing.T) {
	for _, tt := range []struct{ got, want string }{
		{memoryReason(64*mebi, 0, false), "memory limit of 64 MiB reached"},
		{memoryReason(64*mebi, 32*mebi, true), "memory limit of 64 MiB reached, the sandbox's own 32 MiB not counted; that ends the whole sandbox, whichever process used the memory"},
		{memoryReason(0, 0, false), "memory limit reached"},
		{signalReason(int(syscall.SIGKILL)), "ended by signal SIGKILL"},
		{signalReason(int(syscall.SIGSEGV)), "ended by signal SIGSEGV: it touched memory that it does not have"},
		{signalReason(63), "ended by signal 63"},
	} {
		if tt.got != tt.want {
			t.Errorf("got %q, want %q", tt.got, tt.want)
		}
	}
	if s := signalReason(int(syscall.SIGSYS)); !strings.Contains(s, "seccomp") {
		t.Errorf("SIGSYS is told as %q", s)
	}
}
