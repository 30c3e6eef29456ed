package main

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"
)

// restartAfter is systemd's RestartSec of the units in deploy/systemd, made
// short so that a run holds more faults.
const restartAfter = 200 * time.Millisecond

// supervise starts a command again whenever it ends, until SIGTERM, which it
// passes on. Killed, it leaves the command alone, as an init that is executed
// anew does; the next one's commands fail until that has ended.
func supervise(words []string) error {
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM, syscall.SIGINT)
	for {
		cmd := exec.Command(words[0], words[1:]...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Start(); err != nil {
			return err
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		select {
		case err := <-ended:
			fmt.Fprintf(os.Stderr, "supervisor: pid %d ended: %v\n", cmd.Process.Pid, err)
		case <-term:
			_ = cmd.Process.Signal(syscall.SIGTERM)
			<-ended
			return nil
		}
		select {
		case <-time.After(restartAfter):
		case <-term:
			return nil
		}
	}
}
