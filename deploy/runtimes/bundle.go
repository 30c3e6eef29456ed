package runtimes

import (
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"runtime"
	"slices"
	"strings"
)

//go:embed all:out
var embedded embed.FS

// ErrNotEmbedded is wrapped by the error of [Embedded] when the program was
// built before the runtimes were.
var ErrNotEmbedded = errors.New("no runtimes embedded: run make")

// The names of the parts, which are also the names of their unpacked files
// (images get ".tar").
const (
	Containerd = "containerd"
	Shim       = "containerd-shim-runc-v2"
	Runc       = "runc"
	Runsc      = "runsc"
	Wrapper    = "redoubt-oci"
	Toolbox    = "toolbox"
	Canary     = "canary"
	Crun       = "crun" // never carried; taken from the host when it is there
)

// carried is what a whole bundle holds.
var carried = []string{Containerd, Shim, Runc, Runsc, Wrapper, Toolbox, Canary}

// Kind says what a part is.
type Kind string

// The kinds of parts.
const (
	KindBinary Kind = "binary"
	KindImage  Kind = "image"
)

// Part is one thing that the bundle carries, or a runtime of the host that is
// used in its place.
type Part struct {
	Name string
	Kind Kind
	// Module is the Go module that it is built from; empty for a host's own.
	Module  string
	Version string
	// Digest is "sha256:" and the hash of the uncompressed file.
	Digest string
	// Size is that of the uncompressed file in bytes.
	Size int64
	// Path is where it lies on disk; empty until unpacked.
	Path string
	// Reference and ImageDigest are set for images: the name that the layout
	// gives the image, and the digest of its manifest.
	Reference   string
	ImageDigest string
}

// file is the name of the unpacked file.
func (p Part) file() string {
	if p.Kind == KindImage {
		return p.Name + ".tar"
	}
	return p.Name
}

// hash is the digest in hex without its algorithm.
func (p Part) hash() string { return strings.TrimPrefix(p.Digest, "sha256:") }

// Bundle is a set of compressed parts. The zero value holds none.
type Bundle struct {
	fsys  fs.FS
	parts []Part
}

// Embedded returns the bundle that was compiled in.
func Embedded() (Bundle, error) {
	sub, err := fs.Sub(embedded, "out")
	if err != nil {
		return Bundle{}, fmt.Errorf("open the embedded runtimes: %w", err)
	}
	b, err := Open(sub)
	if errors.Is(err, fs.ErrNotExist) {
		return Bundle{}, fmt.Errorf("open the embedded runtimes: %w", ErrNotEmbedded)
	}
	if err != nil {
		return Bundle{}, fmt.Errorf("open the embedded runtimes: %w", err)
	}
	if missing := b.lacks(carried...); len(missing) > 0 {
		return Bundle{}, fmt.Errorf("open the embedded runtimes: %s not among them: %w", strings.Join(missing, ", "), ErrNotEmbedded)
	}
	return b, nil
}

// Open reads the manifest of a bundle: manifest.json beside one NAME.zst a
// part. The error wraps [fs.ErrNotExist] when there is no manifest.
func Open(fsys fs.FS) (Bundle, error) {
	data, err := fs.ReadFile(fsys, "manifest.json")
	if err != nil {
		return Bundle{}, fmt.Errorf("read the manifest: %w", err)
	}
	var m struct {
		Arch  string `json:"arch"`
		Parts []struct {
			Name        string `json:"name"`
			Kind        Kind   `json:"kind"`
			Module      string `json:"module"`
			Version     string `json:"version"`
			SHA256      string `json:"sha256"`
			Size        int64  `json:"size"`
			Reference   string `json:"reference"`
			ImageDigest string `json:"image_digest"`
		} `json:"parts"`
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return Bundle{}, fmt.Errorf("read the manifest: %w", err)
	}
	if m.Arch != runtime.GOARCH {
		return Bundle{}, fmt.Errorf("the runtimes were built for %s and this program for %s: run make with the same GOARCH", m.Arch, runtime.GOARCH)
	}
	b := Bundle{fsys: fsys}
	for _, p := range m.Parts {
		if err := checkEntry(p.Name, p.Kind, p.SHA256, p.Size); err != nil {
			return Bundle{}, fmt.Errorf("read the manifest: part %q: %w", p.Name, err)
		}
		if len(b.lacks(p.Name)) == 0 {
			return Bundle{}, fmt.Errorf("read the manifest: part %q is there twice", p.Name)
		}
		if _, err := fs.Stat(fsys, p.Name+".zst"); err != nil {
			// Not wrapped: to have a manifest and lack a part is damage, not absence.
			return Bundle{}, fmt.Errorf("part %s is in the manifest but cannot be opened (%v): run make", p.Name, err)
		}
		b.parts = append(b.parts, Part{
			Name: p.Name, Kind: p.Kind, Module: p.Module, Version: p.Version,
			Digest: "sha256:" + p.SHA256, Size: p.Size,
			Reference: p.Reference, ImageDigest: p.ImageDigest,
		})
	}
	return b, nil
}

// checkEntry keeps a manifest from naming a file outside the folder that parts
// are unpacked into.
func checkEntry(name string, kind Kind, sum string, size int64) error {
	if name == "" || name != path.Base(name) || strings.HasPrefix(name, ".") {
		return errors.New("the name is no plain file name")
	}
	if kind != KindBinary && kind != KindImage {
		return fmt.Errorf("the kind %q is none of %s, %s", kind, KindBinary, KindImage)
	}
	if h, err := hex.DecodeString(sum); err != nil || len(h) != 32 {
		return errors.New("the sha256 is not 64 hex digits")
	}
	if size < 0 {
		return errors.New("the size is negative")
	}
	return nil
}

// Parts returns what the bundle holds, in the order of its manifest.
func (b Bundle) Parts() []Part { return slices.Clone(b.parts) }

func (b Bundle) lacks(names ...string) []string {
	var missing []string
	for _, n := range names {
		if !slices.ContainsFunc(b.parts, func(p Part) bool { return p.Name == n }) {
			missing = append(missing, n)
		}
	}
	return missing
}
