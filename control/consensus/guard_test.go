package consensus

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"redoubt.dev/redoubt/control/state"
)

// disk is a store that may be full.
type disk struct {
	*raft.InmemStore
	full atomic.Bool
}

func (d *disk) err() error {
	if d.full.Load() {
		return &os.PathError{Op: "write", Path: "raft.db", Err: syscall.ENOSPC}
	}
	return nil
}

func (d *disk) StoreLog(l *raft.Log) error { return d.StoreLogs([]*raft.Log{l}) }

func (d *disk) StoreLogs(l []*raft.Log) error {
	if err := d.err(); err != nil {
		return err
	}
	return d.InmemStore.StoreLogs(l)
}

func (d *disk) Set(k, v []byte) error {
	if err := d.err(); err != nil {
		return err
	}
	return d.InmemStore.Set(k, v)
}

func (d *disk) SetUint64(k []byte, v uint64) error {
	if err := d.err(); err != nil {
		return err
	}
	return d.InmemStore.SetUint64(k, v)
}

// disks gives every server of s a disk.
func disks(s *servers) (func(*Config), map[string]*disk) {
	all := map[string]*disk{}
	return func(c *Config) {
		d := &disk{InmemStore: raft.NewInmemStore()}
		all[c.ServerID] = d
		c.Storage = &Storage{Logs: d, Stable: d, Snapshots: raft.NewInmemSnapshotStore()}
	}, all
}

func TestALeaderWithAFullDiskLetsOthersLeadAndComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &servers{t: t, m: map[string]*member{}}
		edit, disk := disks(s)
		a := s.start("a", true, edit)
		s.leader()
		mustPropose(t, a, initCommand())
		for _, id := range []string{"b", "c"} {
			s.start(id, false, edit)
			if _, err := a.AddVoter(within(t, 5*time.Second), id, "at-"+id); err != nil {
				t.Fatal(err)
			}
		}
		defer s.stopAll()

		disk["a"].full.Store(true)
		if _, err := a.Propose(within(t, 10*time.Second), role("k1", "ann")); err == nil {
			t.Fatal("a full disk took an entry")
		}
		lead := s.leader(a)
		if got := a.StoreFailure(); got != "disk full" {
			t.Errorf("it says %q", got)
		}
		mustPropose(t, lead, role("k2", "bob"))
		term := lead.Term()
		time.Sleep(60 * time.Second) // long enough for many elections
		if now, ok := lead.LeaderTerm(); !ok || now != term {
			t.Errorf("the server with the full disk made an election: term %d, then %d", term, now)
		}
		if has(a, "bob") {
			t.Error("it applied what it could not store")
		}

		disk["a"].full.Store(false)
		eventually(t, "it catches up", func() bool { return has(a, "bob") })
		if got := a.StoreFailure(); got != "" {
			t.Errorf("with room again it says %q", got)
		}
	})
}

func TestAServerAloneWithAFullDiskWaitsAndLeadsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &servers{t: t, m: map[string]*member{}}
		edit, disk := disks(s)
		a := s.start("a", true, edit)
		defer s.stopAll()
		s.leader()
		mustPropose(t, a, initCommand())
		disk["a"].full.Store(true)
		if _, err := a.Propose(within(t, 10*time.Second), role("k1", "ann")); err == nil {
			t.Fatal("a full disk took an entry")
		}
		time.Sleep(60 * time.Second) // Raft would panic at its first election
		if _, leads := a.LeaderTerm(); leads || a.StoreFailure() != "disk full" {
			t.Fatalf("it leads: %v; its store: %q", leads, a.StoreFailure())
		}
		disk["a"].full.Store(false)
		s.leader()
		mustPropose(t, a, role("k2", "bob"))
	})
}

// It stops while its disk is full, too.
func TestAServerWithAFullDiskStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &servers{t: t, m: map[string]*member{}}
		edit, disk := disks(s)
		a := s.start("a", true, edit)
		s.leader()
		disk["a"].full.Store(true)
		if _, err := a.Propose(within(t, 10*time.Second), initCommand()); err == nil {
			t.Fatal("a full disk took an entry")
		}
		time.Sleep(10 * time.Second)
		s.stopAll()
	})
}

// The same on a real file system that is too small.
func TestARealFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("redoubt-test", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Skipf("a tmpfs cannot be mounted (root is needed): %v", err)
	}
	defer func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	_, trans := raft.NewInmemTransport("at-a")
	store := state.NewStore()
	n, err := Open(Config{ServerID: "a", ClusterID: "c1", Dir: filepath.Join(dir, "raft"), Address: "at-a", Transport: trans, Store: store, Logger: quiet(), Reserve: 256 << 10})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	stop := run(t, n)
	defer func() { stop() }()
	leads := func() bool { _, ok := n.LeaderTerm(); return ok }
	eventually(t, "it leads", leads)
	m := &member{Node: n, id: "a", store: store}
	mustPropose(t, m, initCommand())

	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 4<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	// It lives on its reserve first, and says so; then even that is used up.
	reserved, refused := false, false
	for i := range 400 {
		if n.StoreFailure() == onReserve && n.OnReserve() && leads() {
			reserved = true
		}
		if _, err := n.Propose(within(t, 10*time.Second), role("full-"+user(i), strings.Repeat("x", 200))); err != nil {
			refused = true
			break
		}
	}
	if !refused || !reserved {
		t.Fatalf("400 entries on a full disk: refused one: %v, lived on its reserve: %v", refused, reserved)
	}
	eventually(t, "it says so", func() bool { return n.StoreFailure() == "disk full" && !leads() })
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it leads again", leads)
	mustPropose(t, m, role("after", "ann"))
	eventually(t, "with room again all is well, and the reserve there", func() bool {
		fi, err := os.Stat(filepath.Join(dir, "raft", reserveFile))
		return n.StoreFailure() == "" && err == nil && fi.Size() == 256<<10
	})
}

// What is planned is no error in the log.
func TestAPlannedRedialIsNoError(t *testing.T) {
	for err, want := range map[error]bool{errDraining: false, io.ErrUnexpectedEOF: true} {
		var log strings.Builder
		hclogger(slog.New(slog.NewTextHandler(&log, nil))).Error("failed to heartbeat to", "peer", "b", "error", err)
		if got := log.Len() > 0; got != want {
			t.Errorf("%v: logged %q", err, log.String())
		}
	}
}
