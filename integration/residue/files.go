package residue

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// unlisted are folders that hold no files of anyone, or that the system writes
// by itself.
var unlisted = []string{"/proc", "/sys", "/dev/pts", "/run/udev", "/run/log", "/run/systemd", "/var/log", "/var/lib/systemd"}

// files walks all that can keep a file. Of a folder only its mode counts: its
// times tell of files that came and went.
func files(l *List, o Options) error {
	root := o.Root
	if root == "" {
		root = "/"
	}
	skip := slices.Clone(unlisted)
	skip = append(skip, o.Ignore...)
	skip = append(skip, strings.FieldsFunc(os.Getenv("REDOUBT_RESIDUE_IGNORE"), func(r rune) bool { return r == ':' })...)
	if o.Clone != "" {
		skip = append(skip, o.Clone)
	}
	caches, err := goCaches()
	if err != nil {
		return err
	}
	skip = append(skip, caches...)
	skipped := map[string]bool{}
	for _, s := range skip {
		skipped[filepath.Clean(s)] = true
	}
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if skipped[path] {
			if d != nil && d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if err != nil {
			return nil // it went while we looked
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("%s has no inode", path)
		}
		if d.IsDir() {
			l.Things[File][path] = info.Mode().String()
			return nil
		}
		if info.Mode()&fs.ModeDevice != 0 || info.Mode()&fs.ModeCharDevice != 0 {
			l.Things[File][path] = fmt.Sprintf("%s %d", info.Mode(), st.Rdev)
			return nil
		}
		l.Things[File][path] = fmt.Sprintf("%s %d:%d %d bytes modified %d.%09d changed %d.%09d", info.Mode(), st.Uid, st.Gid,
			st.Size, st.Mtim.Sec, st.Mtim.Nsec, st.Ctim.Sec, st.Ctim.Nsec)
		return nil
	})
}

// goCaches are what the go command may write when something is built or tested.
func goCaches() ([]string, error) {
	cmd := exec.Command("go", "env", "GOCACHE", "GOMODCACHE", "GOTELEMETRYDIR")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go env: %w: %s", err, stderr.String())
	}
	var dirs []string
	for _, line := range strings.Split(string(out), "\n") {
		if line = strings.TrimSpace(line); filepath.IsAbs(line) {
			dirs = append(dirs, line)
		}
	}
	return dirs, nil
}
