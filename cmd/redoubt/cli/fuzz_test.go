package cli

import (
	"archive/tar"
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// FuzzConfig: no file makes the reader of a daemon's configuration fall over.
func FuzzConfig(f *testing.F) {
	for _, s := range []string{"", "data-dir: /x\nserver: [a:1, b:2]\n", "a: {b: c}", "a: &x [*x]", "- a", "a: 1\na: 2", "a: !!binary x"} {
		f.Add([]byte(s))
	}
	path := filepath.Join(f.TempDir(), "config.yml")
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		_, _ = readConfig(path)
	})
}

// FuzzPortPair: what is accepted has ports in their range.
func FuzzPortPair(f *testing.F) {
	for _, s := range []string{"80", "8080:80", ":80", "0:1", "65536:1", "a:b", "127.0.0.1:1:2", "-1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) { _, _ = parsePortPair(s) })
}

// FuzzUnpack: whatever stream an instance sends, nothing appears beside the
// target.
func FuzzUnpack(f *testing.F) {
	archive := func(headers ...tar.Header) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range headers {
			h.Mode = 0o644
			_ = w.WriteHeader(&h)
			_, _ = w.Write(make([]byte, h.Size))
		}
		_ = w.Close()
		return b.Bytes()
	}
	f.Add(archive(tar.Header{Name: "d/", Typeflag: tar.TypeDir}, tar.Header{Name: "d/a", Typeflag: tar.TypeReg, Size: 3}))
	f.Add(archive(tar.Header{Name: "d/", Typeflag: tar.TypeDir}, tar.Header{Name: "d/l", Typeflag: tar.TypeSymlink, Linkname: "../.."}, tar.Header{Name: "d/l/evil", Typeflag: tar.TypeReg, Size: 1}))
	f.Add(archive(tar.Header{Name: "d", Typeflag: tar.TypeReg, Size: 2}))
	f.Add(archive(tar.Header{Name: "d/", Typeflag: tar.TypeDir}, tar.Header{Name: "d/../../evil", Typeflag: tar.TypeReg, Size: 1}, tar.Header{Name: "d/h", Typeflag: tar.TypeLink, Linkname: "/etc/passwd"}))
	f.Fuzz(func(t *testing.T, stream []byte) {
		if len(stream) > 64<<10 {
			return
		}
		dir := t.TempDir()
		to := filepath.Join(dir, "to")
		if err := os.Mkdir(to, 0o700); err != nil {
			t.Fatal(err)
		}
		x := &unpacking{base: "d", source: "/d", target: target{parent: to, name: "d"}}
		_ = x.run(bytes.NewReader(stream))
		_ = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			rel, _ := filepath.Rel(dir, path)
			if err == nil && rel != "." && rel != "to" && rel != filepath.Join("to", "d") && len(rel) > 5 && rel[:5] != "to/d/" {
				t.Errorf("%q was made", rel)
			}
			return nil
		})
	})
}
