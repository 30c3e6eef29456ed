package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

func (a *app) logsCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "logs NAME", Short: "Print what a workload or an instance wrote", Args: names(1, 1, "a workload or an instance"),
		Long: "Prints what the instances of a workload, or one instance, wrote to standard\n" +
			"output and standard error, over restarts. With several instances each line\n" +
			"begins with its instance.\n\n" +
			"  redoubt logs -f web                  as it is written, new instances too\n" +
			"  redoubt logs web-1 --since 10m       of the last ten minutes\n" +
			"  redoubt logs web-1 --previous        of the run before the last restart\n\n" +
			"Followed output goes on where it was when an agent or a server was away. Times\n" +
			"are the node's, to the second. A node keeps the last 10 to 20 MiB of each\n" +
			"instance; where some is gone before it could be read, that is said.",
	}
	a.client(c)
	a.namespaced(c)
	follow := c.Flags().BoolP("follow", "f", false, "go on as more is written")
	tail := c.Flags().Int32("tail", -1, "only the last `N` lines of each instance; -1: all that is kept")
	since := c.Flags().String("since", "", "only what was written since `WHEN`: 10m ago, or 2026-11-24T10:00:00Z")
	previous := c.Flags().BoolP("previous", "p", false, "what was written before the last restart")
	times := c.Flags().Bool("timestamps", false, "begin each line with the time by which it was written")
	c.RunE = func(c *cobra.Command, args []string) error {
		req := &redoubtv1.LogsRequest{Namespace: a.namespace, Name: args[0], Follow: *follow, Tail: *tail, Previous: *previous}
		if err := sinceWhen(req, *since); err != nil {
			return err
		}
		if *follow && *previous {
			return errors.New("logs: --previous is what an earlier run wrote, which is over; leave out -f")
		}
		return a.with(c.Context(), func(ctx context.Context, f *connection) error {
			several, err := f.several(ctx, a.namespace, args[0])
			if err != nil {
				return fmt.Errorf("logs of %s: %w", args[0], err)
			}
			_, colour := a.screen()
			l := &logReading{app: a, req: req, positions: map[string]*redoubtv1.LogPosition{},
				out: &lineWriter{w: a.Stdout, prefix: several, times: *times, colour: colour}}
			return l.run(ctx, f)
		})
	}
	return c
}

// sinceWhen reads a moment, or how long ago it was. That is judged by the node's
// own clock, which may be another than this machine's.
func sinceWhen(req *redoubtv1.LogsRequest, s string) error {
	if s == "" {
		return nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		req.SinceAgo = durationpb.New(d)
		return nil
	}
	for _, layout := range []string{time.RFC3339Nano, time.DateTime, "2006-01-02T15:04:05", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			req.Since = timestamppb.New(t)
			return nil
		}
	}
	return fmt.Errorf("logs: --since %q is neither how long ago, as in 10m, nor a moment, as in 2026-11-24T10:00:00Z", s)
}

// several tells whether a name means more than one instance that may have
// written something.
func (f *connection) several(ctx context.Context, namespace, name string) (bool, error) {
	resp, err := f.GetWorkload(ctx, &redoubtv1.GetWorkloadRequest{Namespace: namespace, Name: name})
	if status.Code(err) == codes.NotFound {
		return false, nil // an instance, or nothing: the logs themselves will tell
	}
	return len(resp.GetWorkload().GetStatus().GetInstances()) > 1, err
}

// awayFor is how long a followed log waits for any server.
const awayFor = 5 * time.Minute

// logReading is one logs as its user sees it.
type logReading struct {
	*app
	req       *redoubtv1.LogsRequest
	out       *lineWriter
	positions map[string]*redoubtv1.LogPosition // by uid: after what was written
	broken    int                               // instances of which not all came
}

func (l *logReading) run(ctx context.Context, f *connection) (err error) {
	name := l.req.GetName()
	defer func() { err = errors.Join(err, l.out.flush()) }()
	var away time.Time // since when no server answers; zero: one does
	for {
		var wrote bool
		wrote, err = l.once(ctx, f)
		var w writeError
		switch {
		case err == nil && l.broken > 0:
			return exitCode{code: exitError}
		case err == nil || ctx.Err() != nil:
			return err
		case errors.As(err, &w):
			return w.error
		case !l.req.GetFollow() || len(l.positions) == 0 || status.Code(err) != codes.Unavailable:
			return fmt.Errorf("logs of %s: %w", name, err)
		}
		if away.IsZero() || wrote {
			away = time.Now()
			fmt.Fprintf(l.Stderr, "redoubt: logs of %s: %s; going on when a server answers\n", name, plain(err))
		} else if time.Since(away) > awayFor {
			return fmt.Errorf("logs of %s: no server for %s: %w", name, awayFor, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(2 * between):
		}
		// What was not known until now is wanted whole.
		l.req.Tail, l.req.Since, l.req.SinceAgo, l.req.Resume = -1, nil, nil, nil
		for _, p := range l.positions {
			l.req.Resume = append(l.req.Resume, p)
		}
	}
}

// writeError is one of the reader of this command.
type writeError struct{ error }

// once reads one stream to its end.
func (l *logReading) once(ctx context.Context, f *connection) (wrote bool, err error) {
	stream, err := f.Logs(ctx, l.req)
	if err != nil {
		return false, err
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return wrote, nil
		}
		if err != nil {
			return wrote, err
		}
		wrote = true
		if m.GetError() != "" {
			l.broken++
			fmt.Fprintf(l.Stderr, "redoubt: logs of %s: %s\n", clean(m.GetInstance()), clean(m.GetError()))
		}
		if m.GetNotice() != "" {
			fmt.Fprintf(l.Stderr, "redoubt: logs of %s: %s\n", clean(m.GetInstance()), clean(m.GetNotice()))
		}
		if n := m.GetDropped(); n > 0 {
			if err := l.out.cut(m.GetInstance()); err != nil {
				return wrote, writeError{err}
			}
			fmt.Fprintf(l.Stderr, "redoubt: logs of %s: at least %sB are missing here: the node no longer keeps them\n", clean(m.GetInstance()), size(int64(n)))
		}
		if err := l.out.write(m.GetInstance(), m.GetData(), m.GetTime()); err != nil {
			return wrote, writeError{err}
		}
		if p := m.GetPosition(); p != nil {
			l.positions[p.GetUid()] = p
		}
	}
}
