package runtimes

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// workshop is a folder like this one with tiny modules, and a go command that
// notes what it is asked to build and joins the sources into the "program".
type workshop struct {
	dir, bin, log string
}

const (
	fakeGo = `#!/bin/sh
if [ "$1" = env ]; then
	shift
	for v in "$@"; do case $v in GOVERSION) echo go1.26.6;; GOARCH) echo ` + goarch + `;; *) echo;; esac; done
	exit
fi
while [ $# -gt 1 ]; do [ "$1" = -o ] && out=$2; shift; done
echo "$(basename "$PWD") $1" >>"$FAKE_LOG"
sleep "${FAKE_SLEEP:-0}"
if [ "$(basename "$PWD")" = images ]; then
	printf '#!/bin/sh\ncp "$2" "$3"; echo sha256:%064d\n' 7 >"$out"
	chmod +x "$out"
else
	cat $(find . -name '*.go' | sort) >"$out"
fi
`
	fakeGcc = `#!/bin/sh
echo /bin/sh
`
	fakeBusybox = `#!/bin/sh
echo "BusyBox v1.35.0 (Debian 1:1.35.0-4) multi-call binary."
echo "more"
`
)

func newWorkshop(t *testing.T) *workshop {
	t.Helper()
	if _, err := exec.LookPath("zstd"); err != nil {
		t.Skip("needs zstd: apt-get install zstd")
	}
	w := &workshop{dir: t.TempDir(), bin: t.TempDir(), log: filepath.Join(t.TempDir(), "log")}
	script, err := os.ReadFile("build.sh")
	if err != nil {
		t.Fatal(err)
	}
	w.write(t, "build.sh", string(script))
	for module, requires := range map[string]string{
		"containerd": "require github.com/containerd/containerd/v2 v2.4.2\n",
		"runc":       "require github.com/opencontainers/runc v1.5.2\n",
		"runsc":      "require (\n\tgvisor.dev/gvisor v0.0.0-1\n)\n",
		"wrapper":    "", "canary": "", "images": "",
	} {
		w.write(t, module+"/go.mod", "module "+module+"\n\ngo 1.26.6\n\n"+requires)
		w.write(t, module+"/main.go", "package main // "+module+"\n")
	}
	for name, text := range map[string]string{"go": fakeGo, "gcc": fakeGcc, "pkg-config": fakeGcc, "busybox": fakeBusybox} {
		w.program(t, name, text)
	}
	return w
}

func (w *workshop) write(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join(w.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o755)); err != nil {
		t.Fatal(err)
	}
}

