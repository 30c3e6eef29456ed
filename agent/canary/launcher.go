package canary

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/isolation"
)

// Image is the reference under which the canary's image is carried.
const Image = "carried.redoubt/canary:1"

// Label marks a canary's container, so that whoever lists the node's
// containers can tell it from a workload's. Its value is the runtime.
const Label = "redoubt.canary"

// Limits of a canary: small, and enough for every runtime.
const (
	canaryMemory = 64 << 20
	canaryPids   = 64
)

// OnDriver launches canaries on a driver, hardened as every workload is. dir
// takes their output, a file each, for as long as they run.
func OnDriver(d driver.Driver, dir string) Launcher { return onDriver{d, dir} }

type onDriver struct {
	driver driver.Driver
	dir    string
}

func (l onDriver) Launch(ctx context.Context, id string, runtime isolation.Name, variant string, args []string) (Task, error) {
	if _, err := l.driver.EnsureImage(ctx, Image, driver.PullIfNotPresent, nil); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make room for the canary's answer: %w", err)
	}
	t := &driverTask{driver: l.driver, id: driver.ID(id), log: filepath.Join(l.dir, id+".log")}
	c, err := l.driver.Start(ctx, driver.Spec{
		ID: t.id, Labels: map[string]string{Label: string(runtime)},
		Runtime: runtime, Variant: variant,
		Image: Image, Args: args, ReadOnlyRoot: true,
		Limits:  driver.Limits{Memory: canaryMemory, Pids: canaryPids},
		LogPath: t.log,
	})
	if err != nil {
		cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), killWait)
		defer cancel()
		return nil, errors.Join(err, t.Kill(cleanup))
	}
	t.pid = c.Pid
	return t, nil
}

type driverTask struct {
	driver driver.Driver
	id     driver.ID
	pid    int
	log    string
}

func (t *driverTask) Pid() int { return t.pid }

// Output polls the file that the container's output goes to: it is a plain
// file, which is what the driver promises.
func (t *driverTask) Output(ctx context.Context) ([]byte, error) {
	for pause := 2 * time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		text, err := t.read()
		if err != nil {
			return nil, err
		}
		if bytes.IndexByte(text, '\n') >= 0 {
			return text, nil
		}
		if len(text) > maxAnswer {
			return nil, fmt.Errorf("the canary wrote %d bytes without an end", len(text))
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the canary's answer, %d bytes so far: %w", len(text), ctx.Err())
		case <-time.After(pause):
		}
		if pause == 100*time.Millisecond && t.exited(ctx) {
			if text, err := t.read(); err != nil || bytes.IndexByte(text, '\n') >= 0 {
				return text, err
			}
			return nil, fmt.Errorf("the canary ended without an answer; it wrote %q", clip(text))
		}
	}
}

func (t *driverTask) read() ([]byte, error) {
	f, err := os.Open(t.log)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the canary's answer: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxAnswer+2))
	if err != nil {
		return nil, fmt.Errorf("read the canary's answer: %w", err)
	}
	return text, nil
}

func (t *driverTask) exited(ctx context.Context) bool {
	all, err := t.driver.List(ctx)
	if err != nil {
		return false
	}
	for _, c := range all {
		if c.ID == t.id {
			return c.State == driver.StateExited
		}
	}
	return true
}

func (t *driverTask) Kill(ctx context.Context) error {
	err := t.driver.Delete(ctx, t.id)
	if rerr := os.Remove(t.log); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return err
}

func clip(b []byte) []byte { return b[:min(len(b), 200)] }
