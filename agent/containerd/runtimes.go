package containerd

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/isolation"
)

// ociRuntime is one way to run a container behind the runc shim.
type ociRuntime struct {
	Name    isolation.Name
	Variant string
	Kind    string   // the wrapper's: "runc" or "runsc"
	Path    string   // the real binary
	Args    []string // in front of the shim's
	Sandbox bool     // a process of Path is the boundary
	// Overhead is added to a workload's memory limit. gVisor's own share is 14
	// MiB when idle; the rest lets it grow with open files and connections
	// before the workload pays.
	Overhead int64
}

const mebi = 1 << 20

// sentryArgs: the network stack of the sandbox itself; file operations go
// through the gofer and not directly from the sentry, which costs speed and
// keeps 16 host calls, all that open files among them, out of the sentry's
// filter; the tenant's seccomp profile is enforced inside as well. Writes to
// the root go to a file that counts as the container's and not to memory
// (overlay2's default).
func sentryArgs(platform string) []string {
	return []string{
		"--platform=" + platform, "--network=sandbox", "--directfs=false",
		"--overlay2=root:self", "--host-uds=none", "--oci-seccomp=true",
		"--allow-flag-override=false", "--watchdog-action=log",
	}
}

// runtimeOf finds what a Spec names.
func (c Config) runtimeOf(name isolation.Name, variant string) (ociRuntime, error) {
	var r ociRuntime
	switch {
	case name == "runc" && variant == "":
		r = ociRuntime{Name: name, Kind: "runc", Path: c.Binaries.Runc}
	case name == "gvisor" && (variant == "" || variant == "systrap" || variant == "kvm"):
		if variant == "" {
			variant = "systrap"
		}
		r = ociRuntime{
			Name: name, Variant: variant, Kind: "runsc", Path: c.Binaries.Runsc,
			Args: sentryArgs(variant), Sandbox: true, Overhead: 32 * mebi,
		}
	default:
		return r, fmt.Errorf("runtime %q variant %q: this agent runs runc and gvisor (systrap, kvm): %w", name, variant, driver.ErrRuntime)
	}
	if r.Path == "" {
		return r, fmt.Errorf("runtime %s: its binary was not found on this node: %w", name, driver.ErrRuntime)
	}
	if _, err := os.Stat(r.Path); err != nil {
		return r, fmt.Errorf("runtime %s: %w: %w", name, err, driver.ErrRuntime)
	}
	return r, nil
}

// handler puts the wrapper in place for r and returns its path. The path
// depends on all that decides what will run, so that a container that an older
// agent started keeps the runtime that it was started with.
func (c Config) handler(r ociRuntime) (string, error) {
	conf, err := json.Marshal(map[string]any{"kind": r.Kind, "path": r.Path, "args": r.Args})
	if err != nil {
		return "", err
	}
	info, err := os.Stat(c.Binaries.Wrapper)
	if err != nil {
		return "", fmt.Errorf("runtime wrapper: %w", err)
	}
	sum := sha256.Sum256(fmt.Appendf(conf, "%s %d %d", c.Binaries.Wrapper, info.Size(), info.ModTime().UnixNano()))
	name := string(r.Name)
	if r.Variant != "" {
		name += "-" + r.Variant
	}
	dir := filepath.Join(c.Dir, "oci", fmt.Sprintf("%x", sum[:6]))
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("runtime wrapper: %w", err)
	}
	// The program last: its presence says that all is there.
	if err := writeFile(path+".json", conf, 0o600); err != nil {
		return "", fmt.Errorf("runtime wrapper: %w", err)
	}
	if err := linkOrCopy(c.Binaries.Wrapper, path); err != nil {
		return "", fmt.Errorf("runtime wrapper: %w", err)
	}
	return path, nil
}

// writeFile replaces path as a whole or not at all.
func writeFile(path string, data []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func linkOrCopy(from, to string) error {
	if err := os.Link(from, to); err == nil || errors.Is(err, fs.ErrExist) {
		return nil
	}
	in, err := os.Open(from) // another file system
	if err != nil {
		return err
	}
	defer in.Close()
	f, err := os.CreateTemp(filepath.Dir(to), ".tmp-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = io.Copy(f, in)
	if err = errors.Join(err, f.Chmod(0o755), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), to)
}
