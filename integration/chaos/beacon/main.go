// Command beacon is the workload of the chaos runs: it tells a recorder ten
// times a second that it is alive, and who it is.
//
// Its recorder is a folder of the host that it has mounted, so that it is heard
// on a node that is cut off too. Each process writes a file of its own, named
// UID_NONCE with the instance's uid and a number that this start drew: first
// the line "instance INSTANCE fence FENCE", then a line "beat MILLISECONDS" of
// Unix time each time. At SIGTERM it writes "term MILLISECONDS", goes on for
// half a second, and ends.
package main

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "beacon:", err)
		os.Exit(1)
	}
}

func run(dir string) error {
	var nonce [6]byte
	_, _ = rand.Read(nonce[:])
	name := os.Getenv("REDOUBT_INSTANCE_UID") + "_" + hex.EncodeToString(nonce[:])
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_EXCL|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(f, "instance %s fence %s\n", os.Getenv("REDOUBT_INSTANCE"), os.Getenv("REDOUBT_FENCE")); err != nil {
		return err
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	tick := time.NewTicker(100 * time.Millisecond)
	end := make(<-chan time.Time)
	say := func(what string) error {
		_, err := fmt.Fprintf(f, "%s %d\n", what, time.Now().UnixMilli())
		return err
	}
	for err = say("beat"); err == nil; {
		select {
		case <-tick.C:
			err = say("beat")
		case <-term:
			err = say("term")
			end = time.After(500 * time.Millisecond)
		case <-end:
			return nil
		}
	}
	return err
}
