package runtimes

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/klauspost/compress/zstd"
)

const goarch = runtime.GOARCH

// content returns bytes that do not compress, the same for the same seed.
func content(seed uint64, size int) []byte {
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	b := make([]byte, size)
	_, _ = r.Read(b)
	return b
}

func compress(b []byte) []byte {
	w, err := zstd.NewWriter(nil)
	if err != nil {
		panic(err)
	}
	defer w.Close()
	return w.EncodeAll(b, nil)
}

type entry struct {
	Name   string `json:"name"`
	Kind   Kind   `json:"kind"`
	SHA256 string `json:"sha256"`
	Size   int    `json:"size"`
}

func entryOf(name string, b []byte) entry {
	sum := sha256.Sum256(b)
	kind := KindBinary
	if name == Toolbox || name == Canary {
		kind = KindImage
	}
	return entry{name, kind, hex.EncodeToString(sum[:]), len(b)}
}

func manifestOf(entries ...entry) []byte {
	b, err := json.Marshal(map[string]any{"arch": runtime.GOARCH, "parts": entries})
	if err != nil {
		panic(err)
	}
	return b
}

// parts is what the synthetic bundle holds: enough bytes that a copy has a
// middle to be interrupted in.
var parts = map[string][]byte{
	Containerd: content(1, 300_000),
	Runsc:      content(2, 400_000),
	Wrapper:    content(3, 10),
	Toolbox:    content(4, 100_000),
}

func syntheticFS() fstest.MapFS {
	fsys := fstest.MapFS{}
	var entries []entry
	for _, name := range []string{Containerd, Runsc, Wrapper, Toolbox} {
		fsys[name+".zst"] = &fstest.MapFile{Data: compress(parts[name])}
		entries = append(entries, entryOf(name, parts[name]))
	}
	fsys["manifest.json"] = &fstest.MapFile{Data: manifestOf(entries...)}
	return fsys
}

func open(t *testing.T, fsys fs.FS) Bundle {
	t.Helper()
	b, err := Open(fsys)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// slowFS serves the synthetic bundle in small reads, calling step with the
// number of bytes read so far of each file.
type slowFS struct {
	fs.FS
	step func(name string, read int)
}

func (s slowFS) Open(name string) (fs.File, error) {
	f, err := s.FS.Open(name)
	if err != nil || !strings.HasSuffix(name, ".zst") {
		return f, err
	}
	return &slowFile{File: f, name: name, step: s.step}, nil
}

type slowFile struct {
	fs.File
	name string
	step func(string, int)
	read int
}

func (f *slowFile) Read(p []byte) (int, error) {
	f.step(f.name, f.read)
	n, err := f.File.Read(p[:min(len(p), 8<<10)])
	f.read += n
	return n, err
}

// checkUnpacked fails unless every part lies complete where paths says and the
// folder holds nothing else.
func checkUnpacked(t *testing.T, dir string, paths Paths) {
	t.Helper()
	for name, want := range parts {
		part, ok := paths.Part(name)
		if !ok {
			t.Fatalf("%s is not among the parts", name)
		}
		if *paths.slot(name) != part.Path {
			t.Errorf("%s: path %q, part says %q", name, *paths.slot(name), part.Path)
		}
		got, err := os.ReadFile(part.Path)
		if err != nil {
			t.Error(err)
		} else if string(got) != string(want) {
			t.Errorf("%s holds the wrong %d bytes", part.Path, len(got))
		}
		if st, err := os.Lstat(part.Path); err == nil && st.Mode() != mode(part) {
			t.Errorf("%s has mode %v, want %v", part.Path, st.Mode(), mode(part))
		}
	}
	for _, name := range files(t, dir) {
		if strings.HasPrefix(name, tempPrefix) {
			t.Errorf("%s was left behind", name)
		}
	}
}

// checkNothingHalf fails if any file under a final name is not complete,
// without unpacking anything: what another process would find right now.
func checkNothingHalf(t *testing.T, dir string) (complete int) {
	t.Helper()
	for name, want := range parts {
		part := Part{Name: name, Kind: entryOf(name, want).Kind}
		place := filepath.Join(dir, entryOf(name, want).SHA256[:shortDigest], part.file())
		got, err := os.ReadFile(place)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != string(want) {
			t.Errorf("%s is there and incomplete: %d of %d bytes", place, len(got), len(want))
		}
		complete++
	}
	return complete
}

// files lists what is below dir, by relative path.
func files(t *testing.T, dir string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && path != dir {
			rel, _ := filepath.Rel(dir, path)
			names = append(names, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

const (
	childDir  = "RUNTIMES_TEST_CHILD_DIR"
	childStep = "RUNTIMES_TEST_CHILD_STEP" // sleep before each read
)

// TestMain lets this test program be the second process that some tests need.
func TestMain(m *testing.M) {
	dir := os.Getenv(childDir)
	if dir == "" {
		os.Exit(m.Run())
	}
	if err := unpackAsChild(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func unpackAsChild(dir string) error {
	step, err := time.ParseDuration(os.Getenv(childStep))
	if err != nil {
		return err
	}
	total := 0
	b, err := Open(slowFS{syntheticFS(), func(string, int) {
		fmt.Println(total)
		total++
		time.Sleep(step)
	}})
	if err != nil {
		return err
	}
	_, err = b.Unpack(context.Background(), dir)
	return err
}

// child starts a process that unpacks into dir. Its reads are counted on steps,
// which is closed when it ends.
func child(t *testing.T, dir string, step time.Duration) (cmd *exec.Cmd, steps <-chan int) {
	t.Helper()
	cmd = exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childDir+"="+dir, childStep+"="+step.String())
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := make(chan int, 10_000)
	go func() {
		defer close(c)
		for s := bufio.NewScanner(io.Reader(out)); s.Scan(); {
			n, _ := strconv.Atoi(s.Text())
			c <- n
		}
	}()
	return cmd, c
}
