package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

func (a *app) copyCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "cp SOURCE DESTINATION", Short: "Copy files into or out of an instance",
		Long: "Copies a file or a directory between this machine and an instance, or the first\n" +
			"running instance of a workload. One side is a path here, the other NAME:PATH.\n\n" +
			"  redoubt cp web:/etc/app.conf .       into this directory\n" +
			"  redoubt cp ./site web:/srv           to /srv/site, or as /srv if there is none\n" +
			"  redoubt cp web:/var/log/. ./logs     what is in it, without the directory\n\n" +
			"The image must have a tar program. Nothing is written outside of the local\n" +
			"destination, whatever the image sends: links that lead out of it, devices and\n" +
			"sockets are left out and named. A local path with a colon is written ./a:b.",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) != 2 {
				return fmt.Errorf("cp: name a source and a destination, as in `redoubt cp web:/etc/app.conf .`; usage: %s", c.UseLine())
			}
			return nil
		},
	}
	a.client(c)
	a.namespaced(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		from, fromInside := splitPlace(args[0])
		to, toInside := splitPlace(args[1])
		switch {
		case fromInside && toInside:
			return errors.New("cp: both sides are inside of instances; copy to this machine first")
		case !fromInside && !toInside:
			return fmt.Errorf("cp: neither side is inside of an instance; write it NAME:PATH, as in web:%s", args[1])
		case from.path == "" || to.path == "":
			empty := args[0]
			if from.path != "" {
				empty = args[1]
			}
			return fmt.Errorf("cp: %q names no path; write NAME:PATH, as in %s:/etc", empty, max(from.name, to.name, "web"))
		}
		return a.with(c.Context(), func(ctx context.Context, f *connection) error {
			cp := &copying{app: a, fleet: f}
			if fromInside {
				return cp.fetch(ctx, from, to.path)
			}
			return cp.send(ctx, from.path, to)
		})
	}
	return c
}

// place is a path, inside of the instance or workload that name says.
type place struct{ name, path string }

