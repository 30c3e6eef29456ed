package runtimes

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/sys/unix"
)

func TestUnpackPutsEveryPartInItsPlace(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	paths, err := open(t, syntheticFS()).Unpack(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	checkUnpacked(t, dir, paths)
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("the folder has mode %v, %v; want 0700", st.Mode(), err)
	}
	if len(paths.Repaired) != 0 {
		t.Errorf("a first unpack says that it repaired %v", paths.Repaired)
	}
	if paths.Runc != "" || !strings.Contains(paths.Missing[Runc], "carries no runc") {
		t.Errorf("runc, which is not in the bundle: path %q, reason %q", paths.Runc, paths.Missing[Runc])
	}
	if filepath.Base(paths.ToolboxImage) != "toolbox.tar" || filepath.Base(paths.Wrapper) != "redoubt-oci" {
		t.Errorf("unexpected names: %s, %s", paths.ToolboxImage, paths.Wrapper)
	}
}

func TestUnpackLeavesGoodFilesAlone(t *testing.T) {
	dir := t.TempDir() + "/r"
	b := open(t, syntheticFS())
	first, err := b.Unpack(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(first.Runsc)
	if err != nil {
		t.Fatal(err)
	}
	second, err := b.Unpack(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(second.Runsc)
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(before, after) || len(second.Repaired) != 0 {
		t.Errorf("a good file was written again (repaired: %v)", second.Repaired)
	}
}

func TestUnpackRepairsWhatWasChanged(t *testing.T) {
	for _, c := range []struct {
		harm  string
		do    func(file string) error
		mends bool // whether it is a repair, and not a part that was missing or had a wrong mode
	}{
		{"truncated", func(f string) error { return os.Truncate(f, 200_000) }, true},
		{"emptied", func(f string) error { return os.Truncate(f, 0) }, true},
		{"one bit flipped", func(f string) error {
			b, err := os.ReadFile(f)
			if err != nil {
				return err
			}
			b[123_456] ^= 4
			return os.WriteFile(f, b, 0o755)
		}, true},
		{"a byte appended", func(f string) error { return os.WriteFile(f, append(parts[Runsc], 0), 0o755) }, true},
		{"another content of the same size", func(f string) error { return os.WriteFile(f, content(9, len(parts[Runsc])), 0o755) }, true},
		{"a link to the right content", func(f string) error {
			return errors.Join(os.Rename(f, f+".moved"), os.Symlink(f+".moved", f))
		}, true},
		{"a dangling link", func(f string) error { return errors.Join(os.Remove(f), os.Symlink("/nonexistent", f)) }, true},
		{"a folder in its place", func(f string) error {
			return errors.Join(os.Remove(f), os.Mkdir(f, 0o755), os.WriteFile(f+"/x", nil, 0o600))
		}, true},
		{"its folder is a link elsewhere", func(f string) error {
			d := filepath.Dir(f)
			return errors.Join(os.Rename(d, d+"-moved"), os.Symlink(d+"-moved", d))
		}, true},
		{"given to another user", func(f string) error {
			if os.Geteuid() != 0 {
				return os.Remove(f) // only root can give a file away
			}
			return os.Chown(f, 65534, 65534)
		}, os.Geteuid() == 0},
		{"deleted", os.Remove, false},
		{"its folder deleted", func(f string) error { return os.RemoveAll(filepath.Dir(f)) }, false},
		{"not executable", func(f string) error { return os.Chmod(f, 0o600) }, false},
		{"writable by all", func(f string) error { return os.Chmod(f, 0o777) }, false},
	} {
		t.Run(c.harm, func(t *testing.T) {
			dir := t.TempDir() + "/r"
			b := open(t, syntheticFS())
			paths, err := b.Unpack(t.Context(), dir)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.do(paths.Runsc); err != nil {
				t.Fatal(err)
			}
			paths, err = b.Unpack(t.Context(), dir)
			if err != nil {
				t.Fatal(err)
			}
			checkUnpacked(t, dir, paths)
			if got := len(paths.Repaired) == 1 && paths.Repaired[0] == Runsc; got != c.mends {
				t.Errorf("it says that it repaired %v", paths.Repaired)
			}
		})
	}
}

func TestUnpackNeverWritesThroughALink(t *testing.T) {
	dir := t.TempDir() + "/r"
	b := open(t, syntheticFS())
	paths, err := b.Unpack(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(paths.Runsc), os.Symlink(victim, paths.Runsc)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Unpack(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(victim)
	st, statErr := os.Stat(victim)
	if err != nil || statErr != nil || string(got) != "precious" || st.Mode().Perm() != 0o600 {
		t.Errorf("the file behind the link became %q, %v", got, st.Mode())
	}
}

func TestUnpackRefusesADamagedBundle(t *testing.T) {
	for _, c := range []struct {
		harm string
		data []byte
	}{
		{"another content", compress(content(9, len(parts[Runsc])))},
		{"too long", compress(append(append([]byte(nil), parts[Runsc]...), 1, 2, 3))},
		{"too short", compress(parts[Runsc][:399_999])},
		{"cut off", compress(parts[Runsc])[:200_000]},
		{"no zstd", []byte("hello")},
		{"empty", nil},
	} {
		t.Run(c.harm, func(t *testing.T) {
			fsys := syntheticFS()
			fsys["runsc.zst"] = &fstest.MapFile{Data: c.data}
			dir := t.TempDir() + "/r"
			paths, err := open(t, fsys).Unpack(t.Context(), dir)
			if err == nil || !strings.Contains(err.Error(), "unpack runsc: the embedded copy is damaged, rebuild with make") {
				t.Fatalf("error %v", err)
			}
			if paths.Runsc != "" {
				t.Errorf("a failed unpack returned the path %s", paths.Runsc)
			}
			for _, f := range files(t, dir) {
				if strings.HasPrefix(f, tempPrefix) || strings.Contains(f, "runsc") {
					t.Errorf("%s was left behind", f)
				}
			}
		})
	}
}

func TestUnpackRefusesAFolderThatOthersCanChange(t *testing.T) {
	b := open(t, syntheticFS())
	t.Run("sticky", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.Chmod(dir, 0o777|fs.ModeSticky); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Unpack(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "choose a folder of its own") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("another owner", func(t *testing.T) {
		needRoot(t)
		dir := t.TempDir()
		if err := os.Chown(dir, 65534, 65534); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Unpack(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "belongs to another user") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("writable by all", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Unpack(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
		if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("it was left at %v, %v", st.Mode(), err)
		}
	})
	t.Run("a file", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Unpack(t.Context(), file); err == nil || !strings.Contains(err.Error(), "is not a folder") {
			t.Errorf("error %v", err)
		}
	})
}

func TestUnpackEndsWithItsContext(t *testing.T) {
	t.Run("while it waits for another process", func(t *testing.T) {
		dir := t.TempDir()
		unlock, err := lock(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		defer unlock()
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		_, err = open(t, syntheticFS()).Unpack(ctx, dir)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), dir) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("while it writes", func(t *testing.T) {
		dir := t.TempDir() + "/r"
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		slow := slowFS{syntheticFS(), func(name string, read int) {
			if name == "runsc.zst" && read > 100_000 {
				cancel()
			}
		}}
		if _, err := open(t, slow).Unpack(ctx, dir); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
		if n := checkNothingHalf(t, dir); n != 1 {
			t.Errorf("%d parts are in place, want the one that was complete", n)
		}
		for _, f := range files(t, dir) {
			if strings.HasPrefix(f, tempPrefix) {
				t.Errorf("%s was left behind", f)
			}
		}
	})
}

// smallDisk mounts a tmpfs of this size until the test ends.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("runtimes-test", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("needs to mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount the test's disk: %v", err)
		}
	})
	return dir
}

func checkFullDisk(t *testing.T, err error, dir string, need string) {
	t.Helper()
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("error %v, want ENOSPC in it", err)
	}
	for _, want := range []string{dir, need + " bytes"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not name %q: %v", want, err)
		}
	}
}

