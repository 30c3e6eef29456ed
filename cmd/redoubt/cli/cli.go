package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"redoubt.dev/redoubt/cmd/redoubt/workloadfile"
	"redoubt.dev/redoubt/deploy/systemd"
)

// Version is what was built; the Makefile sets it.
var Version = "unknown"

// Exit codes.
const (
	exitDone        = 0
	exitChanges     = 1 // plan
	exitError       = 2
	exitUnplaceable = 3 // plan
	exitRemoved     = 4 // server: it was removed from the fleet
	exitInterrupted = 130
)

// Env is all that a command takes from the process it runs in.
type Env struct {
	Args   []string // without the program's name
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	Getenv func(string) string
	// DevContext is where `redoubt dev` leaves its context.
	DevContext string
	// Notify tells systemd of a daemon that it started; nil tells nobody.
	Notify *systemd.Notifier
}

// Process is the Env of this process. A command that is no daemon ends before
// collecting garbage is worth its time: that was a tenth of a completion's.
func Process() Env {
	if os.Getenv("GOGC") == "" && endsSoon(os.Args[1:]) {
		debug.SetGCPercent(400)
	}
	return Env{
		Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Getenv: os.Getenv, DevContext: "/run/redoubt/dev/context", Notify: systemd.FromEnvironment(),
	}
}

func endsSoon(args []string) bool {
	return len(args) > 0 && !strings.HasPrefix(args[0], "-") && !slices.Contains([]string{"agent", "server", "dev"}, args[0])
}

// app is one run of the command.
type app struct {
	Env
	// flags of every client verb
	context   string
	namespace string
	format    string
	quiet     bool
	log       *slog.Logger // of daemons
	recent    recentLog    // what it wrote last
	// code is the exit code where no error is returned.
	code int
}

// exitCode ends a command with a code of its own. Where err is nil, what there
// was to say has been said.
type exitCode struct {
	code int
	err  error
}

func (e exitCode) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}
func (e exitCode) Unwrap() error { return e.err }

// Run runs one command. SIGINT and SIGTERM end it gracefully; a second one at
// once.
func Run(ctx context.Context, env Env) int {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	defer context.AfterFunc(ctx, stop)()

	a := &app{Env: env}
	root := a.root()
	root.SetArgs(env.Args)
	root.SetIn(env.Stdin)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return a.code
	}
	var exit exitCode
	if errors.As(err, &exit) && exit.err == nil {
		return exit.code
	}
	if ctx.Err() != nil && (errors.Is(err, context.Canceled) || status.Code(err) == codes.Canceled) {
		return exitInterrupted
	}
	fmt.Fprintln(env.Stderr, complaint(err))
	if exit.code != 0 {
		return exit.code
	}
	return exitError
}

// complaint is an error in the words for a person.
func complaint(err error) string {
	var file workloadfile.Errors
	if errors.As(err, &file) {
		return file.Error() // it names its place itself
	}
	return "redoubt: " + plain(err)
}

