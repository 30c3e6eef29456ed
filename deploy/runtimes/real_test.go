package runtimes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/pkg/namespaces"
)

// unpackReal unpacks the bundle that was built, or skips with what is missing.
func unpackReal(t *testing.T) Paths {
	t.Helper()
	b, err := Embedded()
	if errors.Is(err, ErrNotEmbedded) {
		t.Skip("needs the built runtimes: make -C deploy/runtimes")
	}
	if err != nil {
		t.Fatal(err)
	}
	paths, err := b.Unpack(t.Context(), filepath.Join(t.TempDir(), "runtimes"))
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestCarriedProgramsSayTheirPinnedVersion(t *testing.T) {
	paths := unpackReal(t)
	for _, c := range []struct{ name, path string }{
		{Containerd, paths.Containerd}, {Shim, paths.Shim}, {Runc, paths.Runc}, {Runsc, paths.Runsc},
	} {
		part, _ := paths.Part(c.name)
		got := hostVersion(t.Context(), c.name, c.path)
		if strings.TrimPrefix(got, "v") != strings.TrimPrefix(part.Version, "v") {
			t.Errorf("%s says version %q, the manifest %q", c.name, got, part.Version)
		}
	}
	if out := output(t, paths.Runc, "--version"); !strings.Contains(out, "libseccomp:") {
		t.Errorf("runc was built without seccomp:\n%s", out)
	}
}

func TestCarriedRunscStartsASandbox(t *testing.T) {
	needRoot(t)
	paths := unpackReal(t)
	// Never --network=host: that would set ip_forward on this machine.
	out := output(t, paths.Runsc, "--root="+t.TempDir(), "--platform=systrap", "--network=none", "do", "/bin/cat", "/proc/version")
	host, err := os.ReadFile("/proc/version")
	if err != nil {
		t.Fatal(err)
	}
	if strings.TrimSpace(out) == strings.TrimSpace(string(host)) || !strings.Contains(out, "Linux") {
		t.Errorf("the sandbox sees the host's kernel: %q", out)
	}
}

// config is what an agent would write for a daemon of its own.
const config = `version = 3
root = %[1]q
state = %[2]q
imports = []
disabled_plugins = ["io.containerd.nri.v1.nri"]
[grpc]
  address = %[3]q
[ttrpc]
  address = %[4]q
[plugins."io.containerd.shim.v1.manager"]
  socket_dir = %[5]q
`

func TestCarriedContainerdRunsTheCarriedToolbox(t *testing.T) {
	needRoot(t)
	paths := unpackReal(t)
	before, beforeErr := os.ReadDir("/run/containerd")

	// Unix sockets have short paths, so not below t.TempDir.
	dir, err := os.MkdirTemp("/tmp", "rrt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	file := filepath.Join(dir, "config.toml")
	address := filepath.Join(dir, "c.sock")
	text := fmt.Sprintf(config, dir+"/root", dir+"/state", address, address+".t", dir+"/s")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	daemon := exec.Command(paths.Containerd, "--config", file)
	daemon.Stdout, daemon.Stderr = &log, &log
	daemon.Env = append(os.Environ(), "PATH="+filepath.Dir(paths.Shim)+":"+filepath.Dir(paths.Runc)+":"+os.Getenv("PATH"))
	daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = daemon.Process.Signal(syscall.SIGTERM)
		_ = daemon.Wait()
		if t.Failed() {
			t.Logf("containerd wrote:\n%s", log.String())
		}
	})

	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(t.Context(), "rrt"), 30*time.Second)
	defer cancel()
	client, err := containerd.New(address, containerd.WithTimeout(20*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	v, err := client.Version(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if part, _ := paths.Part(Containerd); "v"+v.Version != part.Version {
		t.Errorf("the daemon says version %q, the manifest %q", v.Version, part.Version)
	}

	for _, c := range []struct{ name, path string }{{Toolbox, paths.ToolboxImage}, {Canary, paths.CanaryImage}} {
		part, ok := paths.Part(c.name)
		if !ok {
			t.Errorf("the bundle holds no %s image", c.name)
			continue
		}
		f, err := os.Open(c.path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		imported, err := client.Import(ctx, f, containerd.WithImageRefTranslator(archive.AddRefPrefix("")))
		if err != nil {
			t.Fatal(err)
		}
		if len(imported) != 1 || imported[0].Name != part.Reference || imported[0].Target.Digest.String() != part.ImageDigest {
			t.Errorf("%s came in as %+v; the manifest says %s, %s", c.name, imported, part.Reference, part.ImageDigest)
		}
		image := containerd.NewImage(client, imported[0])
		for _, snapshotter := range []string{"overlayfs", "native"} {
			if err := image.Unpack(ctx, snapshotter); err != nil {
				t.Errorf("unpack %s with %s: %v", c.name, snapshotter, err)
			}
		}
	}
	runIn(ctx, t, client, paths, dir)

	after, afterErr := os.ReadDir("/run/containerd")
	if (beforeErr == nil) != (afterErr == nil) || len(before) != len(after) {
		t.Errorf("a private containerd changed /run/containerd: %v, %v; before: %v, %v", after, afterErr, before, beforeErr)
	}
}
