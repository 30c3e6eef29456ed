// Canary is the program that runs inside a sandbox to find out what the
// sandbox is worth. It looks around, tries what a sandbox must forbid, and
// writes one line of JSON to standard output; then it stays until SIGTERM or
// the given number of seconds is over, so that the host can look at the
// boundary process at the same moment.
//
//	canary NONCE [SECONDS]
//
// It judges nothing: it may be lied to, and whoever reads it compares its
// answer with what the host sees. What it tries, it tries so that success does
// no harm: on processes that do not exist, with arguments that the kernel
// refuses after the check of permissions.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

// Sight is what the canary saw; agent/canary reads it.
type Sight struct {
	Nonce string `json:"nonce"`

	// The kernel, by its word and by its behaviour.
	Release     string   `json:"release"` // uname
	Version     string   `json:"version"`
	Machine     string   `json:"machine"`
	ProcVersion string   `json:"procVersion"`
	BootID      string   `json:"bootID"`
	VDSO        string   `json:"vdso"`     // sha256 of the code that the kernel maps into every process
	UptimeNs    int64    `json:"uptimeNs"` // CLOCK_BOOTTIME
	KernelLog   []string `json:"kernelLog"`

	// The place.
	PID        int               `json:"pid"`
	UID        int               `json:"uid"`
	UIDMap     string            `json:"uidMap"`
	Namespaces map[string]uint64 `json:"namespaces"`
	Devices    []Device          `json:"devices"`
	Mounts     []string          `json:"mounts"` // "type path"

	// The process's own chains, as /proc/self/status shows them.
	CapEff     string `json:"capEff"`
	CapBnd     string `json:"capBnd"`
	NoNewPrivs bool   `json:"noNewPrivs"`
	Seccomp    int    `json:"seccomp"`

	Tries  []Try `json:"tries"`
	TookNs int64 `json:"tookNs"`
}

// Device is a device node below /dev.
type Device struct {
	Path  string `json:"path"`
	Block bool   `json:"block"`
	Major uint32 `json:"major"`
	Minor uint32 `json:"minor"`
}

// Try is a forbidden thing and how it ended.
type Try struct {
	What  string `json:"what"`
	Errno int    `json:"errno"` // 0: it was let through
}

func main() {
	began := time.Now()
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: canary NONCE [SECONDS]")
		os.Exit(2)
	}
	stay := 30
	if len(os.Args) > 2 {
		n, err := strconv.Atoi(os.Args[2])
		if err != nil || n < 0 {
			fmt.Fprintf(os.Stderr, "canary: %q is not a number of seconds\n", os.Args[2])
			os.Exit(2)
		}
		stay = n
	}
	// It is process 1 of its namespace, where an unhandled SIGTERM is ignored.
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM, syscall.SIGINT)

	s := Sight{Nonce: os.Args[1], PID: os.Getpid(), UID: os.Getuid()}
	s.kernel()
	s.place()
	s.Tries = tries()
	s.TookNs = time.Since(began).Nanoseconds()
	if err := json.NewEncoder(os.Stdout).Encode(s); err != nil {
		fmt.Fprintln(os.Stderr, "canary:", err)
		os.Exit(1)
	}
	select {
	case <-term:
	case <-time.After(time.Duration(stay) * time.Second):
	}
}
