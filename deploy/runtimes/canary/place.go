package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Bounds on what is listed: a host's /dev or mount table says enough by then.
const maxDevices, maxMounts = 256, 256

func (s *Sight) place() {
	s.UIDMap = strings.Join(strings.Fields(line("/proc/self/uid_map")), " ")
	s.Namespaces = map[string]uint64{}
	entries, _ := os.ReadDir("/proc/self/ns")
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/ns/" + e.Name())
		if err != nil {
			continue
		}
		_, id, _ := strings.Cut(strings.TrimSuffix(target, "]"), ":[")
		if n, err := strconv.ParseUint(id, 10, 64); err == nil {
			s.Namespaces[e.Name()] = n
		}
	}
	s.devices()
	s.mounts()
	text, _ := os.ReadFile("/proc/self/status")
	for l := range strings.Lines(string(text)) {
		key, v, _ := strings.Cut(l, ":")
		v = strings.TrimSpace(v)
		switch key {
		case "CapEff":
			s.CapEff = v
		case "CapBnd":
			s.CapBnd = v
		case "NoNewPrivs":
			s.NoNewPrivs = v == "1"
		case "Seccomp":
			s.Seccomp, _ = strconv.Atoi(v)
		}
	}
}

func (s *Sight) devices() {
	_ = filepath.WalkDir("/dev", func(path string, e fs.DirEntry, err error) error {
		if err != nil || len(s.Devices) >= maxDevices {
			return fs.SkipAll
		}
		if path == "/dev/pts" || path == "/dev/fd" {
			return fs.SkipDir
		}
		if e.Type()&fs.ModeDevice == 0 {
			return nil
		}
		var st syscall.Stat_t
		if syscall.Lstat(path, &st) != nil {
			return nil
		}
		dev := uint64(st.Rdev)
		s.Devices = append(s.Devices, Device{
			Path:  path,
			Block: st.Mode&syscall.S_IFMT == syscall.S_IFBLK,
			Major: uint32(dev>>8&0xfff | dev>>32&^0xfff),
			Minor: uint32(dev&0xff | dev>>12&^0xff),
		})
		return nil
	})
}

func (s *Sight) mounts() {
	text, _ := os.ReadFile("/proc/self/mounts")
	for l := range strings.Lines(string(text)) {
		f := strings.Fields(l)
		if len(f) >= 3 && len(s.Mounts) < maxMounts {
			s.Mounts = append(s.Mounts, f[2]+" "+f[1])
		}
	}
}