func (w *workshop) program(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(w.bin, name), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

func (w *workshop) command(env ...string) *exec.Cmd {
	cmd := exec.Command("/bin/bash", filepath.Join(w.dir, "build.sh"))
	cmd.Env = append([]string{
		"PATH=" + w.bin + ":" + os.Getenv("PATH"), "BUSYBOX=" + filepath.Join(w.bin, "busybox"), "FAKE_LOG=" + w.log,
	}, env...)
	// A group of its own, so that a test can kill the script with its children.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// run builds, and returns what the go command was asked for.
func (w *workshop) run(t *testing.T) []string {
	t.Helper()
	if err := os.RemoveAll(w.log); err != nil {
		t.Fatal(err)
	}
	if out, err := w.command().CombinedOutput(); err != nil {
		t.Fatalf("build.sh: %v\n%s", err, out)
	}
	return w.built(t)
}

func (w *workshop) built(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile(w.log)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

// check unpacks what was built, which verifies every digest.
func (w *workshop) check(t *testing.T) Paths {
	t.Helper()
	b, err := Open(os.DirFS(filepath.Join(w.dir, "out")))
	if err != nil {
		t.Fatal(err)
	}
	if missing := b.lacks(carried...); len(missing) > 0 {
		t.Fatalf("the build lacks %v", missing)
	}
	paths, err := b.Unpack(t.Context(), filepath.Join(t.TempDir(), "r"))
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func (w *workshop) tidy(t *testing.T) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(w.dir, ".build/tmp")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("temporary files were left: %v", err)
	}
}

var everything = []string{"containerd ./daemon", "containerd ./shim", "runc github.com/opencontainers/runc", "runsc .", "wrapper .", "canary .", "images ."}

func TestBuildMakesWhatIsEmbedded(t *testing.T) {
	w := newWorkshop(t)
	if got := w.run(t); !slices.Equal(got, everything) {
		t.Errorf("it built %q", got)
	}
	paths := w.check(t)
	w.tidy(t)
	for name, version := range map[string]string{
		Containerd: "v2.4.2", Shim: "v2.4.2", Runc: "v1.5.2", Runsc: "v0.0.0-1", Toolbox: "busybox-1:1.35.0-4",
	} {
		if p, _ := paths.Part(name); p.Version != version {
			t.Errorf("%s has version %q, want %q", name, p.Version, version)
		}
	}
	p, _ := paths.Part(Toolbox)
	if p.Reference != "carried.redoubt/toolbox:1" || !strings.HasPrefix(p.ImageDigest, "sha256:") || p.Kind != KindImage {
		t.Errorf("the toolbox is described as %+v", p)
	}
	got, err := os.ReadFile(paths.Runsc)
	if err != nil || string(got) != "package main // runsc\n" {
		t.Errorf("runsc holds %q, %v", got, err)
	}
}

func TestBuildMakesOnlyWhatChanged(t *testing.T) {
	w := newWorkshop(t)
	w.run(t)
	none := []string{""}
	for _, c := range []struct {
		change string
		do     func(t *testing.T)
		want   []string
	}{
		{"nothing", func(*testing.T) {}, none},
		{"a source of runsc", func(t *testing.T) { w.write(t, "runsc/main.go", "package main // 2\n") }, []string{"runsc ."}},
		{"a test", func(t *testing.T) { w.write(t, "runsc/main_test.go", "package main // 2\n") }, none},
		{"a pin", func(t *testing.T) {
			w.write(t, "runc/go.mod", "module runc\n\nrequire github.com/opencontainers/runc v1.5.3\n")
		}, []string{"runc github.com/opencontainers/runc"}},
		{"a new file of the daemon", func(t *testing.T) { w.write(t, "containerd/daemon/x.go", "package main\n") }, []string{"containerd ./daemon", "containerd ./shim"}},
		{"the wrapper", func(t *testing.T) { w.write(t, "wrapper/main.go", "package main // 2\n") }, []string{"wrapper ."}},
		{"the canary", func(t *testing.T) { w.write(t, "canary/main.go", "package main // 2\n") }, []string{"canary .", "images ."}},
		{"busybox", func(t *testing.T) { w.program(t, "busybox", fakeBusybox+"# 2\n") }, []string{"images ."}},
		{"a truncated result", func(t *testing.T) {
			if err := os.Truncate(filepath.Join(w.dir, "out/runsc.zst"), 10); err != nil {
				t.Fatal(err)
			}
		}, []string{"runsc ."}},
		{"a deleted result", func(t *testing.T) {
			if err := os.Remove(filepath.Join(w.dir, "out/redoubt-oci.zst")); err != nil {
				t.Fatal(err)
			}
		}, []string{"wrapper ."}},
		{"a deleted manifest", func(t *testing.T) {
			if err := os.Remove(filepath.Join(w.dir, "out/manifest.json")); err != nil {
				t.Fatal(err)
			}
		}, none},
		{"a part that is no more", func(t *testing.T) { w.write(t, "out/old.zst", "x") }, none},
		{"the compiler", func(t *testing.T) { w.program(t, "go", strings.Replace(fakeGo, "go1.26.6", "go1.27.0", 1)) }, everything},
	} {
		c.do(t)
		if got := w.run(t); !slices.Equal(got, c.want) {
			t.Errorf("%s: it built %q, want %q", c.change, got, c.want)
		}
		w.check(t)
	}
	if _, err := os.Stat(filepath.Join(w.dir, "out/old.zst")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is no part stays embedded: %v", err)
	}
}

func TestBuildThatFailsCountsAsNotBuilt(t *testing.T) {
	w := newWorkshop(t)
	w.run(t)
	before := w.check(t)
	w.write(t, "runsc/main.go", "package main // 2\n")
	w.program(t, "go", strings.Replace(fakeGo, "sleep", `[ "$(basename "$PWD")" != runsc ] || { echo "syntax error" >&2; exit 1; }; sleep`, 1))
	out, err := w.command().CombinedOutput()
	if err == nil || !strings.Contains(string(out), "syntax error") {
		t.Fatalf("error %v, output %s", err, out)
	}
	w.tidy(t)
	after := w.check(t)
	a, _ := before.Part(Runsc)
	b, _ := after.Part(Runsc)
	if a.Digest != b.Digest {
		t.Error("a failed build changed what is embedded")
	}
}

func TestBuildKilledAtAnyMoment(t *testing.T) {
	w := newWorkshop(t)
	unbuilt, built := 0, 0
	for i := range 20 {
		for _, m := range []string{"containerd", "runc", "runsc", "wrapper", "canary", "images"} {
			w.write(t, m+"/main.go", "package main // "+m+strings.Repeat("!", i)+"\n")
		}
		cmd := w.command("FAKE_SLEEP=0.01")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(i) * 25 * time.Millisecond)
		if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		switch b, err := Open(os.DirFS(filepath.Join(w.dir, "out"))); {
		case errors.Is(err, fs.ErrNotExist):
			unbuilt++
		case err != nil:
			t.Fatalf("killed after %d ms: %v", i*25, err)
		default:
			built++
			if _, err := b.Unpack(t.Context(), filepath.Join(t.TempDir(), "r")); err != nil {
				t.Fatalf("killed after %d ms: %v", i*25, err)
			}
		}
	}
	if unbuilt == 0 {
		t.Error("no kill fell before the first build was complete, so nothing was shown")
	}
	t.Logf("after the kill: nothing embedded %d times, a whole set %d times", unbuilt, built)
	w.run(t)
	w.check(t)
	w.tidy(t)
}

func TestBuildTwiceAtOnce(t *testing.T) {
	w := newWorkshop(t)
	var cmds []*exec.Cmd
	var outs [3]bytes.Buffer
	for i := range outs {
		cmd := w.command("FAKE_SLEEP=0.02")
		cmd.Stderr = &outs[i]
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		cmds = append(cmds, cmd)
	}
	for i, cmd := range cmds {
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %s", err, outs[i].String())
		}
	}
	if got := w.built(t); !slices.Equal(got, everything) {
		t.Errorf("they built %q", got)
	}
	w.check(t)
}

