package image

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Sizes beyond which a document is not read: real ones are a few kilobytes,
// and whoever names an image must not be able to fill the agent's memory.
const (
	MaxManifest = 4 << 20
	MaxConfig   = 8 << 20
)

// LayoutFiles is an OCI layout, opened from a directory or a tar archive.
// It is safe for concurrent use until Close.
type LayoutFiles struct {
	path string
	open func(name string) (io.ReadCloser, int64, error)
	file *os.File
}

// OpenLayout opens the layout at path.
func OpenLayout(path string) (*LayoutFiles, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("OCI layout: %w", err)
	}
	l := &LayoutFiles{path: path}
	if info.IsDir() {
		root, err := os.OpenRoot(path)
		if err != nil {
			return nil, fmt.Errorf("OCI layout: %w", err)
		}
		l.open = func(name string) (io.ReadCloser, int64, error) { return openIn(root, name) }
	} else if err := l.index(path); err != nil {
		return nil, fmt.Errorf("OCI layout %s: %w", path, err)
	}
	var version ocispec.ImageLayout
	if err := l.document(ocispec.ImageLayoutFile, 4096, &version); err != nil {
		l.Close()
		return nil, fmt.Errorf("%s is not an OCI layout: %w", path, err)
	}
	return l, nil
}

func openIn(root *os.Root, name string) (io.ReadCloser, int64, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a file", name)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

// index notes where in the archive each file lies.
func (l *LayoutFiles) index(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	type extent struct{ at, size int64 }
	files := map[string]extent{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			f.Close()
			return fmt.Errorf("read the archive: %w", err)
		}
		at, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			f.Close()
			return err
		}
		if h.Typeflag == tar.TypeReg {
			files[path.Clean(h.Name)] = extent{at, h.Size}
		}
	}
	l.file = f
	l.open = func(name string) (io.ReadCloser, int64, error) {
		e, ok := files[name]
		if !ok {
			return nil, 0, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
		}
		return io.NopCloser(io.NewSectionReader(f, e.at, e.size)), e.size, nil
	}
	return nil
}

// Close releases the archive.
func (l *LayoutFiles) Close() error {
	if l.file != nil {
		return l.file.Close()
	}
	return nil
}

// Blob opens a blob; its content is not verified here.
func (l *LayoutFiles) Blob(d digest.Digest) (io.ReadCloser, error) {
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("OCI layout %s: digest %q: %w", l.path, d, err)
	}
	r, _, err := l.open("blobs/" + d.Algorithm().String() + "/" + d.Encoded())
	if err != nil {
		return nil, fmt.Errorf("OCI layout %s: blob %s: %w", l.path, d, err)
	}
	return r, nil
}

// Read reads a document and verifies its size and digest.
func (l *LayoutFiles) Read(d ocispec.Descriptor, limit int64) ([]byte, error) {
	if d.Size > limit {
		return nil, fmt.Errorf("OCI layout %s: %s of %d bytes is larger than the %d that are read", l.path, d.MediaType, d.Size, limit)
	}
	r, err := l.Blob(d.Digest)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, d.Size+1))
	if err != nil {
		return nil, fmt.Errorf("OCI layout %s: blob %s: %w", l.path, d.Digest, err)
	}
	if int64(len(data)) != d.Size || d.Digest.Algorithm().FromBytes(data) != d.Digest {
		return nil, fmt.Errorf("OCI layout %s: blob %s is damaged: size or digest differ", l.path, d.Digest)
	}
	return data, nil
}

func (l *LayoutFiles) document(name string, limit int64, into any) error {
	r, size, err := l.open(name)
	if err != nil {
		return err
	}
	defer r.Close()
	if size > limit {
		return fmt.Errorf("%s of %d bytes is larger than the %d that are read", name, size, limit)
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// Resolve finds the manifest of tag for a platform. An empty tag means the
// only image there is.
func (l *LayoutFiles) Resolve(tag string, match func(ocispec.Platform) bool) (ocispec.Descriptor, ocispec.Manifest, error) {
	var index ocispec.Index
	if err := l.document(ocispec.ImageIndexFile, MaxManifest, &index); err != nil {
		return ocispec.Descriptor{}, ocispec.Manifest{}, fmt.Errorf("OCI layout %s: %w", l.path, err)
	}
	var found []ocispec.Descriptor
	var tags []string
	for _, d := range index.Manifests {
		name := d.Annotations[ocispec.AnnotationRefName]
		tags = append(tags, name)
		// Some tools write the whole reference, some the tag alone.
		if tag == "" || name == tag || strings.HasSuffix(name, ":"+tag) {
			found = append(found, d)
		}
	}
	return l.pick(found, tag, tags, match, 0)
}

func (l *LayoutFiles) pick(from []ocispec.Descriptor, tag string, tags []string, match func(ocispec.Platform) bool, depth int) (ocispec.Descriptor, ocispec.Manifest, error) {
	var none ocispec.Manifest
	var fit []ocispec.Descriptor
	for _, d := range from {
		if d.Platform == nil || match(*d.Platform) {
			fit = append(fit, d)
		}
	}
	switch {
	case len(from) == 0 && tag != "":
		return ocispec.Descriptor{}, none, fmt.Errorf("OCI layout %s has no tag %q: it has %q", l.path, tag, tags)
	case len(from) == 0:
		return ocispec.Descriptor{}, none, fmt.Errorf("OCI layout %s holds no image", l.path)
	case len(fit) == 0:
		return ocispec.Descriptor{}, none, fmt.Errorf("OCI layout %s has no image for this machine's platform", l.path)
	case len(fit) > 1 && tag == "":
		return ocispec.Descriptor{}, none, fmt.Errorf("OCI layout %s holds %d images: name one of the tags %q", l.path, len(fit), tags)
	}
	d := fit[0]
	if depth > 3 {
		return d, none, fmt.Errorf("OCI layout %s: indexes are nested more than three deep", l.path)
	}
	data, err := l.Read(d, MaxManifest)
	if err != nil {
		return d, none, err
	}
	var doc struct {
		specs.Versioned
		Config    *ocispec.Descriptor
		Layers    []ocispec.Descriptor
		Manifests []ocispec.Descriptor
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		return d, none, fmt.Errorf("OCI layout %s: manifest %s: %w", l.path, d.Digest, err)
	}
	if doc.Config == nil {
		// Inside an index any fitting entry will do, so a tag is at hand.
		return l.pick(doc.Manifests, "index", tags, match, depth+1)
	}
	if len(doc.Layers) > 512 {
		return d, none, fmt.Errorf("OCI layout %s: manifest %s has %d layers", l.path, d.Digest, len(doc.Layers))
	}
	return d, ocispec.Manifest{Versioned: doc.Versioned, Config: *doc.Config, Layers: doc.Layers}, nil
}
