package cli

import (
	"archive/tar"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// target is where a copy lands here. Everything is written through dir, which
// the kernel keeps it inside of.
type target struct {
	parent  string // exists
	name    string // in parent; what is copied takes this name. "." : parent itself
	content bool   // a directory's content goes to name, without the directory
}

func (t target) String() string { return filepath.Join(t.parent, t.name) }

// chooseTarget reads a local destination as cp does: into a directory that is
// there, else under that name.
func chooseTarget(to, base string, content bool) (target, error) {
	info, err := os.Stat(to)
	switch {
	case err == nil && info.IsDir() && content:
		return target{to, ".", true}, nil
	case err == nil && info.IsDir():
		return target{to, base, false}, nil
	case err == nil && content:
		return target{}, fmt.Errorf("%s is a file, and what is copied are the contents of a directory", to)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return target{}, err
	case err != nil && strings.HasSuffix(to, "/") && !content:
		return target{}, fmt.Errorf("%s: there is no such directory; make it first, or leave out the last slash", to)
	}
	parent, name := filepath.Split(filepath.Clean(to))
	if parent == "" {
		parent = "."
	}
	if info, err := os.Stat(parent); err != nil {
		return target{}, fmt.Errorf("%s: there is no directory %s", to, parent)
	} else if !info.IsDir() {
		return target{}, fmt.Errorf("%s: %s is not a directory", to, parent)
	}
	return target{parent, name, content}, nil
}

// leftOut collects what was not copied; it keeps a few and counts the rest.
type leftOut struct {
	few  []string
	more int
}

func (l *leftOut) add(format string, args ...any) {
	if len(l.few) < 10 {
		l.few = append(l.few, fmt.Sprintf(format, args...))
		return
	}
	l.more++
}

func (l *leftOut) list() []string {
	if l.more > 0 {
		return append(l.few, fmt.Sprintf("and %d more were left out", l.more))
	}
	return l.few
}

func tally(files int, bytes int64) string {
	s := "1 file"
	if files != 1 {
		s = fmt.Sprintf("%d files", files)
	}
	return s + ", " + size(bytes) + "B"
}

// unpacking takes a tar stream that a hostile image may have made. It writes
// below its target only: through os.Root, never through a link that the stream
// made, files whole or not at all.
type unpacking struct {
	base   string // the one name that everything in the stream begins with
	source string
	target target

	skipped leftOut
	links   map[string]bool // made by this stream
	files   int
	size    int64
}

func (x *unpacking) warnings() []string { return x.skipped.list() }
func (x *unpacking) tally() string      { return tally(x.files, x.size) }

func (x *unpacking) run(r io.Reader) error {
	parent, err := os.OpenRoot(x.target.parent)
	if err != nil {
		return err
	}
	defer parent.Close()
	x.links = map[string]bool{}
	tr := tar.NewReader(r)
	var root *os.Root // of the directory that is copied
	for n := 0; ; n++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			if n == 0 {
				return io.ErrUnexpectedEOF
			}
			_, err := io.Copy(io.Discard, r) // padding
			return err
		}
		if err != nil {
			return fmt.Errorf("what the instance sent is no tar stream: %w", err)
		}
		rel, err := x.inside(h.Name)
		if err != nil {
			return err
		}
		if h.Typeflag == tar.TypeGNUSparse || h.PAXRecords["GNU.sparse.major"] != "" || h.PAXRecords["GNU.sparse.map"] != "" {
			return fmt.Errorf("the instance sent %q as a sparse file, which nobody asked for: it is refused, since its size costs the sender nothing", h.Name)
		}
		switch {
		case n == 0 && h.Typeflag == tar.TypeDir:
			if root, err = x.open(parent, h); err != nil {
				return err
			}
			defer root.Close()
		case n == 0 && h.Typeflag == tar.TypeSymlink:
			return fmt.Errorf("it is a symbolic link to %q; copy that", h.Linkname)
		case n == 0 && x.target.content:
			return errors.New("it is not a directory; leave out the last \"/.\"")
		case n == 0:
			if err := x.entry(parent, x.target.name, h, tr); err != nil {
				return err
			}
			if x.files == 0 {
				return errors.New("it is neither a file nor a directory")
			}
		case root == nil:
			return fmt.Errorf("the instance sent %q after the one file that was asked for", h.Name)
		case rel == ".":
			return fmt.Errorf("the instance sent %q twice", h.Name)
		default:
			if err := x.entry(root, rel, h, tr); err != nil {
				return err
			}
		}
	}
}

// inside returns where an entry is below base, "." for base itself.
func (x *unpacking) inside(name string) (string, error) {
	bad := fmt.Errorf("the instance sent %q, which is not below %q: nothing more is taken from it", name, x.source)
	if len(name) > 4096 || strings.ContainsRune(name, 0) {
		return "", errors.New("the instance sent a name that is too long or none")
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." && x.base != ".." {
			return "", bad
		}
	}
	clean := path.Clean(name)
	if x.base == "." && !path.IsAbs(clean) {
		return clean, nil
	}
	if clean == x.base {
		return ".", nil
	}
	rel, ok := strings.CutPrefix(clean, x.base+"/")
	if !ok || !filepath.IsLocal(rel) {
		return "", bad
	}
	return rel, nil
}

