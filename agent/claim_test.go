package agent

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// TestClaimHolder is the other process of TestOneAgentANodeID.
func TestClaimHolder(t *testing.T) {
	root := os.Getenv("CLAIM_ROOT")
	if root == "" {
		return
	}
	c, err := claimNode(root, "edge-1", "/var/lib/other")
	if err != nil {
		t.Fatal(err)
	}
	// Its child outlives it, as containerd and the shims do.
	child := exec.Command("sleep", "60")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	fmt.Printf("held %d\n", child.Process.Pid)
	_ = child.Wait()
	_ = c.release()
}

// An agent is refused the node id that another of this machine has, with who
// has it and what to do, until that one has ended, however it ended.
func TestOneAgentANodeID(t *testing.T) {
	root := filepath.Join(t.TempDir(), "redoubt")
	other := exec.Command(os.Args[0], "-test.run=^TestClaimHolder$")
	other.Env = append(os.Environ(), "CLAIM_ROOT="+root)
	out, err := other.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	var child int
	if _, scan := fmt.Sscanf(line, "held %d", &child); err != nil || scan != nil {
		t.Fatalf("the other says %q, %v", line, err)
	}
	defer func() {
		if p, err := os.FindProcess(child); err == nil {
			_ = p.Kill()
		}
	}()

	_, err = claimNode(root, "edge-1", "/var/lib/mine")
	want := fmt.Sprintf("node edge-1: node id is in use on this machine: the agent with pid %d and data directory /var/lib/other has it, and what a node has on a host is named by its id; stop that agent, or give this one another id with --node", other.Process.Pid)
	if !errors.Is(err, ErrNodeHeld) || err.Error() != want {
		t.Errorf("a second agent:\n%v, want\n%s", err, want)
	}
	if c, err := claimNode(root, "edge-2", "/var/lib/mine"); err != nil {
		t.Errorf("another id: %v", err)
	} else if err := c.release(); err != nil {
		t.Error(err)
	}

	_ = other.Process.Kill()
	_ = other.Wait()
	c, err := claimNode(root, "edge-1", "/var/lib/mine")
	if err != nil {
		t.Fatalf("after the other was killed: %v", err)
	}
	if err := errors.Join(c.release(), c.release()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(root); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left after a clean end: %v", err)
	}
	for _, bad := range []string{"", "a/b", "../b"} {
		if _, err := claimNode(root, bad, ""); err == nil || !strings.Contains(err.Error(), "no node id") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// Of many that come and go at once, one has it at a time.
func TestClaimsComeAndGo(t *testing.T) {
	root := filepath.Join(t.TempDir(), "redoubt")
	// The one that has it goes while another is between opening and locking.
	path := filepath.Join(root, "n.lock")
	f, err := lockFile(path)
	if err != nil {
		t.Fatal(err)
	}
	late, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	if err := (&claim{f}).release(); err != nil {
		t.Fatal(err)
	}
	next, err := lockFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if has, err := lockOpened(late, path); err != nil || has {
		t.Errorf("a removed file passes for a claim: %v, %v", has, err)
	}
	if err := (&claim{next}).release(); err != nil {
		t.Fatal(err)
	}

	var holders, got atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				f, err := lockFile(path)
				if err != nil {
					continue
				}
				got.Add(1)
				if holders.Add(1) != 1 {
					t.Error("two have it")
				}
				holders.Add(-1)
				if err := (&claim{f}).release(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got.Load() < 100 {
		t.Errorf("only %d got it", got.Load())
	}
}
