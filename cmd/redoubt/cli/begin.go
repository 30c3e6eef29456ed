package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"redoubt.dev/redoubt/control"
)

// begun is what became of beginning a fleet.
type begun struct {
	context string // the administrator's context, a file
	before  bool   // the fleet was there already
	running bool   // so was its server, at work: nothing was changed
}

// beginFleet makes the first server's data directory and its administrator's
// context: "admin" of this user where cfg names no file, and then the current one
// unless one was chosen. The context's place is seen to first, so that a user who
// has none yet, or no leave to write there, leaves no half of a fleet behind.
func (a *app) beginFleet(cfg control.InitConfig) (begun, error) {
	cs, noPlace := a.contexts()
	if cfg.AdminContext == "" {
		if noPlace != nil {
			return begun{}, fmt.Errorf("%w, or say where the administrator's goes: --admin-context FILE", noPlace)
		}
		if err := os.MkdirAll(cs.dir, 0o700); err != nil {
			return begun{}, fmt.Errorf("make the directory of contexts: %w; mend that, or name a file elsewhere: --admin-context FILE", err)
		}
		cfg.AdminContext = cs.path("admin")
	} else if dir := filepath.Dir(cfg.AdminContext); !exists(dir) {
		return begun{}, fmt.Errorf("--admin-context %s: there is no directory %s; make it first", cfg.AdminContext, dir)
	}
	b := begun{context: cfg.AdminContext}
	_, _, err := control.Member(cfg.Dir)
	b.before = err == nil
	err = control.Init(cfg)
	if errors.Is(err, control.ErrRunning) {
		b.running = true
		return b, nil
	}
	if err != nil {
		if _, _, member := control.Member(cfg.Dir); member != nil && exists(cfg.Dir) {
			err = fmt.Errorf("%w; the fleet has not begun: when that is mended, run the same again", err)
		}
		return b, err
	}
	if noPlace != nil || b.context != cs.path("admin") {
		return b, nil
	}
	if current, err := cs.current(); err == nil && current == "" {
		return b, cs.use("admin")
	}
	return b, nil
}
