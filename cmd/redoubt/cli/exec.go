package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/grpc"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

func (a *app) execCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "exec NAME [-it] -- COMMAND [ARG...]", Short: "Run a command inside an instance",
		Long: "Runs a command inside an instance, or in the first running instance of a\nworkload, and ends with its exit code.\n\n  redoubt exec -it web -- sh",
	}
	a.client(c)
	a.namespaced(c)
	interactive := c.Flags().BoolP("stdin", "i", false, "pass standard input on")
	terminal := c.Flags().BoolP("tty", "t", false, "with a terminal")
	env := c.Flags().StringArrayP("env", "e", nil, "set `NAME=VALUE`; NAME alone takes the value from here")
	user := c.Flags().StringP("user", "u", "", "run as that `UID[:GID]`")
	dir := c.Flags().String("workdir", "", "run in that `PATH`")
	c.Args = func(c *cobra.Command, args []string) error {
		switch dash := c.ArgsLenAtDash(); {
		case len(args) == 0 || dash == 0:
			return fmt.Errorf("exec: name an instance or workload; usage: %s", c.UseLine())
		case len(args) == 1:
			return fmt.Errorf("exec: name a command: redoubt exec %s -- COMMAND", args[0])
		case dash > 1:
			return fmt.Errorf("exec: %q stands between the name and the command; usage: %s", args[1], c.UseLine())
		}
		return nil
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		vars, err := a.variables(*env)
		if err != nil {
			return err
		}
		start := &redoubtv1.ExecStart{
			Namespace: a.namespace, Name: args[0], Command: args[1:], Terminal: *terminal,
			Env: vars, WorkingDir: *dir, User: *user,
		}
		x := &execution{app: a, start: start, stdin: *interactive}
		return a.with(c.Context(), func(ctx context.Context, f *connection) error { return x.run(ctx, f) })
	}
	return c
}

// execution is one exec as its user sees it.
type execution struct {
	*app
	start *redoubtv1.ExecStart
	stdin bool

	stream grpc.BidiStreamingClient[redoubtv1.ExecRequest, redoubtv1.ExecResponse]
	mu     sync.Mutex // one send at a time
}

func (x *execution) send(m *redoubtv1.ExecRequest) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.stream.Send(m)
}

func (x *execution) run(ctx context.Context, f *connection) (err error) {
	// A signal goes to the command, not to the connection, so the context that
	// signals end is not this stream's.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	var tty *os.File
	if x.start.Terminal {
		in, ok := x.Stdin.(*os.File)
		if !ok || !term.IsTerminal(int(in.Fd())) {
			return errors.New("exec: -t needs a terminal and standard input is none; leave out -t")
		}
		tty = in
		x.stdin = true
		x.start.Size = windowSize(tty)
		if t := x.Getenv("TERM"); t != "" {
			x.start.Env = append(x.start.Env, &redoubtv1.EnvVar{Name: "TERM", Value: t})
		}
	}
	name := x.start.GetName()
	if x.stream, err = f.Exec(ctx); err != nil {
		return fmt.Errorf("exec in %s: %w", name, err)
	}
	if err := x.send(&redoubtv1.ExecRequest{Message: &redoubtv1.ExecRequest_Start{Start: x.start}}); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("exec in %s: %w", name, err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	restore := func() {}
	defer func() { restore() }()
	started := false // told by the server and again by the agent
	for {
		m, err := x.stream.Recv()
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("exec in %s: the connection ended without an exit code", name)
		}
		if err != nil {
			return fmt.Errorf("exec in %s: %w", name, err)
		}
		switch m := m.GetMessage().(type) {
		case *redoubtv1.ExecResponse_Started:
			if started {
				continue
			}
			started = true
			if tty != nil {
				old, err := term.MakeRaw(int(tty.Fd()))
				if err != nil {
					return fmt.Errorf("exec in %s: make the terminal raw: %w", name, err)
				}
				restore = func() { _ = term.Restore(int(tty.Fd()), old) }
			}
			wg.Go(func() { x.signals(ctx, cancel, tty) })
			x.input()
		case *redoubtv1.ExecResponse_Stdout:
			if _, err := x.Stdout.Write(m.Stdout); err != nil {
				return fmt.Errorf("exec in %s: write its output: %w", name, err)
			}
		case *redoubtv1.ExecResponse_Stderr:
			if _, err := x.Stderr.Write(m.Stderr); err != nil {
				return fmt.Errorf("exec in %s: write its output: %w", name, err)
			}
		case *redoubtv1.ExecResponse_ExitCode:
			if m.ExitCode != 0 {
				return exitCode{code: int(m.ExitCode)}
			}
			return nil
		}
	}
}

// input passes standard input on, or says that there is none. Its goroutine
// may stay blocked in a read of standard input, see the package comment.
func (x *execution) input() {
	closed := &redoubtv1.ExecRequest{Message: &redoubtv1.ExecRequest_CloseStdin{CloseStdin: true}}
	if !x.stdin {
		_ = x.send(closed) // a broken stream shows at Recv
		return
	}
	go func() {
		buf := make([]byte, 32<<10)
		for {
			n, err := x.Stdin.Read(buf)
			if n > 0 {
				data := append([]byte(nil), buf[:n]...)
				if x.send(&redoubtv1.ExecRequest{Message: &redoubtv1.ExecRequest_Stdin{Stdin: data}}) != nil {
					return
				}
			}
			if err != nil {
				_ = x.send(closed)
				return
			}
		}
	}()
}

// signals passes signals and sizes on. A third interrupt gives the connection
// up: the command may not heed the signal.
func (x *execution) signals(ctx context.Context, giveUp func(), tty *os.File) {
	got := make(chan os.Signal, 8)
	signal.Notify(got, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	if tty != nil {
		signal.Notify(got, syscall.SIGWINCH)
	}
	defer signal.Stop(got)
	interrupts := 0
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-got:
			if s == syscall.SIGWINCH {
				_ = x.send(&redoubtv1.ExecRequest{Message: &redoubtv1.ExecRequest_Resize{Resize: windowSize(tty)}})
				continue
			}
			_ = x.send(&redoubtv1.ExecRequest{Message: &redoubtv1.ExecRequest_Signal{Signal: signalNames[s]}})
			if s == syscall.SIGINT {
				if interrupts++; interrupts == 3 {
					giveUp()
				}
			}
		}
	}
}

var signalNames = map[os.Signal]string{
	syscall.SIGINT: "SIGINT", syscall.SIGTERM: "SIGTERM", syscall.SIGHUP: "SIGHUP", syscall.SIGQUIT: "SIGQUIT",
	syscall.SIGUSR1: "SIGUSR1", syscall.SIGUSR2: "SIGUSR2",
}

func windowSize(tty *os.File) *redoubtv1.TerminalSize {
	w, h, err := term.GetSize(int(tty.Fd()))
	if err != nil || w <= 0 || h <= 0 {
		return &redoubtv1.TerminalSize{Width: 80, Height: 24}
	}
	return &redoubtv1.TerminalSize{Width: uint32(w), Height: uint32(h)}
}

// variables reads NAME=VALUE flags.
func (a *app) variables(list []string) (vars []*redoubtv1.EnvVar, err error) {
	for _, s := range list {
		name, value, ok := strings.Cut(s, "=")
		if name == "" {
			return nil, fmt.Errorf("--env %q: write NAME=VALUE", s)
		}
		if !ok {
			value = a.Getenv(name)
		}
		vars = append(vars, &redoubtv1.EnvVar{Name: name, Value: value})
	}
	return vars, nil
}
