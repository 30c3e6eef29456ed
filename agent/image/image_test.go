package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const someDigest = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		in   string
		kind Kind
		name string
		host string
	}{
		{"nginx", Registry, "docker.io/library/nginx:latest", "docker.io"},
		{"nginx:1.27", Registry, "docker.io/library/nginx:1.27", "docker.io"},
		{"team/app", Registry, "docker.io/team/app:latest", "docker.io"},
		{"index.docker.io/nginx", Registry, "docker.io/library/nginx:latest", "docker.io"},
		{"localhost/app", Registry, "localhost/app:latest", "localhost"},
		{"registry.fleet:5000/hello:1", Registry, "registry.fleet:5000/hello:1", "registry.fleet:5000"},
		{"127.0.0.1:5000/a/b/c:v1", Registry, "127.0.0.1:5000/a/b/c:v1", "127.0.0.1:5000"},
		{"[::1]:5000/a", Registry, "[::1]:5000/a:latest", "[::1]:5000"},
		{"ghcr.io/o/n:v1@" + someDigest, Registry, "ghcr.io/o/n@" + someDigest, "ghcr.io"},
		{"toolbox", Carried, "carried.redoubt/toolbox:1", ""},
		{"canary", Carried, "carried.redoubt/canary:1", ""},
		{"carried.redoubt/toolbox:1", Carried, "carried.redoubt/toolbox:1", ""},
		{"docker.io/toolbox", Registry, "docker.io/library/toolbox:latest", "docker.io"},
		{"oci:/srv/images/app", Layout, "oci:/srv/images/app", ""},
		{"oci:/srv/images/../app/:v1", Layout, "oci:/srv/app:v1", ""},
	} {
		got, err := Parse(tt.in)
		if err != nil || got.Kind != tt.kind || got.Name != tt.name || got.Host != tt.host {
			t.Errorf("Parse(%q) = %+v, %v", tt.in, got, err)
		}
		// A name means itself.
		if again, err := Parse(got.Name); err != nil || again.Name != got.Name || again.Kind != got.Kind {
			t.Errorf("Parse(%q) = %+v, %v", got.Name, again, err)
		}
	}
	for in, text := range map[string]string{
		"":                       "empty",
		"UPPER/case":             "lower case",
		"nginx:":                 "tag",
		"nginx:a b":              "tag",
		"nginx@sha256:12":        "digest",
		"http://host/app":        "",
		"-bad.host/app":          "host",
		"oci:relative":           "absolute",
		"oci:/dir:bad tag":       "tag",
		"a//b":                   "lower case",
		strings.Repeat("a", 600): "longer",
	} {
		if _, err := Parse(in); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("Parse(%.40q): %v", in, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"nginx", "oci:/a:b", "h:1/a@" + someDigest, "toolbox", "[::1]/a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := Parse(s)
		if err != nil {
			return
		}
		again, err := Parse(ref.Name)
		if err != nil || again.Name != ref.Name || again.Kind != ref.Kind {
			t.Errorf("%q means %q, which means %q, %v", s, ref.Name, again.Name, err)
		}
	})
}

func TestLoopback(t *testing.T) {
	for host, want := range map[string]bool{
		"localhost": true, "localhost:5000": true, "127.0.0.1:5000": true, "127.9.9.9": true, "[::1]:5000": true,
		"registry.fleet:5000": false, "10.0.0.1": false, "localhost.evil.org": false, "127.0.0.1.evil.org": false,
	} {
		if Loopback(host) != want {
			t.Errorf("Loopback(%q) = %v", host, !want)
		}
	}
}

