// Command runsc is gVisor's OCI runtime, built from its packages at the pinned
// version, with the command set that the agent, the shim and an operator who
// looks into a sandbox need.
//
// It differs from the stock entry point in one thing that matters: it does not
// import gvisorbinaries/embed, which carries prebuilt side binaries (47 MB).
// The sentry then boots from this same file. What is lost with them is the
// metric server and checkpoints into cloud storage; plain checkpoint and
// restore work.
//
// It must be executed under a path that it may execute again: the sentry and
// the gofer are this file, started with other arguments.
package main

import (
	"github.com/google/subcommands"

	"gvisor.dev/gvisor/runsc/cli"
	"gvisor.dev/gvisor/runsc/cmd"
	"gvisor.dev/gvisor/runsc/cmd/sentry/sentrycmd"
	"gvisor.dev/gvisor/runsc/cmd/trace"
	"gvisor.dev/gvisor/runsc/cmd/util"
)

func main() {
	cli.Run(nil, commands(), []subcommands.Command{
		new(cmd.Platforms),
		new(cmd.Syscalls),
	})
}

// commands returns every subcommand with its group in the help text. The
// internal ones are how runsc starts itself again; leaving one out breaks
// create.
func commands() map[util.SubCommand]string {
	const (
		user     = ""
		helpers  = "helpers"
		debug    = "debug"
		internal = "internal use only"
	)
	return map[util.SubCommand]string{
		new(cmd.Checkpoint): user,
		new(cmd.Create):     user,
		new(cmd.Delete):     user,
		new(cmd.Do):         user,
		new(cmd.Events):     user,
		new(cmd.Exec):       user,
		new(cmd.Kill):       user,
		new(cmd.List):       user,
		new(cmd.PS):         user,
		new(cmd.Pause):      user,
		new(cmd.Restore):    user,
		new(cmd.Resume):     user,
		new(cmd.Run):        user,
		new(cmd.Spec):       user,
		new(cmd.Start):      user,
		new(cmd.State):      user,
		new(cmd.Update):     user,
		new(cmd.Wait):       user,

		new(cmd.CPUFeatures): helpers,
		new(cmd.Features):    helpers,
		new(trace.Trace):     helpers,

		new(cmd.Debug):          debug,
		new(cmd.MetricExport):   debug,
		new(cmd.MetricMetadata): debug,
		new(cmd.Statefile):      debug,
		new(cmd.Usage):          debug,

		new(cmd.Gofer):        internal,
		new(sentrycmd.Boot):   internal,
		new(sentrycmd.Umount): internal,
	}
}
