// Command redoubt is the whole of Redoubt in one file: the control server, the
// node agent and what people type.
package main

import (
	"context"
	"os"

	"redoubt.dev/redoubt/cmd/redoubt/cli"
)

func main() {
	os.Exit(cli.Run(context.Background(), cli.Process()))
}