func TestBuildNamesEachMissingPackage(t *testing.T) {
	w := newWorkshop(t)
	for _, name := range []string{"gcc", "pkg-config", "busybox"} {
		if err := os.Remove(filepath.Join(w.bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, tool := range strings.Fields("awk basename cat cmp cut dirname env find flock grep mkdir mv rm sed sh sha256sum sleep sort stat sync tr xargs") {
		path, err := exec.LookPath(tool)
		if err != nil {
			t.Skipf("needs %s", tool)
		}
		if err := os.Symlink(path, filepath.Join(w.bin, tool)); err != nil {
			t.Fatal(err)
		}
	}
	cmd := w.command()
	cmd.Env = append(cmd.Env, "PATH="+w.bin)
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Fatalf("it went through: %s", out)
	}
	var lines []string
	for _, l := range strings.Split(string(out), "\n") {
		if _, pkg, ok := strings.Cut(l, "apt-get install "); ok {
			lines = append(lines, pkg)
		}
	}
	if want := []string{"gcc", "pkg-config", "libc6-dev", "libseccomp-dev", "busybox-static", "zstd"}; !slices.Equal(lines, want) {
		t.Errorf("it names %q, want %q:\n%s", lines, want, out)
	}
	if got := w.built(t); !slices.Equal(got, []string{""}) {
		t.Errorf("it built %q before it said what is missing", got)
	}
}
