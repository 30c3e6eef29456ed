package cli_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// A file that cannot be read to its end breaks the stream: the tar inside must
// not take what it has for all there is.
func TestHalfOfACopyHasNoEnd(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 64<<20); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, t.TempDir())
	w.workloads[key("", "web")] = &redoubtv1.StoredWorkload{Spec: &redoubtv1.Workload{Name: "web"}}
	w.workloads[key("", "web-1")] = w.workloads[key("", "web")]
	w.tarEnds = make(chan error, 1)
	w.tarReads = func() { _ = os.Truncate(file, 1<<20) } // some is sent, and the rest is gone
	_, stderr, code := run(t, t.Context(), contextFor(t, w, time.Hour, start(t, w, "s1")), "cp", file, "web:/srv")
	if code != 2 || !strings.Contains(stderr, "became shorter") || !strings.Contains(stderr, "copied to web-1:/srv so far is incomplete") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	select {
	case err := <-w.tarEnds:
		if err == nil || errors.Is(err, io.EOF) {
			t.Error("tar was told that this was all")
		}
	case <-time.After(20 * time.Second):
		t.Error("tar still waits")
	}
}
