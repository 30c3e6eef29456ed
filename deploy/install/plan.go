package install

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Places on a host, below Host.Root.
const (
	Program   = "/usr/local/bin/redoubt"
	ConfigDir = "/etc/redoubt"
	DataDir   = "/var/lib/redoubt"
	UnitDir   = "/etc/systemd/system"
)

// What a step does to its object.
type Verb string

const (
	Create  Verb = "create"
	Replace Verb = "replace"
	Mend    Verb = "mend" // a file of ours that was not as it should be
	Keep    Verb = "keep" // not as it would be written, and left so
	Same    Verb = "same" // as it should be
	Remove  Verb = "remove"
	Run     Verb = "run" // a command
)

// Step is one thing that is done, or was found to need nothing.
type Step struct {
	Verb Verb
	What string // a path, or what is run, for people
	Note string
	Mode fs.FileMode // of a file or directory
	// Content is what a text file would hold; nil where it is not for reading.
	Content []byte

	do func(context.Context) error // nil: nothing to do
}

// Changes tells whether doing the step changes the host.
func (s Step) Changes() bool { return s.do != nil }

// Action is a step that the caller does.
func Action(verb Verb, what, note string, do func(context.Context) error) Step {
	return Step{Verb: verb, What: what, Note: note, do: do}
}

// Apply does the steps, telling of each after it is done.
func Apply(ctx context.Context, steps []Step, told func(Step)) error {
	for _, s := range steps {
		if s.do != nil {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := s.do(ctx); err != nil {
				return fmt.Errorf("%s %s: %w", s.Verb, s.What, err)
			}
		}
		told(s)
	}
	return nil
}

// Host is where things are put.
type Host struct {
	// Root is the directory that stands for the host's root; "" is the host.
	Root string
}

func (h Host) at(path string) string { return filepath.Join("/", h.Root, path) }

// Directory is a step that makes a directory, or puts its mode right.
func (h Host) Directory(path string, mode fs.FileMode) (Step, error) {
	at := h.at(path)
	s := Step{What: path + "/", Mode: mode}
	info, err := os.Stat(at)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		s.Verb = Create
		s.do = func(context.Context) error {
			if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
				return err
			}
			if err := os.Mkdir(at, mode); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			return os.Chmod(at, mode)
		}
	case err != nil:
		return s, err
	case !info.IsDir():
		return s, fmt.Errorf("%s is there and is no directory: move it away", at)
	case info.Mode().Perm()&^mode != 0: // a tighter one is the operator's
		s.Verb, s.Note = Mend, fmt.Sprintf("its mode is %04o", info.Mode().Perm())
		s.do = func(context.Context) error { return os.Chmod(at, mode) }
	default:
		s.Verb = Same
	}
	return s, nil
}

// File is a step that makes a text file what it should be.
func (h Host) File(path string, mode fs.FileMode, content []byte) (Step, error) {
	at := h.at(path)
	s := Step{What: path, Mode: mode, Content: content}
	have, got, err := readFile(at)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		s.Verb = Create
	case err != nil:
		return s, err
	case bytes.Equal(have, content) && got == mode:
		s.Verb = Same
		return s, nil
	case bytes.Equal(have, content):
		s.Verb, s.Note = Mend, fmt.Sprintf("its mode is %04o", got)
	default:
		s.Verb = Replace
	}
	s.do = func(context.Context) error {
		return writeFile(at, mode, bytes.NewReader(content))
	}
	return s, nil
}

// maxText bounds what is read of a file to compare it.
const maxText = 4 << 20

func readFile(path string) ([]byte, fs.FileMode, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	if !info.Mode().IsRegular() {
		return nil, 0, fmt.Errorf("%s is there and is no file: move it away", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxText))
	return data, info.Mode().Perm(), err
}

// CopyProgram is a step that puts the program at from in its place. It runs on
// where it was started: the old file lives until the last process ends.
func (h Host) CopyProgram(from string) (Step, error) {
	at := h.at(Program)
	s := Step{What: Program, Mode: 0o755, Note: "from " + from}
	want, err := digest(from)
	if err != nil {
		return s, err
	}
	have, err := digest(at)
	info, statErr := os.Stat(at)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		s.Verb = Create
	case err != nil:
		return s, err
	case statErr != nil:
		return s, statErr
	case have == want && info.Mode().Perm() == s.Mode:
		s.Verb, s.Note = Same, ""
		return s, nil
	default:
		s.Verb = Replace
	}
	s.do = func(context.Context) error {
		f, err := os.Open(from)
		if err != nil {
			return err
		}
		defer f.Close()
		return writeFile(at, s.Mode, f)
	}
	return s, nil
}

func digest(path string) (d [sha256.Size]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return d, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return d, fmt.Errorf("read %s: %w", path, err)
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// writeFile replaces a file whole or not at all, also across a power cut. What
// an earlier one left half written beside it is taken away.
func writeFile(path string, mode fs.FileMode, content io.Reader) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	prefix := "." + filepath.Base(path) + ".new-"
	if old, err := filepath.Glob(filepath.Join(dir, prefix+"*")); err == nil {
		for _, o := range old {
			_ = os.Remove(o)
		}
	}
	tmp, err := os.CreateTemp(dir, prefix)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			tmp.Close()
			os.Remove(tmp.Name())
		}
	}()
	if _, err := io.Copy(tmp, content); err != nil {
		return err
	}
	if err := tmp.Chmod(mode); err != nil {
		return err
	}
	if err := tmp.Sync(); err != nil {
		return err
	}
	if err := tmp.Close(); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Absent is a step that removes a file.
func (h Host) Absent(path string) Step {
	at := h.at(path)
	s := Step{What: path, Verb: Remove}
	if _, err := os.Lstat(at); errors.Is(err, fs.ErrNotExist) {
		s.Verb, s.Note = Same, "not there"
		return s
	}
	s.do = func(context.Context) error { return ignoreMissing(os.Remove(at)) }
	return s
}

// AbsentTree is a step that removes a directory with all that is in it.
func (h Host) AbsentTree(path string) Step {
	s := h.Absent(path)
	s.What += "/"
	if s.do != nil {
		s.do = func(context.Context) error { return os.RemoveAll(h.at(path)) }
	}
	return s
}

// AbsentIfEmpty is a step that removes a directory that nothing is left in.
func (h Host) AbsentIfEmpty(path string) Step {
	at := h.at(path)
	s := Step{What: path + "/", Verb: Remove, Note: "if nothing is left in it"}
	if _, err := os.Lstat(at); errors.Is(err, fs.ErrNotExist) {
		s.Verb, s.Note = Same, "not there"
		return s
	}
	s.do = func(context.Context) error {
		left, err := os.ReadDir(at)
		if err != nil || len(left) > 0 {
			return ignoreMissing(err)
		}
		return ignoreMissing(os.Remove(at))
	}
	return s
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// There tells whether something is at a path.
func (h Host) There(path string) bool {
	_, err := os.Lstat(h.at(path))
	return err == nil
}

// Match lists the files of a pattern, as paths below the root, sorted.
func (h Host) Match(pattern string) []string {
	found, err := filepath.Glob(h.at(pattern))
	if err != nil {
		return nil // a pattern of ours that is none is seen by the tests
	}
	for i, f := range found {
		found[i] = "/" + strings.TrimPrefix(strings.TrimPrefix(f, h.at("/")), "/")
	}
	slices.Sort(found)
	return found
}
