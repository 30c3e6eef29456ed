package cli

import (
	"archive/tar"
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// sent is a tar stream as an image might send it; a file's body is its Linkname.
func sent(t *testing.T, headers ...tar.Header) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		body := ""
		if h.Typeflag == tar.TypeReg {
			body, h.Linkname = h.Linkname, ""
			h.Size = int64(len(body))
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

// listing is everything below dir, with contents of files and targets of links.
func listing(t *testing.T, dir string) (all []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		switch {
		case d.IsDir():
			rel += "/"
		case d.Type()&fs.ModeSymlink != 0:
			to, _ := os.Readlink(p)
			rel += " -> " + to
		default:
			data, _ := os.ReadFile(p)
			rel += "=" + string(data)
		}
		all = append(all, rel)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// Whatever an image sends, nothing is written outside of the destination, and
// what is refused says so.
func TestNothingIsCopiedOutsideOfTheDestination(t *testing.T) {
	const file, dir, link, hard = tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink
	top := tar.Header{Name: "./d/", Typeflag: dir, Mode: 0o755}
	for name, tt := range map[string]struct {
		stream  []tar.Header
		err     string
		warning string
		want    []string // below victim/to
	}{
		"an ordinary tree": {stream: []tar.Header{top, {Name: "./d/a", Typeflag: file, Linkname: "1"}, {Name: "./d/s/", Typeflag: dir}, {Name: "./d/s/b", Typeflag: file, Linkname: "2"},
			{Name: "./d/l", Typeflag: link, Linkname: "s/b"}, {Name: "./d/h", Typeflag: hard, Linkname: "./d/a"}},
			want: []string{"d/", "d/a=1", "d/h=1", "d/l -> s/b", "d/s/", "d/s/b=2"}},
		"dot dot":                 {stream: []tar.Header{top, {Name: "./d/../../secret", Typeflag: file, Linkname: "x"}}, err: "not below", want: []string{"d/"}},
		"dot dot that comes back": {stream: []tar.Header{top, {Name: "./d/../d/a", Typeflag: file, Linkname: "x"}}, err: "not below", want: []string{"d/"}},
		"absolute":                {stream: []tar.Header{top, {Name: "/etc/passwd", Typeflag: file, Linkname: "x"}}, err: "not below", want: []string{"d/"}},
		"another name":            {stream: []tar.Header{top, {Name: "./other", Typeflag: file, Linkname: "x"}}, err: "not below", want: []string{"d/"}},
		"a link out": {stream: []tar.Header{top, {Name: "./d/l", Typeflag: link, Linkname: "../../../secret"}, {Name: "./d/m", Typeflag: link, Linkname: "/etc"}},
			warning: "which is not part of the copy", want: []string{"d/"}},
		"through a link out": {stream: []tar.Header{top, {Name: "./d/l", Typeflag: link, Linkname: "../.."}, {Name: "./d/l/secret", Typeflag: file, Linkname: "x"}},
			want: []string{"d/", "d/l/", "d/l/secret=x"}, warning: "left out"}, // the link was not made
		"through a link inside": {stream: []tar.Header{top, {Name: "./d/s/", Typeflag: dir}, {Name: "./d/l", Typeflag: link, Linkname: "s"}, {Name: "./d/l/b", Typeflag: link, Linkname: "../../.."}},
			err: "through a link that it sent", want: []string{"d/", "d/l -> s", "d/s/"}},
		"over a link":       {stream: []tar.Header{top, {Name: "./d/l", Typeflag: link, Linkname: "a"}, {Name: "./d/l", Typeflag: file, Linkname: "x"}}, err: "through a link", want: []string{"d/", "d/l -> a"}},
		"hard link out":     {stream: []tar.Header{top, {Name: "./d/h", Typeflag: hard, Linkname: "../secret"}}, err: "not below", want: []string{"d/"}},
		"hard link of link": {stream: []tar.Header{top, {Name: "./d/l", Typeflag: link, Linkname: "a"}, {Name: "./d/h", Typeflag: hard, Linkname: "./d/l"}}, err: "another name of a link", want: []string{"d/", "d/l -> a"}},
		"devices and pipes": {stream: []tar.Header{top, {Name: "./d/sda", Typeflag: tar.TypeBlock, Devmajor: 8}, {Name: "./d/mem", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 1}, {Name: "./d/p", Typeflag: tar.TypeFifo}},
			warning: "a device", want: []string{"d/"}},
		"a second file":                   {stream: []tar.Header{{Name: "./d", Typeflag: file, Linkname: "1"}, {Name: "./d/e", Typeflag: file, Linkname: "2"}}, err: "after the one file", want: []string{"d=1"}},
		"a link as the thing itself":      {stream: []tar.Header{{Name: "./d", Typeflag: link, Linkname: "/etc/passwd"}}, err: `symbolic link to "/etc/passwd"; copy that`},
		"a terminal's language in a name": {stream: []tar.Header{top, {Name: "./d/\x1b]0;x\a", Typeflag: tar.TypeFifo}}, warning: `\x1b]0;x\a`, want: []string{"d/"}},
		"nothing":                         {err: "unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			victim := t.TempDir()
			to := filepath.Join(victim, "to")
			if err := os.Mkdir(to, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(victim, "secret"), []byte("mine"), 0o600); err != nil {
				t.Fatal(err)
			}
			target, err := chooseTarget(to, "d", false)
			if err != nil {
				t.Fatal(err)
			}
			x := &unpacking{base: "d", source: "/d", target: target}
			err = x.run(sent(t, tt.stream...))
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("it says %v, want %q", err, tt.err)
			}
			if all := strings.Join(x.warnings(), "\n"); !strings.Contains(all, tt.warning) || tt.warning == "" && all != "" {
				t.Errorf("it warns %q, want %q", all, tt.warning)
			}
			if got := listing(t, to); !slices.Equal(got, tt.want) {
				t.Errorf("there is %q, want %q", got, tt.want)
			}
			if data, err := os.ReadFile(filepath.Join(victim, "secret")); err != nil || string(data) != "mine" {
				t.Errorf("the file beside the destination holds %q, %v", data, err)
			}
		})
	}
}

// A link that was in the destination before is replaced, not written through,
// and bits that mean something to other users are dropped.
func TestACopyReplacesLinks(t *testing.T) {
	victim := t.TempDir()
	for _, f := range []string{"secret", "to/d/keep"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(victim, f)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(victim, f), []byte("mine"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../../secret", filepath.Join(victim, "to/d/a")); err != nil {
		t.Fatal(err)
	}
	x := &unpacking{base: "d", source: "/d", target: target{parent: filepath.Join(victim, "to"), name: "d"}}
	if err := x.run(sent(t, tar.Header{Name: "./d", Typeflag: tar.TypeDir, Mode: 0o755}, tar.Header{Name: "./d/a", Typeflag: tar.TypeReg, Linkname: "theirs", Mode: 0o6755})); err != nil {
		t.Fatal(err)
	}
	if got, want := listing(t, victim), []string{"secret=mine", "to/", "to/d/", "to/d/a=theirs", "to/d/keep=mine"}; !slices.Equal(got, want) {
		t.Errorf("there is %q, want %q", got, want)
	}
	if info, err := os.Stat(filepath.Join(victim, "to/d/a")); err != nil || info.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0 {
		t.Errorf("%v, %v", info, err)
	}
}

// What is packed unpacks to the same, also over the size of any buffer.
func TestPackAndUnpack(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	long := strings.Repeat("n", 200)
	for _, f := range []string{"a", "s/b", "s/" + long} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(from, f)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(from, f), bytes.Repeat([]byte(f), 100_000/len(f)), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("s/b", filepath.Join(from, "l")); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	p := &packing{base: "site"}
	if err := p.run(from, &b); err != nil {
		t.Fatal(err)
	}
	x := &unpacking{base: "site", source: "/site", target: target{parent: to, name: "new"}}
	if err := x.run(&b); err != nil {
		t.Fatal(err)
	}
	if got, want := listing(t, filepath.Join(to, "new")), listing(t, from); !slices.Equal(got, want) {
		t.Errorf("%d entries came of %d", len(got), len(want))
	}
	if p.tally() != x.tally() || x.files != 3 {
		t.Errorf("packed %s, unpacked %s", p.tally(), x.tally())
	}
}

func TestPlaces(t *testing.T) {
	for arg, want := range map[string]struct {
		place  place
		inside bool
	}{
		"web:/etc":   {place{"web", "/etc"}, true},
		"web-1:etc":  {place{"web-1", "etc"}, true},
		"./web:/etc": {place{path: "./web:/etc"}, false},
		"/a:b":       {place{path: "/a:b"}, false},
		"dir/a:b":    {place{path: "dir/a:b"}, false},
		"file":       {place{path: "file"}, false},
		":/etc":      {place{path: ":/etc"}, false},
	} {
		if got, inside := splitPlace(arg); got != want.place || inside != want.inside {
			t.Errorf("%s is %+v, %v", arg, got, inside)
		}
	}
	for arg, want := range map[string]portPair{"80": {80, 80}, "8080:80": {8080, 80}, ":80": {0, 80}, "0:80": {0, 80}} {
		if got, err := parsePortPair(arg); err != nil || got != want {
			t.Errorf("%s is %+v, %v", arg, got, err)
		}
	}
	for _, arg := range []string{"", ":", "0", "x", "80:", "80:0", "65536", "-1:80", "1:2:3", "80/udp"} {
		if got, err := parsePortPair(arg); err == nil {
			t.Errorf("%s is %+v", arg, got)
		}
	}
}
