package agent

import (
	"time"

	"redoubt.dev/redoubt/isolation/probe"
)

// bootClock is CLOCK_BOOTTIME: it goes on in suspend and nobody can set it.
func bootClock() time.Duration { return probe.BootTime() }
