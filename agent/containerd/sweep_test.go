package containerd

import (
	"os"
	"path/filepath"
	"testing"
)

// A daemon that died while it removed a container leaves files that no later
// daemon looks at: its hidden bundle, and what runsc noted.
func TestWhatADyingDaemonHidIsSwept(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	host := t.TempDir()
	// In place of the run directory, the socket of a host's own containerd.
	cfg := Config{Node: "n1", Dir: filepath.Join(host, "dir"), HostAddress: filepath.Join(host, "run", "c.sock")}
	s := &sweeper{cfg: cfg}
	const id, other = "rd-one", "rd-one-more"
	root := filepath.Join(cfg.runtimeRoot(), cfg.namespace())
	t.Cleanup(func() { _ = os.RemoveAll(cfg.runDir()); _ = os.Remove(runRoot) })
	files := func(id string) []string {
		bundle, work := cfg.bundle(id), filepath.Join(cfg.Dir, "root", "io.containerd.runtime.v2.task", cfg.namespace(), id)
		return []string{
			filepath.Join(bundle, "config.json"),
			filepath.Join(filepath.Dir(bundle), "."+id, "config.json"),
			filepath.Join(work, "x"),
			filepath.Join(filepath.Dir(work), "."+id, "x"),
			filepath.Join(root, id, "state.json"),
			filepath.Join(root, id+"_sandbox:"+id+".state"),
			filepath.Join(root, id+"_sandbox:"+id+".lock"),
			filepath.Join(root, "runsc-"+id+".sock"),
		}
	}
	for _, f := range append(files(id), files(other)...) {
		if err := os.MkdirAll(filepath.Dir(f), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.container(id); err != nil {
		t.Fatal(err)
	}
	for _, f := range files(id) {
		if exists(f) {
			t.Errorf("left: %s", f)
		}
	}
	for _, f := range files(other) {
		if !exists(f) {
			t.Errorf("another's was taken away: %s", f)
		}
	}
}
