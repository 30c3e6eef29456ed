package fake

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"redoubt.dev/redoubt/agent/driver"
)

// find returns a container, running if so asked.
func (d *Driver) find(ctx context.Context, op string, id driver.ID, running bool) (*container, error) {
	if err := d.up(ctx); err != nil {
		return nil, wrap(op, id, err)
	}
	d.host.mu.Lock()
	defer d.host.mu.Unlock()
	c := d.n.containers[id]
	switch {
	case c == nil:
		return nil, wrap(op, id, driver.ErrNotFound)
	case running && (c.Exit != nil || c.Orphan):
		return nil, wrap(op, id, driver.ErrNotRunning)
	case running && c.silent:
		return nil, wrap(op, id, driver.ErrUnavailable)
	}
	return c, nil
}

// Stop implements driver.Driver.
func (d *Driver) Stop(ctx context.Context, id driver.ID, grace time.Duration) error {
	c, err := d.find(ctx, "stop", id, false)
	if err != nil {
		return err
	}
	if grace > 0 && !c.silent && !c.stuck {
		c.proc.resume()
		c.proc.signal("SIGTERM")
		end := time.NewTimer(grace)
		defer end.Stop()
		select {
		case <-c.done:
			return nil
		case <-end.C:
		case <-ctx.Done():
			return wrap("stop", id, ctx.Err())
		}
	}
	c.proc.kill()
	<-c.done
	return nil
}

// Delete implements driver.Driver.
func (d *Driver) Delete(ctx context.Context, id driver.ID) error {
	c, err := d.find(ctx, "delete", id, false)
	if errors.Is(err, driver.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	c.proc.kill()
	<-c.done
	d.host.mu.Lock()
	if d.n.containers[id] == c {
		delete(d.n.containers, id)
	}
	d.host.mu.Unlock()
	d.notify()
	return nil
}

// Signal implements driver.Driver.
func (d *Driver) Signal(ctx context.Context, id driver.ID, signal string) error {
	if signalOf(signal) == 0 {
		return wrap("signal", id, fmt.Errorf("signal %q is not known", signal))
	}
	c, err := d.find(ctx, "signal", id, true)
	if err != nil {
		return err
	}
	c.proc.signal(signal)
	return nil
}

// Pause implements driver.Driver.
func (d *Driver) Pause(ctx context.Context, id driver.ID) error {
	return d.freeze(ctx, "pause", id, driver.StatePaused, (*process).pause)
}

// Resume implements driver.Driver.
func (d *Driver) Resume(ctx context.Context, id driver.ID) error {
	return d.freeze(ctx, "resume", id, driver.StateRunning, (*process).resume)
}

func (d *Driver) freeze(ctx context.Context, op string, id driver.ID, state driver.State, f func(*process)) error {
	c, err := d.find(ctx, op, id, true)
	if err != nil {
		return err
	}
	f(c.proc)
	d.host.mu.Lock()
	if c.Exit == nil {
		c.State = state
	}
	d.host.mu.Unlock()
	d.notify()
	return nil
}

// Stats implements driver.Driver: a program that spins uses what its limit
// lets it.
func (d *Driver) Stats(ctx context.Context, id driver.ID) (driver.Stats, error) {
	c, err := d.find(ctx, "measure", id, true)
	if err != nil {
		return driver.Stats{}, err
	}
	cpu := c.proc.cpu()
	if limit := c.spec.Limits.CPUMillis; limit > 0 {
		cpu = cpu * time.Duration(limit) / 1000
	}
	return driver.Stats{CPU: cpu, Memory: 1 << 20, Pids: 1}, nil
}

// Exec implements driver.Driver.
func (d *Driver) Exec(ctx context.Context, id driver.ID, s driver.ExecSpec, streams driver.Streams) (int, error) {
	c, err := d.find(ctx, "exec in", id, true)
	if err != nil {
		return 0, err
	}
	if len(s.Command) == 0 {
		return 0, wrap("exec in", id, errors.New("no command was given"))
	}
	p := newProcess(streams.Stdin, orDiscard(streams.Stdout), orDiscard(streams.Stderr))
	defer p.kill()
	done := make(chan int, 1)
	d.host.wg.Go(func() {
		code, _ := p.run(s.Command)
		done <- code
	})
	signals := streams.Signals
	for {
		select {
		case code := <-done:
			return code, nil
		case name, ok := <-signals:
			if !ok {
				signals = nil
				continue
			}
			p.signal(name)
		case <-c.done:
			return 0, wrap("exec in", id, driver.ErrNotRunning)
		case <-ctx.Done():
			return 0, wrap("exec in", id, ctx.Err())
		}
	}
}

func orDiscard(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}
