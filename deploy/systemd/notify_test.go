package systemd

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// listen is what systemd holds at the other end.
func listen(t *testing.T) (path string, next func() string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return path, func() string {
		t.Helper()
		b := make([]byte, 4096)
		conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, err := conn.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
}

func TestSystemdIsToldOfReadinessLifeAndEnd(t *testing.T) {
	path, next := listen(t)
	env := map[string]string{"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "60000", "WATCHDOG_PID": "7"}
	n := NewNotifier(func(k string) string { return env[k] }, 7)
	if err := n.Ready("node oslo-1\nMAINPID=1"); err != nil {
		t.Fatal(err)
	}
	if got := next(); got != "READY=1\nSTATUS=node oslo-1 MAINPID=1" {
		t.Errorf("it said %q", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- n.Run(ctx) }()
	for range 2 {
		if got := next(); got != "WATCHDOG=1" {
			t.Errorf("it said %q", got)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	last := ""
	for last != "STOPPING=1" {
		if last = next(); last != "WATCHDOG=1" && last != "STOPPING=1" {
			t.Fatalf("it said %q", last)
		}
	}
}

func TestNobodyIsToldWhereNobodyAsks(t *testing.T) {
	for _, env := range []map[string]string{{}, {"NOTIFY_SOCKET": "vsock:2:1"}} {
		n := NewNotifier(func(k string) string { return env[k] }, 7)
		if err := n.Ready("x"); err != nil {
			t.Error(err)
		}
		if err := n.Run(t.Context()); err != nil { // ends by itself
			t.Error(err)
		}
	}
	var none *Notifier
	if err := none.Ready("x"); err != nil || none.Run(t.Context()) != nil {
		t.Error(err)
	}
	env := map[string]string{"NOTIFY_SOCKET": "/none", "WATCHDOG_USEC": "60000", "WATCHDOG_PID": "8"}
	n := NewNotifier(func(k string) string { return env[k] }, 7)
	if n.every != 0 {
		t.Error("it gives another process's signs of life")
	}
	if err := n.Ready("x"); err == nil || !strings.Contains(err.Error(), "systemd") {
		t.Errorf("a socket that is gone: %v", err)
	}
}

func TestChildrenDoNotInheritTheSocket(t *testing.T) {
	path, next := listen(t)
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "1000000")
	n := FromEnvironment()
	for _, e := range os.Environ() {
		if strings.HasPrefix(e, "NOTIFY_SOCKET=") || strings.HasPrefix(e, "WATCHDOG_") {
			t.Errorf("the environment still has %s", e)
		}
	}
	if err := n.Ready("x"); err != nil || next() == "" {
		t.Error(err)
	}
}