// write makes a layout with one image a tag.
func write(t *testing.T, tags ...string) string {
	t.Helper()
	dir := t.TempDir()
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	for _, tag := range tags {
		img, err := random.Image(1000, 2)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.AppendImage(img, layout.WithAnnotations(map[string]string{ocispec.AnnotationRefName: tag})); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func archive(t *testing.T, dir string) string {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	w.Close()
	path := filepath.Join(t.TempDir(), "layout.tar")
	if err := os.WriteFile(path, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func anyPlatform(ocispec.Platform) bool { return true }

func TestLayout(t *testing.T) {
	dir := write(t, "v1", "example.org/app:v2")
	for _, path := range []string{dir, archive(t, dir)} {
		l, err := OpenLayout(path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		seen := map[string]bool{}
		for _, tag := range []string{"v1", "v2"} {
			desc, manifest, err := l.Resolve(tag, anyPlatform)
			if err != nil || len(manifest.Layers) != 2 {
				t.Fatalf("%s: %+v, %v", tag, manifest, err)
			}
			seen[desc.Digest.String()] = true
			if _, err := l.Read(manifest.Config, MaxConfig); err != nil {
				t.Error(err)
			}
			if _, err := l.Read(manifest.Config, 10); err == nil || !strings.Contains(err.Error(), "larger") {
				t.Errorf("a document beyond its limit: %v", err)
			}
		}
		if len(seen) != 2 {
			t.Errorf("two tags name %v", seen)
		}
		if _, _, err := l.Resolve("", anyPlatform); err == nil || !strings.Contains(err.Error(), "v1") {
			t.Errorf("no tag where there are two: %v", err)
		}
		if _, _, err := l.Resolve("v3", anyPlatform); err == nil || !strings.Contains(err.Error(), `"v3"`) {
			t.Errorf("a tag that is not there: %v", err)
		}
		if _, err := l.Blob("sha256:../../../etc/passwd"); err == nil {
			t.Error("a digest that is a path was opened")
		}
	}
	one, err := OpenLayout(write(t, "x"))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := one.Resolve("", anyPlatform); err != nil {
		t.Errorf("no tag where there is one: %v", err)
	}
	if _, _, err := one.Resolve("", func(ocispec.Platform) bool { return false }); err == nil {
		t.Log("random images state no platform, which fits all") // documented by pick
	}
	if _, err := OpenLayout(t.TempDir()); err == nil || !strings.Contains(err.Error(), "not an OCI layout") {
		t.Errorf("an empty directory: %v", err)
	}
	if _, err := OpenLayout("/nowhere"); err == nil {
		t.Error("a directory that is not there was opened")
	}
}

func TestDamagedLayout(t *testing.T) {
	dir := write(t, "v1")
	l, err := OpenLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	desc, _, err := l.Resolve("v1", anyPlatform)
	if err != nil {
		t.Fatal(err)
	}
	blob := filepath.Join(dir, "blobs/sha256", desc.Digest.Encoded())
	data, err := os.ReadFile(blob)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(blob, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := l.Resolve("v1", anyPlatform); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("one bit off: %v", err)
	}
	// A blob that is a link out of the layout is not followed.
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, data, 0o600); err != nil {
		t.Fatal(err)
	}
	os.Remove(blob)
	if err := os.Symlink(secret, blob); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Blob(desc.Digest); err == nil {
		t.Error("a link out of the layout was followed")
	}
}

func TestNestedIndex(t *testing.T) {
	img, err := random.Image(100, 1)
	if err != nil {
		t.Fatal(err)
	}
	inner := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img})
	dir := t.TempDir()
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendIndex(inner); err != nil {
		t.Fatal(err)
	}
	l, err := OpenLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	want, _ := img.Digest()
	if desc, _, err := l.Resolve("", anyPlatform); err != nil || desc.Digest.String() != want.String() {
		t.Errorf("resolved %v, %v", desc.Digest, err)
	}
	// An index of more than fits is refused before it is read.
	var index ocispec.Index
	big, _ := json.Marshal(index)
	big = append(big, bytes.Repeat([]byte(" "), MaxManifest)...)
	if err := os.WriteFile(filepath.Join(dir, "index.json"), big, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := l.Resolve("", anyPlatform); err == nil || !strings.Contains(err.Error(), "larger") {
		t.Errorf("a huge index: %v", err)
	}
}
