package containerd

import "testing"

// FuzzHost: what the kernel says of its hierarchies, and signals that people ask for.
func FuzzHost(f *testing.F) {
	f.Add([]byte("34 25 0:29 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n"), "TERM")
	f.Add([]byte("- - -"), "SIGRTMIN+99")
	f.Fuzz(func(t *testing.T, mountinfo []byte, signal string) {
		parseHierarchies(mountinfo)
		if s, err := parseSignal(signal); err == nil && (s < 0 || s > 64) {
			t.Errorf("signal %q is %d", signal, s)
		}
	})
}
