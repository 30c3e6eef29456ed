package systemd

import (
	"embed"
	"fmt"
	"os"
)

// The units' names.
const (
	AgentUnit  = "redoubt-agent.service"
	ServerUnit = "redoubt-server.service"
)

//go:embed *.service
var units embed.FS

// Unit is the text of a unit.
func Unit(name string) (string, error) {
	text, err := units.ReadFile(name)
	if err != nil {
		return "", fmt.Errorf("unit %s: %w", name, err)
	}
	return string(text), nil
}

// Running tells whether systemd runs this host, as sd_booted does.
func Running() bool {
	info, err := os.Lstat("/run/systemd/system")
	return err == nil && info.IsDir()
}
