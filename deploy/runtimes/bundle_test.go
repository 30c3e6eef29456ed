package runtimes

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
)

func TestOpenRefusesABadManifest(t *testing.T) {
	good := entryOf(Runsc, parts[Runsc])
	with := func(change func(*entry)) []byte {
		e := good
		change(&e)
		return manifestOf(e)
	}
	for _, c := range []struct {
		name     string
		manifest []byte
		want     string
	}{
		{"no JSON", []byte("{"), "read the manifest"},
		{"another architecture", []byte(`{"arch":"vax","parts":[]}`), "built for vax"},
		{"a path for a name", with(func(e *entry) { e.Name = "../runsc" }), "no plain file name"},
		{"an empty name", with(func(e *entry) { e.Name = "" }), "no plain file name"},
		{"a hidden name", with(func(e *entry) { e.Name = ".lock" }), "no plain file name"},
		{"an unknown kind", with(func(e *entry) { e.Kind = "x" }), "the kind"},
		{"a short digest", with(func(e *entry) { e.SHA256 = "abcd" }), "64 hex digits"},
		{"a path for a digest", with(func(e *entry) { e.SHA256 = "../../../../../../" + strings.Repeat("a", 46) }), "64 hex digits"},
		{"a negative size", with(func(e *entry) { e.Size = -1 }), "negative"},
		{"twice the same", manifestOf(good, good), "there twice"},
		{"a part that is not there", manifestOf(entryOf(Runc, nil)), "part runc is in the manifest but cannot be opened"},
	} {
		t.Run(c.name, func(t *testing.T) {
			fsys := syntheticFS()
			fsys["manifest.json"] = &fstest.MapFile{Data: c.manifest}
			if _, err := Open(fsys); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q in it", err, c.want)
			}
		})
	}
}

func TestOpenWithoutAManifestIsNotExist(t *testing.T) {
	_, err := Open(fstest.MapFS{"README": {}})
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}

func TestEmbeddedSaysWhatToRun(t *testing.T) {
	b, err := Embedded()
	if err == nil {
		if len(b.lacks(carried...)) > 0 {
			t.Errorf("an incomplete bundle was accepted: %v", b.Parts())
		}
		return
	}
	if !errors.Is(err, ErrNotEmbedded) || !strings.Contains(err.Error(), "no runtimes embedded: run make") {
		t.Errorf("error %v", err)
	}
}

func TestHostTakesItsProgramsFromPath(t *testing.T) {
	bin := t.TempDir()
	t.Setenv("PATH", bin)
	program := func(name, says string) string {
		path := filepath.Join(bin, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\necho '"+says+"'\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	containerd := program(Containerd, "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u1")
	runc := program(Runc, "runc version 1.1.5+ds1\nspec: 1.0.2-dev")
	dir := t.TempDir() + "/r"
	paths, err := open(t, syntheticFS()).Host(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if paths.Containerd != containerd || paths.Runc != runc {
		t.Errorf("containerd %q, runc %q", paths.Containerd, paths.Runc)
	}
	if p, _ := paths.Part(Containerd); p.Version != "1.6.20~ds1" || !strings.HasPrefix(p.Digest, "sha256:") {
		t.Errorf("containerd is described as %+v", p)
	}
	if p, _ := paths.Part(Runc); p.Version != "1.1.5+ds1" {
		t.Errorf("runc is described as %+v", p)
	}
	for _, name := range []string{Shim, Runsc, Crun} {
		if *paths.slot(name) != "" || !strings.Contains(paths.Missing[name], "not in PATH") {
			t.Errorf("%s: path %q, reason %q", name, *paths.slot(name), paths.Missing[name])
		}
	}
	if !strings.HasPrefix(paths.Wrapper, dir) || !strings.HasPrefix(paths.ToolboxImage, dir) {
		t.Errorf("the wrapper and the images must come from the bundle: %q, %q", paths.Wrapper, paths.ToolboxImage)
	}
	// The carried runsc must not stand in silently for one that the host lacks.
	if _, err := os.Stat(filepath.Join(dir, entryOf(Runsc, parts[Runsc]).SHA256[:shortDigest])); !os.IsNotExist(err) {
		t.Errorf("the carried runsc was unpacked: %v", err)
	}
}

func TestParseVersion(t *testing.T) {
	for _, c := range []struct{ name, out, want string }{
		{Containerd, "containerd github.com/containerd/containerd/v2 2.4.2 \n", "2.4.2"},
		{Shim, "containerd-shim-runc-v2:\n  Version:  2.4.2\n  Revision: \n  Go version: go1.26.8\n", "2.4.2"},
		{Runc, "runc version 1.5.2\nspec: 1.3.0\n", "1.5.2"},
		{Runsc, "runsc version release-20260105.0\nspec: 1.2.1\n", "release-20260105.0"},
		{Crun, "crun version 1.8.1\ncommit: f8a0\n", "1.8.1"},
		{Runc, "", "unknown"},
		{Runc, "version", "unknown"},
		{Containerd, "containerd", "unknown"},
	} {
		if got := parseVersion(c.name, c.out); got != c.want {
			t.Errorf("%s %q: %q, want %q", c.name, c.out, got, c.want)
		}
	}
}
