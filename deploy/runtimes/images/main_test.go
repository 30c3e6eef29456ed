package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// program builds a static program to stand for the canary.
func program(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	src := filepath.Join(dir, "main.go")
	if err := os.WriteFile(src, []byte("package main\nfunc main() {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "build", "-o", filepath.Join(dir, "p"), src)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return filepath.Join(dir, "p")
}

func busybox(t *testing.T) string {
	t.Helper()
	const path = "/bin/busybox"
	if err := checkStatic(path); err != nil {
		t.Skipf("needs busybox-static: %v", err)
	}
	return path
}

// read returns the entries of a tar by name.
func read(t *testing.T, b []byte) (headers map[string]*tar.Header, data map[string][]byte) {
	t.Helper()
	headers, data = map[string]*tar.Header{}, map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return headers, data
		}
		if err != nil {
			t.Fatal(err)
		}
		if headers[h.Name] != nil {
			t.Errorf("%s is in it twice", h.Name)
		}
		headers[h.Name] = h
		if data[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

// build makes an image, and returns its config and the entries of its layer.
func build(t *testing.T, name, binary string) (v1.ConfigFile, map[string]*tar.Header, map[string][]byte) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "i.tar")
	if err := run([]string{name, binary, out}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	_, blobs := read(t, b)
	blob := func(h v1.Hash) []byte { return blobs["blobs/"+h.Algorithm+"/"+h.Hex] }
	var index v1.IndexManifest
	var manifest v1.Manifest
	var config v1.ConfigFile
	if err := json.Unmarshal(blobs["index.json"], &index); err != nil {
		t.Fatal(err)
	}
	if got := index.Manifests[0].Annotations["io.containerd.image.name"]; got != "carried.redoubt/"+name+":1" {
		t.Errorf("the image is called %q", got)
	}
	if err := json.Unmarshal(blob(index.Manifests[0].Digest), &manifest); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(blob(manifest.Config.Digest), &config); err != nil {
		t.Fatal(err)
	}
	if len(manifest.Layers) != 1 {
		t.Fatalf("it has %d layers", len(manifest.Layers))
	}
	headers, data := read(t, blob(manifest.Layers[0].Digest))
	return config, headers, data
}

func TestTheSameInputGivesTheSameBytes(t *testing.T) {
	binary := busybox(t)
	var sums [2][]byte
	for i := range sums {
		out := filepath.Join(t.TempDir(), "i.tar")
		if err := run([]string{"toolbox", binary, out}); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		sums[i] = b
		time.Sleep(1100 * time.Millisecond) // a time stamp would differ by a second
	}
	if !bytes.Equal(sums[0], sums[1]) {
		t.Error("two builds differ")
	}
}

func TestToolbox(t *testing.T) {
	config, headers, data := build(t, "toolbox", busybox(t))
	for _, name := range []string{"bin/sh", "bin/httpd", "bin/uname", "bin/dmesg", "bin/wget", "bin/nc"} {
		if h := headers[name]; h == nil || h.Typeflag != tar.TypeSymlink || h.Linkname != "busybox" {
			t.Errorf("%s is no link to busybox: %+v", name, h)
		}
	}
	if h := headers["bin/busybox"]; h == nil || h.Typeflag != tar.TypeReg || h.Mode != 0o755 {
		t.Errorf("bin/busybox: %+v", h)
	}
	if h := headers["www/cgi-bin/where"]; h == nil || h.Mode&0o111 == 0 || !strings.HasPrefix(string(data["www/cgi-bin/where"]), "#!/bin/sh\n") {
		t.Errorf("www/cgi-bin/where cannot run: %+v", h)
	}
	if h := headers["tmp/"]; h == nil || h.Mode != 0o1777 {
		t.Errorf("tmp: %+v", h)
	}
	for _, user := range []string{"root:x:0:0:", "nobody:x:65534:65534:"} {
		if !strings.Contains(string(data["etc/passwd"]), user) {
			t.Errorf("etc/passwd lacks %s", user)
		}
	}
	for name, h := range headers {
		if !h.ModTime.Equal(time.Unix(0, 0)) || h.Uid != 0 || h.Gid != 0 {
			t.Errorf("%s depends on the machine: %+v", name, h)
		}
	}
	if len(config.Config.Cmd) != 1 || config.Config.Cmd[0] != "/bin/sh" || config.OS != "linux" {
		t.Errorf("config %+v", config)
	}
}

func TestCanaryHoldsNothingElse(t *testing.T) {
	config, headers, _ := build(t, "canary", program(t))
	for name, h := range headers {
		if h.Typeflag == tar.TypeReg && name != "canary" && h.Size != 0 {
			t.Errorf("%s is in the image", name)
		}
	}
	if h := headers["canary"]; h == nil || h.Mode != 0o755 || h.Size == 0 {
		t.Errorf("canary: %+v", h)
	}
	if len(config.Config.Entrypoint) != 1 || config.Config.Entrypoint[0] != "/canary" {
		t.Errorf("entry point %v", config.Config.Entrypoint)
	}
}

func TestADynamicProgramIsRefused(t *testing.T) {
	shell, err := filepath.EvalSymlinks("/bin/sh")
	if err != nil || checkStatic(shell) == nil {
		t.Skip("needs a /bin/sh that is linked dynamically")
	}
	if err := run([]string{"canary", shell, filepath.Join(t.TempDir(), "o")}); err == nil || !strings.Contains(err.Error(), "linked dynamically") {
		t.Errorf("error %v", err)
	}
}
