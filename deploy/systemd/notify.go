package systemd

import (
	"context"
	"errors"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// Notifier tells systemd how a daemon is. Its zero value and nil tell nobody.
// It may be used from several goroutines.
type Notifier struct {
	socket string
	every  time.Duration // between signs of life; 0: none are asked for
}

// FromEnvironment is the Notifier that the process's environment asks for. It
// takes the variables out: what this process starts must not speak for it.
func FromEnvironment() *Notifier {
	n := NewNotifier(os.Getenv, os.Getpid())
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		_ = os.Unsetenv(name) // fails for malformed names only
	}
	return n
}

// NewNotifier reads the variables that systemd sets for the process pid.
func NewNotifier(getenv func(string) string, pid int) *Notifier {
	n := &Notifier{socket: getenv("NOTIFY_SOCKET")}
	if !strings.HasPrefix(n.socket, "/") && !strings.HasPrefix(n.socket, "@") {
		n.socket = "" // vsock, or nothing
	}
	if whose := getenv("WATCHDOG_PID"); whose != "" && whose != strconv.Itoa(pid) {
		return n
	}
	if usec, err := strconv.ParseInt(getenv("WATCHDOG_USEC"), 10, 64); err == nil && usec > 0 && usec <= int64(24*time.Hour/time.Microsecond) {
		n.every = time.Duration(usec) * time.Microsecond / 3
	}
	return n
}

// Ready says that the daemon does its work now, and with what.
func (n *Notifier) Ready(status string) error {
	return n.send("READY=1\nSTATUS=" + oneLine(status))
}

// Run sends signs of life until ctx ends, then says that the daemon is
// stopping. One that does not get through is not worth an end: systemd restarts
// what it never hears of.
func (n *Notifier) Run(ctx context.Context) error {
	if n == nil || n.socket == "" {
		return nil
	}
	var tick <-chan time.Time
	if n.every > 0 {
		t := time.NewTicker(n.every)
		defer t.Stop()
		tick = t.C
	}
	for {
		select {
		case <-ctx.Done():
			return n.send("STOPPING=1")
		case <-tick:
			_ = n.send("WATCHDOG=1")
		}
	}
}

func (n *Notifier) send(state string) error {
	if n == nil || n.socket == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.socket, Net: "unixgram"})
	if err != nil {
		return errors.Join(errors.New("tell systemd: its socket does not answer"), err)
	}
	defer conn.Close()
	if err := conn.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	_, err = conn.Write([]byte(state))
	return err
}

// oneLine keeps a status from being read as further assignments.
func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	return s[:min(len(s), 200)]
}
