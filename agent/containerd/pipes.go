package containerd

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/containerd/containerd/v2/pkg/cio"
	"golang.org/x/sys/unix"

	"redoubt.dev/redoubt/agent/driver"
)

// pipes are the named pipes between an exec and its shim. Each is open at both
// ends before the exec starts. containerd's client opens its ends in the
// background: under load that came after the end of a short process, and what
// that had written was gone.
type pipes struct {
	set   *cio.FIFOSet
	files []*os.File // what Close closes
	// held are writing ends that stand in for the shim's until it has its own.
	held    []*os.File
	started chan struct{}
	once    sync.Once
	copies  sync.WaitGroup // of output
}

// newPipes is a cio.Creator for an exec with these streams. What it made is in
// made: Cancel it as soon as the exec has started.
func newPipes(dir string, s driver.Streams, terminal bool, made **pipes) cio.Creator {
	return func(id string) (_ cio.IO, err error) {
		set, err := cio.NewFIFOSetInDir(dir, id, terminal)
		if err != nil {
			return nil, fmt.Errorf("make pipes: %w", err)
		}
		p := &pipes{set: set, started: make(chan struct{})}
		defer func() {
			if err != nil {
				p.Cancel()
				err = errors.Join(err, p.Close())
			}
		}()
		if s.Stdin == nil {
			set.Stdin = ""
		} else if err := p.input(set.Stdin, s.Stdin); err != nil {
			return nil, err
		}
		if err := p.output(set.Stdout, discard(s.Stdout)); err != nil {
			return nil, err
		}
		if terminal {
			set.Stderr = ""
		} else if err := p.output(set.Stderr, discard(s.Stderr)); err != nil {
			return nil, err
		}
		*made = p
		return p, nil
	}
}

// open opens without waiting for another end.
func (p *pipes) open(path string, flag int) (*os.File, error) {
	f, err := os.OpenFile(path, flag|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open pipe: %w", err)
	}
	p.files = append(p.files, f)
	return f, nil
}

func mkfifo(path string) error {
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return fmt.Errorf("make pipe %s: %w", path, err)
	}
	return nil
}

func (p *pipes) input(path string, from io.Reader) error {
	if err := mkfifo(path); err != nil {
		return err
	}
	// Both ways, so that what is written before the shim reads is kept.
	w, err := p.open(path, os.O_RDWR)
	if err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(w, from)
		<-p.started
		_ = w.Close()
	}()
	return nil
}

func (p *pipes) output(path string, to io.Writer) error {
	if err := mkfifo(path); err != nil {
		return err
	}
	r, err := p.open(path, os.O_RDONLY)
	if err != nil {
		return err
	}
	w, err := p.open(path, os.O_WRONLY)
	if err != nil {
		return err
	}
	p.held = append(p.held, w)
	p.copies.Go(func() { _, _ = io.Copy(to, r) })
	return nil
}

// Cancel lets go of the shim's ends: the shim has its own now, or will never
// have. Output that was written is still read.
func (p *pipes) Cancel() {
	p.once.Do(func() {
		close(p.started)
		for _, w := range p.held {
			_ = w.Close()
		}
	})
}

// Config implements cio.IO.
func (p *pipes) Config() cio.Config { return p.set.Config }

// Wait implements cio.IO: all output has been passed on.
func (p *pipes) Wait() { p.copies.Wait() }

// Close implements cio.IO. It ends what still reads or writes.
func (p *pipes) Close() error {
	for _, f := range p.files {
		_ = f.Close()
	}
	return p.set.Close()
}