func TestUnpackOnADiskThatIsTooSmall(t *testing.T) {
	dir := smallDisk(t, "512k") + "/r"
	_, err := open(t, syntheticFS()).Unpack(t.Context(), dir)
	checkFullDisk(t, err, dir, "800010")
	if got := files(t, dir); len(got) != 1 || got[0] != lockName {
		t.Errorf("it left %v behind", got)
	}
}

func TestUnpackOnADiskThatFillsMeanwhile(t *testing.T) {
	disk := smallDisk(t, "1m")
	dir := disk + "/r"
	ballast := disk + "/ballast"
	filled := false
	slow := slowFS{syntheticFS(), func(name string, read int) {
		if name != "runsc.zst" || read < 100_000 || filled {
			return
		}
		filled = true
		f, err := os.Create(ballast)
		if err != nil {
			t.Error(err)
			return
		}
		defer f.Close()
		for {
			if _, err := f.Write(make([]byte, 4096)); err != nil {
				return
			}
		}
	}}
	paths, err := open(t, slow).Unpack(t.Context(), dir)
	if !filled {
		t.Fatal("the disk was never filled")
	}
	checkFullDisk(t, err, dir, "800010")
	if paths.Containerd != "" {
		t.Errorf("a failed unpack returned the path %s", paths.Containerd)
	}
	checkNothingHalf(t, dir)

	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	paths, err = open(t, syntheticFS()).Unpack(t.Context(), dir)
	if err != nil {
		t.Fatalf("with space again: %v", err)
	}
	checkUnpacked(t, dir, paths)
}
