package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(dir, "n1")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func assignment(uid string, index uint64) *redoubtv1.Assignment {
	return &redoubtv1.Assignment{Uid: uid, Node: "n1", Instance: "web-" + uid, Fence: &redoubtv1.Fence{Index: index}}
}

func uids(s *Store) string {
	var out []string
	for _, a := range s.Assignments() {
		out = append(out, a.GetUid())
	}
	return strings.Join(out, " ")
}

func TestEverythingSurvivesReopening(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	if s.Authoritative() {
		t.Fatal("a new store must not be authoritative")
	}
	must(t, s.BindCluster("c1"))
	must(t, s.SaveAssignments(Update{Complete: true, Version: 7, Updated: []*redoubtv1.Assignment{assignment("a", 3), assignment("b", 4)}}))
	must(t, s.SaveAssignments(Update{From: 7, Version: 9, Updated: []*redoubtv1.Assignment{assignment("c", 9)}, Removed: []string{"a"}}))
	f, err := s.PutFacts(Facts{UID: "b", Phase: Running, Pid: 12, Delay: time.Second, NotBefore: Moment{Boot: "x", At: time.Minute}})
	must(t, err)
	if f.Sequence != 1 {
		t.Fatalf("first sequence is %d", f.Sequence)
	}
	fleet := &redoubtv1.FleetUpdate{Servers: []string{"s1:7450"}, GossipKeys: [][]byte{make([]byte, 32)}}
	must(t, s.SetFleet(fleet))
	must(t, s.SetLease(Lease{Renewed: Moment{Boot: "x", At: 5}, Term: 2}))
	g, err := s.Generation("one")
	must(t, err)
	must(t, s.Close())

	s = open(t, dir)
	defer s.Close()
	if got := uids(s); got != "b c" {
		t.Fatalf("assignments are %q", got)
	}
	if s.Version() != 9 || s.Cluster() != "c1" || !s.Authoritative() || s.Lease().Term != 2 {
		t.Fatalf("meta did not survive: %+v", s.meta)
	}
	if !proto.Equal(s.Fleet(), fleet) {
		t.Fatal("fleet did not survive")
	}
	if fs := s.Facts(); len(fs) != 1 || fs[0] != f {
		t.Fatalf("facts are %+v, want %+v", fs, f)
	}
	if again, err := s.Generation("one"); err != nil || again != g {
		t.Fatalf("the generation moved to %d without a change (%v)", again, err)
	}
	if next, err := s.Generation("two"); err != nil || next != g+1 {
		t.Fatalf("generation is %d after a change, want %d (%v)", next, g+1, err)
	}
	f.Message = "x"
	f2, err := s.PutFacts(f)
	must(t, err)
	if f2.Sequence != 2 {
		t.Fatalf("sequence after reopening is %d, want 2", f2.Sequence)
	}
	if same, _ := s.PutFacts(f2); same.Sequence != 2 {
		t.Fatal("the sequence moved without a change")
	}
}

func TestModesKeepSecretsPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	s := open(t, dir)
	defer s.Close()
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, fileName): 0o600} {
		fi, err := os.Stat(path)
		must(t, err)
		if fi.Mode().Perm() != want {
			t.Errorf("%s has mode %o, want %o", path, fi.Mode().Perm(), want)
		}
	}
}

func TestGapChangesNothing(t *testing.T) {
	s := open(t, t.TempDir())
	defer s.Close()
	if err := s.SaveAssignments(Update{From: 0, Version: 1}); !errors.Is(err, ErrGap) {
		t.Fatalf("an incremental update before any complete one: %v", err)
	}
	must(t, s.SaveAssignments(Update{Complete: true, Version: 5, Updated: []*redoubtv1.Assignment{assignment("a", 1)}}))
	if err := s.SaveAssignments(Update{From: 4, Version: 6, Removed: []string{"a"}}); !errors.Is(err, ErrGap) {
		t.Fatalf("a gap: %v", err)
	}
	if uids(s) != "a" || s.Version() != 5 {
		t.Fatal("a refused update changed the store")
	}
}

func TestRefusesWhatIsNotItsOwn(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	must(t, s.BindCluster("c1"))
	if err := s.BindCluster("c2"); !errors.Is(err, ErrCluster) || !strings.Contains(err.Error(), "--data-dir") {
		t.Errorf("another cluster: %v", err)
	}
	other := assignment("a", 1)
	other.Node = "n2"
	if err := s.SaveAssignments(Update{Complete: true, Version: 1, Updated: []*redoubtv1.Assignment{other}}); err == nil {
		t.Error("another node's assignment was stored")
	}
	if _, err := Open(dir, "n1"); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "in use by process") {
		t.Errorf("a directory in use: %v", err)
	}
	must(t, s.Close())
	if _, err := Open(dir, "n2"); err == nil || !strings.Contains(err.Error(), "belongs to node n1") {
		t.Errorf("another node's directory: %v", err)
	}
}

