package containerd

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// outdated says why a daemon that runs is not the one that this agent would
// start: after an upgrade, or a downgrade, of either. Empty: it is, or that
// cannot be told. Paths alone decide nothing, since the same program may have
// been unpacked elsewhere.
func (d *Daemon) outdated(p process) string {
	proc := fmt.Sprintf("/proc/%d/", p.Pid)
	exe, _ := os.Readlink(proc + "exe")
	config, err := os.ReadFile(d.configPath())
	switch {
	case exe == "":
		return "" // it has just ended; tend sees that
	case err != nil || string(config) != d.configText():
		return "its configuration is another"
	case exe != d.cfg.Binaries.Containerd && !sameContent(proc+"exe", d.cfg.Binaries.Containerd):
		return "it runs " + exe
	}
	// The shim of what it starts next is the one that it finds.
	if shim := shimFoundBy(proc + "environ"); shim != "" && shim != d.cfg.Binaries.Shim && !sameContent(shim, d.cfg.Binaries.Shim) {
		return "its shim is " + shim
	}
	return ""
}

// shimFoundBy is the shim that start put in front of a daemon's PATH.
func shimFoundBy(environ string) string {
	text, err := os.ReadFile(environ)
	if err != nil {
		return ""
	}
	for _, line := range strings.Split(string(text), "\x00") {
		if path, ok := strings.CutPrefix(line, "PATH="); ok {
			first, _, _ := strings.Cut(path, ":")
			return filepath.Join(first, "containerd-shim-runc-v2")
		}
	}
	return ""
}

// sameContent tells whether two files hold the same. One that cannot be read
// holds something else: the program that it was is gone.
func sameContent(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	if err != nil || x.Size() != y.Size() {
		return false
	}
	if os.SameFile(x, y) {
		return true
	}
	one, err := hashOf(a)
	if err != nil {
		return false
	}
	other, err := hashOf(b)
	return err == nil && bytes.Equal(one, other)
}

func hashOf(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return nil, err
	}
	return sum.Sum(nil), nil
}
