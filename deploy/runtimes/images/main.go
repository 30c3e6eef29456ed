// Command images builds the two container images that the agent carries, as
// OCI image layouts in a tar file:
//
//	images toolbox BUSYBOX OUT.tar   a small userland for trying things
//	images canary  CANARY  OUT.tar   the canary program and nothing else
//
// The same input gives the same bytes: times are the epoch, entries are sorted,
// and layers are left uncompressed, because the tar is compressed as a whole
// where it is embedded. The digest of the image manifest goes to stdout.
package main

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 3 {
		return errors.New("usage: images toolbox|canary BINARY OUT.tar")
	}
	name, binary, out := args[0], args[1], args[2]
	if err := checkStatic(binary); err != nil {
		return err
	}
	var (
		files  []file
		config v1.Config
		err    error
	)
	switch name {
	case "toolbox":
		files, config, err = toolbox(binary)
	case "canary":
		files, config, err = canary(binary)
	default:
		return fmt.Errorf("no image is called %q", name)
	}
	if err != nil {
		return fmt.Errorf("image %s: %w", name, err)
	}
	arch, err := architecture(binary)
	if err != nil {
		return err
	}
	digest, err := write(files, config, arch, "carried.redoubt/"+name+":1", out)
	if err != nil {
		return fmt.Errorf("image %s: write %s: %w", name, out, err)
	}
	fmt.Println(digest)
	return nil
}

// write puts one image of one layer into a tar of an OCI image layout.
func write(files []file, config v1.Config, arch, reference, out string) (v1.Hash, error) {
	layer, err := pack(files)
	if err != nil {
		return v1.Hash{}, err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err = mutate.Append(img, mutate.Addendum{
		Layer:     static.NewLayer(layer, types.OCIUncompressedLayer),
		MediaType: types.OCIUncompressedLayer,
		History:   v1.History{CreatedBy: "redoubt"},
	})
	if err != nil {
		return v1.Hash{}, err
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return v1.Hash{}, err
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture, cf.Config = "linux", arch, config
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		return v1.Hash{}, err
	}
	digest, err := img.Digest()
	if err != nil {
		return v1.Hash{}, err
	}

	dir, err := os.MkdirTemp(filepath.Dir(out), ".layout-")
	if err != nil {
		return v1.Hash{}, err
	}
	defer os.RemoveAll(dir)
	l, err := layout.Write(dir, empty.Index)
	if err != nil {
		return v1.Hash{}, err
	}
	err = l.AppendImage(img,
		layout.WithPlatform(v1.Platform{OS: "linux", Architecture: arch}),
		layout.WithAnnotations(map[string]string{
			"io.containerd.image.name":          reference,
			"org.opencontainers.image.ref.name": reference,
		}))
	if err != nil {
		return v1.Hash{}, err
	}
	laid, err := readTree(dir)
	if err != nil {
		return v1.Hash{}, err
	}
	b, err := pack(laid)
	if err != nil {
		return v1.Hash{}, err
	}
	return digest, os.WriteFile(out, b, 0o644)
}

// file is one entry of a layer or layout. A link makes it a symbolic link; a
// mode with fs.ModeDir makes it a directory.
type file struct {
	path string
	mode fs.FileMode
	data []byte
	link string
}

func dir(path string, mode fs.FileMode) file { return file{path: path, mode: fs.ModeDir | mode} }

// pack returns the entries as a tar, sorted by path, with every value that
// depends on the machine or the hour left out.
func pack(files []file) ([]byte, error) {
	slices.SortFunc(files, func(a, b file) int { return bytes.Compare([]byte(a.path), []byte(b.path)) })
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{Name: f.path, Mode: tarMode(f.mode), Format: tar.FormatUSTAR}
		switch {
		case f.mode.IsDir():
			h.Typeflag, h.Name = tar.TypeDir, f.path+"/"
		case f.link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.link
		default:
			h.Typeflag, h.Size = tar.TypeReg, int64(len(f.data))
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("%s: %w", f.path, err)
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, fmt.Errorf("%s: %w", f.path, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

func tarMode(m fs.FileMode) int64 {
	v := int64(m.Perm())
	if m&fs.ModeSticky != 0 {
		v |= 0o1000
	}
	return v
}

func readTree(root string) ([]file, error) {
	var files []file
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			files = append(files, dir(rel, 0o755))
			return nil
		}
		data, err := os.ReadFile(path)
		files = append(files, file{path: rel, mode: 0o644, data: data})
		return err
	})
	return files, err
}

// checkStatic refuses a program that would need a loader which the image does
// not hold; the error would otherwise come up as "no such file" at its start.
func checkStatic(path string) error {
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("read program %s: %w", path, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s is linked dynamically; the image needs a static one (Debian: busybox-static)", path)
		}
	}
	return nil
}

func architecture(path string) (string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return "", fmt.Errorf("read program %s: %w", path, err)
	}
	defer f.Close()
	switch f.Machine {
	case elf.EM_X86_64:
		return "amd64", nil
	case elf.EM_AARCH64:
		return "arm64", nil
	case elf.EM_RISCV:
		return "riscv64", nil
	}
	return "", fmt.Errorf("%s: no image for machine %s", path, f.Machine)
}
