package runtimes

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Paths says where each runtime and image lies. An empty path has its reason in
// Missing.
type Paths struct {
	Containerd string
	Shim       string
	Runc       string
	Runsc      string
	Wrapper    string
	Crun       string
	// ToolboxImage and CanaryImage are tars of OCI image layouts.
	ToolboxImage string
	CanaryImage  string

	// Parts describes each path that is set.
	Parts []Part
	// Missing maps a part's name to why it has no path.
	Missing map[string]string
	// Repaired names the parts whose file was there but held something else,
	// and was replaced: worth a line in the log.
	Repaired []string
}

// Part returns the description of one part.
func (p Paths) Part(name string) (Part, bool) {
	for _, part := range p.Parts {
		if part.Name == name {
			return part, true
		}
	}
	return Part{}, false
}

// slot is the field that holds the path of a part, or nil for a part that this
// version does not know.
func (p *Paths) slot(name string) *string {
	switch name {
	case Containerd:
		return &p.Containerd
	case Shim:
		return &p.Shim
	case Runc:
		return &p.Runc
	case Runsc:
		return &p.Runsc
	case Wrapper:
		return &p.Wrapper
	case Crun:
		return &p.Crun
	case Toolbox:
		return &p.ToolboxImage
	case Canary:
		return &p.CanaryImage
	}
	return nil
}

func (p *Paths) add(part Part) {
	if s := p.slot(part.Name); s != nil {
		*s = part.Path
	}
	p.Parts = append(p.Parts, part)
}

func (p *Paths) miss(name, reason string) {
	if p.Missing == nil {
		p.Missing = make(map[string]string)
	}
	p.Missing[name] = reason
}

// Host returns the host's own containerd, runc shim, runc and runsc, found in
// PATH, with the wrapper and the images unpacked from the bundle into dir. What
// the host lacks is empty, with the reason in Missing: which of them are
// indispensable is for the caller to say.
func (b Bundle) Host(ctx context.Context, dir string) (Paths, error) {
	own := []string{Containerd, Shim, Runc, Runsc}
	paths, err := b.unpack(ctx, dir, func(p Part) bool {
		for _, name := range own {
			if p.Name == name {
				return false
			}
		}
		return true
	})
	if err != nil {
		return Paths{}, err
	}
	for _, name := range own {
		if err := paths.fromHost(ctx, name); err != nil {
			return Paths{}, err
		}
	}
	return paths, nil
}

// fromHost looks one program up in PATH and describes it. That it is not there
// is no error; that it cannot be read is.
func (p *Paths) fromHost(ctx context.Context, name string) error {
	found, err := exec.LookPath(name)
	if err != nil {
		p.miss(name, fmt.Sprintf("%s is not in PATH on this host", name))
		return nil
	}
	if found, err = filepath.Abs(found); err != nil {
		return fmt.Errorf("find %s of the host: %w", name, err)
	}
	sum, size, err := hashFile(ctx, found)
	if err != nil {
		return fmt.Errorf("read %s of the host: %w", name, err)
	}
	p.add(Part{
		Name: name, Kind: KindBinary, Version: hostVersion(ctx, name, found),
		Digest: "sha256:" + sum, Size: size, Path: found,
	})
	return nil
}

// hostVersion asks a program for its version; "unknown" when it does not say.
func hostVersion(ctx context.Context, name, file string) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	flag := "--version"
	if name == Shim {
		flag = "-v"
	}
	cmd := exec.CommandContext(ctx, file, flag)
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		return "unknown"
	}
	return parseVersion(name, string(out))
}

// parseVersion finds the version in what the programs print:
//
//	containerd github.com/containerd/containerd/v2 2.4.2 0123abc
//	containerd-shim-runc-v2:\n  Version:  2.4.2
//	runc version 1.5.2\nspec: 1.3.0
func parseVersion(name, out string) string {
	fields := strings.Fields(out)
	if name == Containerd && len(fields) >= 3 {
		return fields[2]
	}
	for i, f := range fields[:max(0, len(fields)-1)] {
		if strings.EqualFold(strings.TrimSuffix(f, ":"), "version") {
			return fields[i+1]
		}
	}
	return "unknown"
}