// open makes the directory that is copied, or takes the one that is there.
func (x *unpacking) open(parent *os.Root, h *tar.Header) (*os.Root, error) {
	if err := parent.Mkdir(x.target.name, dirMode(h)); err != nil && !errors.Is(err, fs.ErrExist) && x.target.name != "." {
		return nil, err
	}
	return parent.OpenRoot(x.target.name)
}

func dirMode(h *tar.Header) fs.FileMode { return fs.FileMode(h.Mode)&0o777 | 0o700 }

// entry writes one entry to rel in root.
func (x *unpacking) entry(root *os.Root, rel string, h *tar.Header, r io.Reader) error {
	for dir := rel; dir != "."; dir = path.Dir(dir) {
		if x.links[dir] {
			return fmt.Errorf("the instance sent %q through a link that it sent before: nothing more is taken from it", h.Name)
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if err := root.MkdirAll(rel, dirMode(h)); err != nil {
			return err
		}
	case tar.TypeReg:
		if err := x.parents(root, rel); err != nil {
			return err
		}
		n, err := writeFile(root, rel, h, r)
		x.size += n
		if err != nil {
			return err
		}
		x.files++
	case tar.TypeSymlink:
		to := path.Join(path.Dir(rel), h.Linkname)
		if path.IsAbs(h.Linkname) || !filepath.IsLocal(to) {
			x.skipped.add("%q was left out: it is a link to %q, which is not part of the copy", h.Name, h.Linkname)
			return nil
		}
		if err := x.parents(root, rel); err != nil {
			return err
		}
		x.links[rel] = true
		return replacing(root, rel, func(temp string) error { return root.Symlink(h.Linkname, temp) })
	case tar.TypeLink:
		old, err := x.inside(h.Linkname)
		if err != nil {
			return err
		}
		for dir := old; dir != "."; dir = path.Dir(dir) {
			if x.links[dir] {
				return fmt.Errorf("the instance sent %q as another name of a link: nothing more is taken from it", h.Name)
			}
		}
		if err := x.parents(root, rel); err != nil {
			return err
		}
		if err := replacing(root, rel, func(temp string) error { return root.Link(old, temp) }); err != nil {
			return err
		}
		x.files++
	default:
		x.skipped.add("%q was left out: it is a device, a pipe or a socket", h.Name)
	}
	return nil
}

func (x *unpacking) parents(root *os.Root, rel string) error {
	if dir := path.Dir(rel); dir != "." {
		return root.MkdirAll(dir, 0o755)
	}
	return nil
}

// writeFile writes a file whole or not at all, and never through a link that is
// there under its name.
func writeFile(root *os.Root, rel string, h *tar.Header, r io.Reader) (n int64, err error) {
	err = replacing(root, rel, func(temp string) error {
		// Neither set-user-id nor the like: they were meant for the image's users.
		f, err := root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fs.FileMode(h.Mode)&0o777)
		if err != nil {
			return err
		}
		if n, err = io.Copy(f, r); err == nil {
			err = f.Close()
		} else {
			f.Close()
		}
		if err == nil && !h.ModTime.IsZero() {
			_ = root.Chtimes(temp, time.Time{}, h.ModTime)
		}
		return err
	})
	return n, err
}

// replacing has something made under a name of its own and then puts it in the
// place of rel.
func replacing(root *os.Root, rel string, make func(temp string) error) error {
	temp := path.Join(path.Dir(rel), ".redoubt-cp-"+rand.Text()[:12])
	err := make(temp)
	if err == nil {
		err = root.Rename(temp, rel)
	}
	if err != nil {
		_ = root.Remove(temp)
		return fmt.Errorf("write %q: %w", rel, err)
	}
	return nil
}

// packing makes a tar stream of what is here.
type packing struct {
	base string // the name that everything in the stream begins with

	skipped leftOut
	files   int
	size    int64
}

func (p *packing) tally() string { return tally(p.files, p.size) }

func (p *packing) run(from string, w io.Writer) error {
	tw := tar.NewWriter(w)
	// filepath.WalkDir does not follow from itself if it is a link, but "/." does.
	err := filepath.WalkDir(from, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, name)
		if err != nil {
			return err
		}
		return p.entry(tw, name, path.Join(p.base, filepath.ToSlash(rel)), d)
	})
	if err != nil {
		return err
	}
	return tw.Close()
}

func (p *packing) entry(tw *tar.Writer, name, as string, d fs.DirEntry) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	link := ""
	var f *os.File
	switch {
	case info.Mode().IsRegular():
		if f, err = os.Open(name); err != nil {
			return err
		}
		defer f.Close()
		if info, err = f.Stat(); err != nil {
			return err
		}
	case info.Mode()&fs.ModeSymlink != 0:
		if link, err = os.Readlink(name); err != nil {
			return err
		}
	case info.IsDir():
	default:
		p.skipped.add("%q was left out: it is a device, a pipe or a socket", name)
		return nil
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	// The image knows none of this machine's users; GNU's format is what every
	// tar reads, long names included.
	h.Name, h.Uid, h.Gid, h.Uname, h.Gname, h.Format = as, 0, 0, "", "", tar.FormatGNU
	h.ModTime, h.AccessTime, h.ChangeTime = h.ModTime.Truncate(time.Second), time.Time{}, time.Time{}
	h.Mode &= 0o777
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	if f == nil {
		return nil
	}
	n, err := io.CopyN(tw, f, h.Size)
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%s became shorter while it was copied", name)
	}
	p.files, p.size = p.files+1, p.size+n
	return err
}