// plain is an error's text without gRPC's wrapping and without anything that a
// terminal would obey: it may be a server's or a node's.
func plain(err error) string {
	s, ok := status.FromError(err)
	if !ok || s.Code() == codes.OK {
		return cleanLines(err.Error())
	}
	// FromError of a wrapped status puts the wrapping's text into the message,
	// with the inner error's in full.
	msg := s.Message()
	if _, inner, found := strings.Cut(msg, "rpc error: code = "); found {
		before, _, _ := strings.Cut(msg, "rpc error: code = ")
		_, desc, _ := strings.Cut(inner, " desc = ")
		msg = before + desc
	}
	return cleanLines(msg)
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "redoubt",
		Short: "Run workloads on the strongest isolation that is proven",
		Long: "Redoubt proves which container isolation each host can really deliver and runs\n" +
			"each workload on the strongest that is feasible, never below its floor.\n\n" +
			"To try it on this machine: `sudo redoubt dev`, and the rest in a second terminal.\n" +
			"For real hosts: `redoubt server install` and `redoubt agent install`.",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          nounArgs,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetFlagErrorFunc(a.flagError)
	root.PersistentFlags().StringVar(&a.context, "context", "", "fleet to talk to: a `NAME` of \"redoubt context list\", or a file (REDOUBT_CONTEXT)")
	root.AddGroup(
		&cobra.Group{ID: "work", Title: "Workloads:"},
		&cobra.Group{ID: "fleet", Title: "The fleet:"},
		&cobra.Group{ID: "host", Title: "On a host:"},
		&cobra.Group{ID: "self", Title: "This program:"},
	)
	group := func(id string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = id
			root.AddCommand(c)
		}
	}
	workload := noun("workload", "Apply, run and look at workloads", []string{"w"},
		a.runCommand(), a.applyCommand(), a.planCommand(), a.listCommand("list"), a.statusCommand(),
		a.explainCommand(), a.logsCommand(), a.execCommand(), a.copyCommand(), a.portForwardCommand(), a.egressCommand(), a.stopCommand())
	group("work", workload, a.runCommand(), a.applyCommand(), a.planCommand(), a.listCommand("get"), a.psCommand(),
		a.explainCommand(), a.logsCommand(), a.execCommand(), a.copyCommand(), a.portForwardCommand(), a.stopCommand())
	group("fleet",
		noun("node", "Hosts, what they have proven, and tokens to join", nil, a.nodeListCommand(), a.nodeStatusCommand(), a.joinTokenCommand()),
		a.eventsCommand(),
		noun("site", "Failure domains", nil, a.siteListCommand()),
		noun("operator", "Run the control plane", nil,
			noun("raft", "The servers' consensus", nil, a.raftListCommand(), a.raftRemoveCommand()),
			a.debugCommand(),
			noun("snapshot", "Save the fleet's state, and begin again from it", nil,
				a.snapshotSaveCommand(), a.snapshotInspectCommand(), a.snapshotRestoreCommand())),
		noun("context", "Which fleet the commands talk to", nil, a.contextListCommand(), a.contextUseCommand(), a.contextAddCommand()))
	group("host", a.hostCommands()...)
	group("self", a.versionCommand(), a.docsCommand())
	root.SetHelpCommandGroupID("self")
	root.SetCompletionCommandGroupID("self")
	root.InitDefaultCompletionCmd(a.Args...)
	for _, c := range root.Commands() {
		if c.Name() == "completion" {
			c.RemoveCommand(subcommand(c, "powershell")) // agents and servers are Linux
			c.Args = nounArgs
			c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
		}
	}
	root.SetUsageTemplate(strings.NewReplacer(
		".FlagUsages |", fmt.Sprintf(".FlagUsagesWrapped %d |", a.prose()),
		`Use "{{.CommandPath}} [command] --help" for more information about a command.`, `"{{.CommandPath}} VERB --help" says more of a verb.`,
	).Replace(root.UsageTemplate()))
	a.completions(root)
	if len(a.Args) == 0 || !strings.HasPrefix(a.Args[0], cobra.ShellCompRequestCmd) { // which shows no help
		exemplify(root)
	}
	return root
}

func subcommand(c *cobra.Command, name string) *cobra.Command {
	for _, s := range c.Commands() {
		if s.Name() == name {
			return s
		}
	}
	return nil
}

// noun groups verbs.
func noun(name, short string, aliases []string, verbs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: name, Short: short, Aliases: aliases, Args: nounArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(verbs...)
	return c
}

// client adds what every verb with a fleet to talk to has; --context is the
// root's, since it may stand before the verb.
func (a *app) client(c *cobra.Command) *cobra.Command {
	c.Flags().BoolVarP(&a.quiet, "quiet", "q", false, "no progress and no hints")
	return c
}

func (a *app) namespaced(c *cobra.Command) *cobra.Command {
	c.Flags().StringVarP(&a.namespace, "namespace", "n", "", "namespace of the workload (default \"default\")")
	return c
}

// say reports progress, for people only.
func (a *app) say(format string, args ...any) {
	if !a.quiet {
		fmt.Fprintln(a.Stderr, cleanLines(fmt.Sprintf(format, args...)))
	}
}

// names is the rule for arguments that are names, with the remedy.
func names(least, most int, what string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return fmt.Errorf("%s: name %s; usage: %s", verbPath(c), what, c.UseLine())
		case most >= 0 && len(args) > most:
			return fmt.Errorf("%s: %q is one argument too many; usage: %s", verbPath(c), args[most], c.UseLine())
		}
		return nil
	}
}