func TestDamageIsRefusedAndKept(t *testing.T) {
	build := func(t *testing.T) string {
		dir := t.TempDir()
		s := open(t, dir)
		must(t, s.SaveAssignments(Update{Complete: true, Version: 1, Updated: []*redoubtv1.Assignment{assignment("aaaaaaaaaaaaaaaaaaaa", 1)}}))
		must(t, s.Close())
		return dir
	}
	for name, damage := range map[string]func([]byte) []byte{
		"cut to a page": func(b []byte) []byte { return b[:os.Getpagesize()] },
		"cut in two":    func(b []byte) []byte { return b[:len(b)/4] },
		"zeroes":        func(b []byte) []byte { clear(b); return b },
		"one letter": func(b []byte) []byte {
			// in the instance's name, which no structure of the file covers
			return []byte(strings.ReplaceAll(string(b), "web-aaa", "web-aab"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := build(t)
			path := filepath.Join(dir, fileName)
			b, err := os.ReadFile(path)
			must(t, err)
			b = damage(b)
			must(t, os.WriteFile(path, b, 0o600))
			s, err := Open(dir, "n1")
			if err == nil {
				s.Close()
				t.Fatal("a damaged store was opened")
			}
			if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "move that file away") {
				t.Fatalf("damage is reported as: %v", err)
			}
			if after, _ := os.ReadFile(path); len(after) != len(b) {
				t.Fatal("the damaged file was changed")
			}
		})
	}
}

func TestFullDiskLosesNothing(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount a small file system")
	}
	dir := t.TempDir()
	must(t, syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"))
	defer syscall.Unmount(dir, 0)
	s := open(t, dir)
	s.reserve.size = 128 << 10
	if s.DiskFull() {
		t.Error("the disk counts as full at the start")
	}
	must(t, s.SaveAssignments(Update{Complete: true, Version: 1, Updated: []*redoubtv1.Assignment{assignment("a", 1)}}))
	fill, err := os.Create(filepath.Join(dir, "fill"))
	must(t, err)
	for buf := make([]byte, 4096); err == nil; {
		_, err = fill.Write(buf)
	}
	fill.Close()
	var full error
	onReserve := false
	for v := uint64(1); v < 400 && full == nil; v++ {
		onReserve = onReserve || s.DiskFull()
		a := assignment("b", v)
		a.Why = strings.Repeat("x", 64<<10)
		full = s.SaveAssignments(Update{From: v, Version: v + 1, Updated: []*redoubtv1.Assignment{a}})
	}
	if !errors.Is(full, syscall.ENOSPC) || !strings.Contains(full.Error(), "free space") {
		t.Fatalf("a full disk is reported as: %v", full)
	}
	if !onReserve || !s.DiskFull() {
		t.Errorf("it lived on its reserve: %v; the disk is full: %v", onReserve, s.DiskFull())
	}
	version, held := s.Version(), uids(s)
	must(t, os.Remove(filepath.Join(dir, "fill")))
	must(t, s.SaveAssignments(Update{From: version, Version: version + 1}))
	if s.DiskFull() {
		t.Error("with room again the disk counts as full")
	}
	if _, err := os.Stat(filepath.Join(dir, reserveFile)); err != nil {
		t.Errorf("with room again there is no reserve: %v", err)
	}
	must(t, s.Close())
	s = open(t, dir)
	defer s.Close()
	if s.Version() != version+1 || uids(s) != held {
		t.Fatalf("after a full disk: version %d, %q; want %d, %q", s.Version(), uids(s), version+1, held)
	}
}

func TestEmptyNewsDoesNotReplaceTheFleet(t *testing.T) {
	s := open(t, t.TempDir())
	defer s.Close()
	must(t, s.SetFleet(&redoubtv1.FleetUpdate{Servers: []string{"a"}, Bundle: [][]byte{{1}}, GossipKeys: [][]byte{{2}}}))
	must(t, s.SetFleet(&redoubtv1.FleetUpdate{GossipPeers: []string{"p"}}))
	f := s.Fleet()
	if len(f.Servers) != 1 || len(f.Bundle) != 1 || len(f.GossipKeys) != 1 || len(f.GossipPeers) != 1 {
		t.Fatalf("fleet is %v", f)
	}
}

func TestWatchHearsOfEveryChange(t *testing.T) {
	s := open(t, t.TempDir())
	defer s.Close()
	ch, stop := s.Watch()
	defer stop()
	_, err := s.PutFacts(Facts{UID: "a", Phase: Starting})
	must(t, err)
	select {
	case <-ch:
	default:
		t.Fatal("no word of a change")
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestAServerFillsNoDisk: what a server assigns is bounded in number and size, and
// what is held stays.
func TestAServerFillsNoDisk(t *testing.T) {
	s, err := Open(t.TempDir(), "n1")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.SaveAssignments(Update{Complete: true, Version: 1, Updated: []*redoubtv1.Assignment{{Uid: "a", Node: "n1"}}}); err != nil {
		t.Fatal(err)
	}
	var flood []*redoubtv1.Assignment
	for i := range MaxAssignments {
		flood = append(flood, &redoubtv1.Assignment{Uid: fmt.Sprint("x", i)})
	}
	if err := s.SaveAssignments(Update{From: 1, Version: 2, Updated: flood}); err == nil || !strings.Contains(err.Error(), "a node takes 4096") {
		t.Errorf("one too many: %v", err)
	}
	large := &redoubtv1.Assignment{Uid: "large", Why: strings.Repeat("x", MaxAssignmentBytes)}
	if err := s.SaveAssignments(Update{From: 1, Version: 2, Updated: []*redoubtv1.Assignment{large}}); err == nil || !strings.Contains(err.Error(), "64 MiB") {
		t.Errorf("one too large: %v", err)
	}
	if got := s.Assignments(); len(got) != 1 || s.Version() != 1 {
		t.Errorf("held: %d of version %d", len(got), s.Version())
	}
	if err := s.SaveAssignments(Update{From: 1, Version: 2, Updated: flood[1:]}); err != nil {
		t.Errorf("as many as may be: %v", err)
	}
}
