package surface

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Device is one device node, by what the kernel knows it as. The path is what
// the process calls it and informs people only.
type Device struct {
	Path         string
	Block        bool
	Major, Minor uint32
}

func (d Device) String() string {
	kind := "c"
	if d.Block {
		kind = "b"
	}
	return fmt.Sprintf("%s %s %d:%d", d.Path, kind, d.Major, d.Minor)
}

// harmless device nodes stand in every container: null, zero, full, random,
// urandom (major 1), tty, console, ptmx (major 5) and pseudo terminals.
func (d Device) harmless() bool {
	if d.Block {
		return false
	}
	switch d.Major {
	case 1:
		return slices.Contains([]uint32{3, 5, 7, 8, 9}, d.Minor)
	case 5:
		return d.Minor <= 2
	}
	return d.Major >= 136 && d.Major <= 143
}

// Devices are the device nodes of a process.
type Devices struct {
	Open    []Device // behind its file descriptors, each once
	Visible []Device // nodes in the /dev of its root, each once
	// KVMs and VCPUs count the file descriptors of KVM machines and of their
	// processors: a process that holds them runs a guest, or can.
	KVMs, VCPUs int
}

// Count is how many devices other than the harmless ones the process holds or
// can open.
func (d Devices) Count() int { return len(d.Notable()) }

// Notable lists what Count counts, sorted.
func (d Devices) Notable() []Device {
	var out []Device
	for _, dev := range slices.Concat(d.Open, d.Visible) {
		if !dev.harmless() && !slices.ContainsFunc(out, dev.same) {
			out = append(out, dev)
		}
	}
	slices.SortFunc(out, func(a, b Device) int { return strings.Compare(a.Path, b.Path) })
	return out
}

func (d Device) same(e Device) bool {
	return d.Block == e.Block && d.Major == e.Major && d.Minor == e.Minor
}

func devices(pid int) (Devices, error) {
	var out Devices
	dir := procPath(pid, "fd")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return Devices{}, err
	}
	for _, e := range entries {
		link := filepath.Join(dir, e.Name())
		target, err := os.Readlink(link)
		if err != nil {
			continue // closed meanwhile
		}
		switch {
		case strings.HasPrefix(target, "anon_inode:kvm-vm"):
			out.KVMs++
		case strings.HasPrefix(target, "anon_inode:kvm-vcpu"):
			out.VCPUs++
		}
		if d, ok := deviceAt(link, target, unix.Stat); ok && !slices.ContainsFunc(out.Open, d.same) {
			out.Open = append(out.Open, d)
		}
	}
	// A boundary process often sits in an empty root, which has no /dev.
	root := procPath(pid, "root", "dev")
	nodes, err := os.ReadDir(root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
		return Devices{}, err
	}
	for _, e := range nodes {
		// Lstat: a link could lead out of that root.
		if d, ok := deviceAt(filepath.Join(root, e.Name()), "/dev/"+e.Name(), unix.Lstat); ok &&
			!slices.ContainsFunc(out.Visible, d.same) {
			out.Visible = append(out.Visible, d)
		}
	}
	return out, nil
}

func deviceAt(path, name string, stat func(string, *unix.Stat_t) error) (Device, bool) {
	var st unix.Stat_t
	if err := stat(path, &st); err != nil {
		return Device{}, false
	}
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFCHR && kind != unix.S_IFBLK {
		return Device{}, false
	}
	rdev := uint64(st.Rdev)
	return Device{Path: name, Block: kind == unix.S_IFBLK, Major: unix.Major(rdev), Minor: unix.Minor(rdev)}, true
}
