package cli

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// lookEvery is how often one looks without being told of a change: a node's
// silence is no change of the stored state.
const lookEvery = 2 * time.Second

// watch calls look at once and then after every change that the fleet tells
// of, until look is done, fails, or ctx ends.
func (f *connection) watch(ctx context.Context, namespace string, look func(context.Context) (done bool, err error)) error {
	ctx, cancel := context.WithCancel(ctx)
	changed := make(chan struct{}, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			if stream, err := f.Watch(ctx, &redoubtv1.WatchRequest{Namespace: namespace}); err == nil {
				for {
					if _, err := stream.Recv(); err != nil {
						break
					}
					select {
					case changed <- struct{}{}:
					default:
					}
				}
			}
			select { // a server went away; the timer of the loop below looks meanwhile
			case <-ctx.Done():
			case <-time.After(lookEvery / 2):
			}
		}
	})
	defer wg.Wait()
	defer cancel()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		done, err := look(ctx)
		if done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-tick.C:
		}
	}
}

// listing adds the flags of a verb that shows something, and runs it.
func (a *app) listing(c *cobra.Command, show func(ctx context.Context, f *connection, out *output, args []string) error) *cobra.Command {
	a.client(c)
	a.formatted(c)
	watch := c.Flags().BoolP("watch", "w", false, "show it again after every change")
	c.RunE = func(c *cobra.Command, args []string) error {
		out, err := a.output()
		if err != nil {
			return err
		}
		return a.with(c.Context(), func(ctx context.Context, f *connection) error {
			if !*watch {
				return show(ctx, f, out, args)
			}
			return a.redraw(ctx, f, out, func(ctx context.Context, out *output) error { return show(ctx, f, out, args) })
		})
	}
	return c
}

// redraw shows what has changed: on a terminal in the place of what was shown
// before, elsewhere after it.
func (a *app) redraw(ctx context.Context, f *connection, out *output, show func(context.Context, *output) error) error {
	file, ok := a.Stdout.(*os.File)
	terminal := ok && term.IsTerminal(int(file.Fd()))
	var shown []byte
	return f.watch(ctx, a.namespace, func(ctx context.Context) (bool, error) {
		var b bytes.Buffer
		next := *out
		next.w = &b
		if err := show(ctx, &next); err != nil {
			return false, err
		}
		if bytes.Equal(b.Bytes(), shown) {
			return false, nil
		}
		switch {
		case terminal:
			fmt.Fprint(a.Stdout, "\x1b[H\x1b[2J")
		case shown != nil && (out.format == "table" || out.format == "wide"):
			fmt.Fprintln(a.Stdout)
		}
		shown = b.Bytes()
		_, err := a.Stdout.Write(shown)
		return false, err
	})
}

// waiting are the flags of a verb that can wait.
type waiting struct {
	wait    bool
	timeout time.Duration
}

func waitFlags(c *cobra.Command, until string) *waiting {
	w := &waiting{}
	c.Flags().BoolVar(&w.wait, "wait", false, "wait until "+until)
	c.Flags().DurationVar(&w.timeout, "timeout", 5*time.Minute, "how long to wait; 0: for ever")
	return w
}

// deadline returns ctx with the time-out of a wait.
func (w *waiting) deadline(ctx context.Context) (context.Context, context.CancelFunc) {
	if w.timeout <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, w.timeout)
}
