package consensus

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"redoubt.dev/redoubt/control/state"
)

// plain is no security at all, for tests of what lies behind it.
var plain = Security{
	Server: func(_ context.Context, c net.Conn) (net.Conn, error) { return c, nil },
	Client: func(_ context.Context, c net.Conn) (net.Conn, error) { return c, nil },
}

func open(t *testing.T, dir, cluster, server string, sec Security) (*Node, *state.Store, error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	store := state.NewStore()
	n, err := Open(Config{
		ServerID: server, ClusterID: cluster, Dir: dir, Address: ln.Addr().String(),
		Layer: NewLayer(ln, sec, nil), Store: store, Logger: quiet(),
	})
	if err != nil {
		ln.Close()
	}
	return n, store, err
}

func run(t *testing.T, n *Node) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	<-n.Started()
	stopped := false
	stop = func() {
		cancel()
		if stopped {
			return
		}
		stopped = true
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Error("Run does not return")
		}
	}
	t.Cleanup(stop)
	return stop
}

func TestDataDirectoryHasOneOwner(t *testing.T) {
	dir := t.TempDir()
	n, _, err := open(t, dir, "c1", "a", plain)
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = open(t, dir, "c1", "a", plain)
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) {
		t.Fatalf("opened twice: %v", err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	for _, other := range [][2]string{{"c2", "a"}, {"c1", "b"}} {
		_, _, err := open(t, dir, other[0], other[1], plain)
		if !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), dir) {
			t.Errorf("opened by server %s of %s: %v", other[1], other[0], err)
		}
	}
	n, _, err = open(t, dir, "", "a", plain)
	if err != nil {
		t.Fatalf("its owner is refused after others were: %v", err)
	}
	n.Close()
	if err := os.Remove(filepath.Join(dir, identityFile)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := open(t, dir, "c1", "a", plain); !errors.Is(err, ErrForeign) {
		t.Fatalf("a log without an identity was taken: %v", err)
	}
}

func TestDiskKeepsWhatWasAcknowledged(t *testing.T) {
	dir := t.TempDir()
	n, _, err := open(t, dir, "c1", "a", plain)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	stop := run(t, n)
	eventually(t, "it leads", func() bool { _, ok := n.LeaderTerm(); return ok })
	mustPropose(t, &member{Node: n}, initCommand())
	mustPropose(t, &member{Node: n}, role("k1", "ann"))
	if err := n.Snapshot(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	mustPropose(t, &member{Node: n}, role("k2", "bob"))
	stop()

	n, store, err := open(t, dir, "c1", "a", plain)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Bootstrap(); !errors.Is(err, ErrBootstrapped) {
		t.Fatalf("bootstrapped twice: %v", err)
	}
	run(t, n)
	if err := store.Wait(within(t, 10*time.Second), 1); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it leads again", func() bool { _, ok := n.LeaderTerm(); return ok })
	m := &member{Node: n, store: store}
	if !has(m, "ann") || !has(m, "bob") || store.Snapshot().Cluster().ID != "c1" {
		t.Fatal("lost by a restart")
	}
}
