package cli

import "github.com/spf13/cobra"

// hostCommands are the verbs that do something on this host and need no fleet.
func (a *app) hostCommands() []*cobra.Command {
	return []*cobra.Command{a.devCommand(), a.serverCommand(), a.agentCommand(), a.doctorCommand()}
}
