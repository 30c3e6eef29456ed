package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// taken is what one benchmark found, and when and where.
type taken struct {
	Date   string `json:"date"`
	Commit string `json:"commit,omitempty"`
	Cores  int    `json:"cores"`
	Arch   string `json:"arch"`
	Linux  string `json:"linux"`
	Took   string `json:"took"`
	// Load of the machine before the run's first benchmark: that of others.
	Load float64 `json:"load"`
	// Quick: of few rounds, and so to be taken for a try.
	Quick bool `json:"quick,omitempty"`
	result
}

// recorded is what benchmarks.json holds, by the benchmark's name.
type recorded map[string]taken

func recordPath(dir string) string { return filepath.Join(dir, "benchmarks.json") }

func recall(dir string) (recorded, error) {
	out := recorded{}
	data, err := os.ReadFile(recordPath(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, &out); err != nil {
		return nil, fmt.Errorf("read %s: %w", recordPath(dir), err)
	}
	return out, nil
}

// note puts what a benchmark found in the place of what it found before.
func note(dir, name string, set settings, load float64, took time.Duration, r result) error {
	all, err := recall(dir)
	if err != nil {
		return err
	}
	all[name] = taken{
		Date: time.Now().UTC().Format(time.DateOnly), Commit: commit(), Cores: runtime.NumCPU(), Arch: runtime.GOARCH,
		Linux: release(), Took: took.Round(time.Second).String(), Quick: set.quick, Load: load, result: r,
	}
	data, err := json.MarshalIndent(all, "", " ")
	if err != nil {
		return err
	}
	tmp := recordPath(dir) + ".new"
	if err := os.WriteFile(tmp, append(data, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, recordPath(dir))
}

// commit is the source's, with a + where it was changed since.
func commit() string {
	out, err := exec.Command("git", "describe", "--always", "--dirty=+", "--exclude=*").Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

// load is how many processes have wanted to run over the last minute.
func load() float64 {
	text, _ := os.ReadFile("/proc/loadavg")
	one, _, _ := strings.Cut(string(text), " ")
	n, _ := strconv.ParseFloat(one, 64)
	return n
}

// release is the kernel's version, without its builder's suffix.
func release() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	version, _, _ := strings.Cut(unix.ByteSliceToString(u.Release[:]), "-")
	return version
}