// splitPlace tells NAME:PATH from a local path, as docker cp does.
func splitPlace(s string) (place, bool) {
	name, p, ok := strings.Cut(s, ":")
	if !ok || name == "" || strings.HasPrefix(s, ".") || strings.ContainsAny(name, `/\`) {
		return place{path: s}, false
	}
	return place{name, p}, true
}

// copying is one cp. Files travel as a tar stream through an exec of the image's
// own tar: what a sandbox keeps in its own memory or overlay is not in any
// directory of the host, so nothing else sees the same files under runc and
// under gVisor.
type copying struct {
	*app
	fleet *connection
}

// fetch copies out of an instance.
func (c *copying) fetch(ctx context.Context, from place, to string) error {
	clean := path.Clean(from.path)
	dir, base := path.Split(clean)
	if dir == "" {
		dir = "."
	}
	if base == "" {
		base = "."
	}
	content := base == "." || base == ".." || strings.HasSuffix(from.path, "/.")
	t, err := chooseTarget(to, base, content)
	if err != nil {
		return fmt.Errorf("cp: %w", err)
	}
	pr, pw := io.Pipe()
	x := &unpacking{base: base, target: t, source: from.path}
	var unpacked error
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() {
		unpacked = x.run(pr)
		if unpacked != nil && !errors.Is(unpacked, io.ErrUnexpectedEOF) {
			cancel() // a hostile stream must not go on
		}
		pr.CloseWithError(io.ErrClosedPipe)
	})
	_, code, said, err := c.exec(ctx, from.name, []string{"tar", "-cf", "-", "-C", dir, "./" + base}, nil, pw)
	pw.CloseWithError(io.EOF)
	wg.Wait()
	for _, w := range x.warnings() {
		fmt.Fprintln(c.Stderr, "redoubt: cp: "+w)
	}
	switch what := fmt.Sprintf("cp %s:%s", from.name, from.path); {
	case err != nil && unpacked != nil && ctx.Err() != nil && !errors.Is(unpacked, io.ErrUnexpectedEOF):
		return fmt.Errorf("%s: %w", what, unpacked)
	case err != nil:
		return fmt.Errorf("%s: %w", what, err)
	case code != 0:
		return fmt.Errorf("%s: %s", what, tarFailed(code, said))
	case unpacked != nil:
		return fmt.Errorf("%s: %w", what, unpacked)
	}
	c.say("Copied %s to %s.", x.tally(), t)
	return nil
}

// send copies into an instance.
func (c *copying) send(ctx context.Context, from string, to place) error {
	content := strings.HasSuffix(from, "/.") || from == "."
	info, err := os.Lstat(from)
	if err != nil {
		return fmt.Errorf("cp: %w", err)
	}
	what := fmt.Sprintf("cp to %s:%s", to.name, to.path)
	instance, code, _, err := c.exec(ctx, to.name, []string{"test", "-d", to.path}, nil, io.Discard)
	isDir := code == 0
	switch {
	case err != nil && code != 127:
		return fmt.Errorf("%s: %w", what, err)
	case err != nil || code == 126 || code == 127:
		isDir = strings.HasSuffix(to.path, "/") // nobody there to ask
	case !isDir && strings.HasSuffix(to.path, "/") && !info.IsDir():
		return fmt.Errorf("%s: it is not a directory", what)
	}
	if instance == "" {
		instance = to.name
	}
	dir, base := path.Split(path.Clean(to.path))
	switch {
	case isDir && content:
		dir, base = to.path, "."
	case isDir:
		abs, err := filepath.Abs(from)
		if err != nil {
			return fmt.Errorf("cp: %w", err)
		}
		dir, base = to.path, filepath.Base(abs)
	case dir == "":
		dir = "."
	}
	pr, pw := io.Pipe()
	p := &packing{base: base}
	var packed error
	var wg sync.WaitGroup
	wg.Go(func() {
		packed = p.run(from, pw)
		pw.CloseWithError(packed)
	})
	_, code, said, err := c.exec(ctx, instance, []string{"tar", "-xf", "-", "-C", dir}, pr, io.Discard)
	pr.CloseWithError(io.ErrClosedPipe)
	wg.Wait()
	for _, w := range p.skipped.list() {
		fmt.Fprintln(c.Stderr, "redoubt: cp: "+w)
	}
	switch {
	case packed != nil && !errors.Is(packed, io.ErrClosedPipe):
		return fmt.Errorf("cp: %w; what was copied to %s:%s so far is incomplete", packed, instance, to.path)
	case err != nil:
		return fmt.Errorf("%s: %w", what, err)
	case code != 0:
		return fmt.Errorf("%s: %s", what, tarFailed(code, said))
	}
	c.say("Copied %s to %s:%s.", p.tally(), instance, path.Join(dir, base))
	return nil
}

// tarFailed says what became of tar, in its own words where there are some.
func tarFailed(code int, said string) string {
	if code == 126 || code == 127 {
		return "the image has no tar program, which cp needs; `redoubt exec` with what the image has may do"
	}
	if said == "" {
		return fmt.Sprintf("tar inside ended with exit code %d", code)
	}
	return fmt.Sprintf("tar inside ended with exit code %d: %s", code, said)
}

// exec runs command in an instance. It returns the instance's name, the exit
// code and the beginning of what came on standard error, in printable form. A
// program that is not there is code 127.
func (c *copying) exec(ctx context.Context, name string, command []string, stdin io.Reader, stdout io.Writer) (instance string, code int, said string, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	x := &execution{app: c.app}
	if x.stream, err = c.fleet.Exec(ctx); err != nil {
		return "", 0, "", err
	}
	start := &redoubtv1.ExecStart{Namespace: c.namespace, Name: name, Command: command}
	if err := x.send(&redoubtv1.ExecRequest{Message: &redoubtv1.ExecRequest_Start{Start: start}}); err != nil && !errors.Is(err, io.EOF) {
		return "", 0, "", err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	var complaint bytes.Buffer
	for {
		m, err := x.stream.Recv()
		if errors.Is(err, io.EOF) {
			return instance, 0, "", errors.New("the connection ended without an exit code")
		}
		if err != nil {
			if text := plain(err); strings.Contains(text, "executable file not found") || strings.Contains(text, "no such file or directory") {
				return instance, 127, "", nil
			}
			return instance, 0, "", err
		}
		switch m := m.GetMessage().(type) {
		case *redoubtv1.ExecResponse_Started:
			if instance == "" {
				instance = m.Started
				wg.Go(func() {
					if x.feed(stdin) != nil {
						// Half of a file must not look like all of it. Any end of
						// the stream that is not a break is an end of input to the
						// program inside; this has the node kill it.
						cancel()
					}
				})
			}
		case *redoubtv1.ExecResponse_Stdout:
			if _, err := stdout.Write(m.Stdout); err != nil {
				return instance, 0, "", err
			}
		case *redoubtv1.ExecResponse_Stderr:
			if complaint.Len() < 1000 {
				complaint.Write(m.Stderr[:min(len(m.Stderr), 1000)])
			}
		case *redoubtv1.ExecResponse_ExitCode:
			return instance, int(m.ExitCode), printable(complaint.String()), nil
		}
	}
}

// feed passes r on as standard input and then ends it, unless r cannot be read to
// its end: that is its error.
func (x *execution) feed(r io.Reader) error {
	if r != nil {
		buf := make([]byte, 32<<10)
		for {
			n, err := r.Read(buf)
			if n > 0 {
				data := append([]byte(nil), buf[:n]...)
				if x.send(&redoubtv1.ExecRequest{Message: &redoubtv1.ExecRequest_Stdin{Stdin: data}}) != nil {
					return nil // Recv has the reason
				}
			}
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
		}
	}
	_ = x.send(&redoubtv1.ExecRequest{Message: &redoubtv1.ExecRequest_CloseStdin{CloseStdin: true}})
	return nil
}

// printable makes one line of what an instance said, without what would change
// a terminal.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == '\n' {
			return ';'
		}
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == '\uFFFD' {
			return '?'
		}
		return r
	}, strings.TrimSpace(s))
	return strings.ReplaceAll(s, ";", "; ")
}
