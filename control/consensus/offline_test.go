package consensus

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"redoubt.dev/redoubt/control/state"
)

// TestAReplacementCutShortKeepsTheFormerLog: whenever it dies and however often
// it is repeated, the log that was there before is there still.
func TestAReplacementCutShortKeepsTheFormerLog(t *testing.T) {
	whole := exchange
	defer func() { exchange = whole }()
	died := errors.New("the power is cut")
	for name, cut := range map[string]func(a, b string) error{
		"before the exchange": func(string, string) error { return died },
		"after the exchange":  func(a, b string) error { return errors.Join(whole(a, b), died) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "raft")
			now := time.Now()
			replace := func() error {
				now = now.Add(time.Second)
				_, err := ReplaceOffline(dir, Identity{ClusterID: "c1", ServerID: "s1"}, "127.0.0.1:1", state.NewStore(), 7, 3, now, quiet())
				return err
			}
			if err := replace(); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "former"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				exchange = cut
				if err := replace(); !errors.Is(err, died) {
					t.Fatal(err)
				}
			}
			exchange = whole
			if err := replace(); err != nil {
				t.Fatal(err)
			}
			if kept, _ := filepath.Glob(dir + ".before-*/former"); len(kept) != 1 {
				all, _ := filepath.Glob(dir + "*/*")
				t.Errorf("the former log is at %q; there are %q", kept, all)
			}
			store := state.NewStore()
			if have, err := ReadOffline(dir, store, quiet()); err != nil || have.Index != 7 || have.ServerID != "s1" {
				t.Errorf("what came instead: %+v, %v", have, err)
			}
		})
	}
}
