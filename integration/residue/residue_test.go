package residue

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// here keeps the walk small: the whole file system is for the demo's test.
func here(t *testing.T) (Options, string) {
	t.Helper()
	dir := t.TempDir()
	return Options{Root: dir, Clone: filepath.Join(dir, "clone")}, dir
}

func take(t *testing.T, o Options) List {
	t.Helper()
	l, err := Take(o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func of(kind Kind, ds []Difference) []Difference {
	return slices.DeleteFunc(slices.Clone(ds), func(d Difference) bool { return d.Kind != kind })
}

func TestAListHoldsTheHost(t *testing.T) {
	o, _ := here(t)
	l := take(t, o)
	for _, k := range []Kind{Process, Mount, Namespace, Link, Group, Sysctl, File} {
		if len(l.Things[k]) == 0 {
			t.Errorf("no %s was seen", k)
		}
	}
}

func TestEveryChangeOfAFileIsSeen(t *testing.T) {
	o, dir := here(t)
	kept := filepath.Join(dir, "kept")
	for _, p := range []string{kept, filepath.Join(dir, "goes")} {
		if err := os.WriteFile(p, []byte("one"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(o.Clone, 0o755); err != nil {
		t.Fatal(err)
	}
	o.Ignore = []string{dir + "/left-*"}
	before := take(t, o)
	if d := of(File, Diff(before, take(t, o))); len(d) != 0 {
		t.Fatalf("nothing was done and yet:\n%s", Describe(d))
	}
	info, err := os.Stat(kept)
	if err != nil {
		t.Fatal(err)
	}
	// The same size and, by a forger's hand, the same time: ctime tells.
	for _, err := range []error{
		os.WriteFile(kept, []byte("two"), 0o600),
		os.Chtimes(kept, info.ModTime(), info.ModTime()),
		os.Remove(filepath.Join(dir, "goes")),
		os.Mkdir(filepath.Join(dir, "folder"), 0o755),
		os.WriteFile(filepath.Join(o.Clone, "free"), nil, 0o600),
		os.Mkdir(filepath.Join(dir, "left-out"), 0o755),
		os.WriteFile(filepath.Join(dir, "left-out", "file"), nil, 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for _, d := range of(File, Diff(before, take(t, o))) {
		got = append(got, strings.TrimPrefix(d.Name, dir+"/"))
	}
	if want := []string{"folder", "goes", "kept"}; !slices.Equal(got, want) {
		t.Fatalf("differences %q, want %q", got, want)
	}
}

func TestAProcessLeftBehindIsSeenAndAnotherOnesIsNot(t *testing.T) {
	o, _ := here(t)
	// A shell that was there before and starts something on our word.
	shell := exec.Command("/bin/sh", "-c", "read x; sleep 60 & read x; kill $!")
	in, err := shell.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close(); _ = shell.Wait() }()
	before := take(t, o)
	if _, err := in.Write([]byte("go\n")); err != nil {
		t.Fatal(err)
	}
	left := exec.Command("/bin/sleep", "61")
	left.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := left.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = left.Process.Kill(); _ = left.Wait() }()
	for deadline := time.Now().Add(5 * time.Second); ; {
		after := take(t, o)
		commands := ""
		for _, c := range after.Things[Process] {
			commands += c + "\n"
		}
		if !strings.Contains(commands, "sleep 60") {
			if time.Now().After(deadline) {
				t.Fatal("the shell started nothing")
			}
			time.Sleep(20 * time.Millisecond)
			continue
		}
		reported := Describe(of(Process, Diff(before, after)))
		if !strings.Contains(reported, "sleep 61") || strings.Contains(reported, "sleep 60") {
			t.Fatalf("reported:\n%s", reported)
		}
		return
	}
}

func TestAMountAndAGroupLeftBehindAreSeen(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount")
	}
	o, dir := here(t)
	before := take(t, o)
	point := filepath.Join(dir, "mount")
	if err := os.Mkdir(point, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", point, "tmpfs", 0, ""); err != nil {
		t.Skipf("needs to mount a tmpfs: %v", err)
	}
	defer func() { _ = unix.Unmount(point, unix.MNT_DETACH) }()
	group := ""
	for _, p := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup"} {
		g := filepath.Join(p, "redoubt-residue-test")
		if err := os.Mkdir(g, 0o755); err == nil {
			group = g
			break
		} else if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrPermission) {
			t.Fatal(err)
		}
	}
	defer os.Remove(group)
	diff := Describe(Diff(before, take(t, o)))
	for _, want := range []string{"new mount: " + point, "new control group: " + group} {
		if !strings.Contains(diff, want) {
			t.Errorf("%q is not among:\n%s", want, diff)
		}
	}
}
