package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

func (a *app) logsCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "logs NAME", Short: "Print what a workload or an instance wrote", Args: names(1, 1, "a workload or an instance"),
		Long: "Prints what the instances of a workload, or one instance, wrote to standard\noutput and standard error. With several instances each line begins with its\ninstance.",
	}
	a.client(c)
	a.namespaced(c)
	follow := c.Flags().BoolP("follow", "f", false, "go on as more is written")
	tail := c.Flags().Int32("tail", -1, "only the last `N` lines; -1: all that is kept")
	c.RunE = func(c *cobra.Command, args []string) error {
		return a.with(c.Context(), func(ctx context.Context, f *connection) error {
			several, err := f.several(ctx, a.namespace, args[0])
			if err != nil {
				return fmt.Errorf("logs of %s: %w", args[0], err)
			}
			stream, err := f.Logs(ctx, &redoubtv1.LogsRequest{Namespace: a.namespace, Name: args[0], Follow: *follow, Tail: *tail})
			if err != nil {
				return fmt.Errorf("logs of %s: %w", args[0], err)
			}
			p := &prefixer{w: a.Stdout, prefix: several}
			defer p.flush()
			broken := 0
			for {
				m, err := stream.Recv()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					return fmt.Errorf("logs of %s: %w", args[0], err)
				}
				if m.GetError() != "" {
					broken++
					fmt.Fprintf(a.Stderr, "redoubt: logs of %s: %s\n", m.GetInstance(), m.GetError())
				}
				if err := p.write(m.GetInstance(), m.GetData()); err != nil {
					return err
				}
			}
			if broken > 0 {
				return exitCode{code: exitError}
			}
			return nil
		})
	}
	return c
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

// prefixer writes whole lines, each with its instance before it, or everything
// as it comes.
type prefixer struct {
	w       io.Writer
	prefix  bool
	partial map[string][]byte
}

func (p *prefixer) write(instance string, data []byte) error {
	if !p.prefix {
		_, err := p.w.Write(data)
		return err
	}
	if p.partial == nil {
		p.partial = map[string][]byte{}
	}
	buf := append(p.partial[instance], data...)
	var out []byte
	for {
		i := bytes.IndexByte(buf, '\n')
		// A line without an end must not be held for ever.
		if i < 0 && len(buf) > 64<<10 {
			i = len(buf) - 1
		}
		if i < 0 {
			break
		}
		out = append(append(append(out, instance...), "  "...), buf[:i+1]...)
		buf = buf[i+1:]
	}
	p.partial[instance] = buf
	_, err := p.w.Write(out)
	return err
}

// flush writes what came without an end of line.
func (p *prefixer) flush() {
	var left []string
	for i, b := range p.partial {
		if len(b) > 0 {
			left = append(left, i+"  "+string(b))
		}
	}
	slices.Sort(left)
	for _, l := range left {
		fmt.Fprintln(p.w, l)
	}
}
