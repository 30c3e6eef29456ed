package skew

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
)

// ErrNoHistory says that the clone does not have a pinned commit.
var ErrNoHistory = errors.New("a commit that is pinned in integration/skew is not in this clone's history")

// Build builds the program as it was at a commit into a folder, with the
// runtimes that the clone has built, and returns its path. What Go has built
// before it takes from its cache. Prepare, if there is one, may change the
// runtimes, of which it is given the folder.
func Build(ctx context.Context, clone, commit, into string, prepare func(runtimes string) error) (program string, err error) {
	if _, err := run(ctx, clone, "git", "cat-file", "-e", commit+"^{commit}"); err != nil {
		return "", fmt.Errorf("%w: %s: git fetch --unshallow", ErrNoHistory, commit)
	}
	tree := filepath.Join(into, "tree")
	if err := os.MkdirAll(tree, 0o755); err != nil {
		return "", err
	}
	archive := filepath.Join(into, "tree.tar")
	if _, err := run(ctx, clone, "git", "archive", "--format=tar", "--output="+archive, commit); err != nil {
		return "", err
	}
	if _, err := run(ctx, tree, "tar", "-xf", archive); err != nil {
		return "", err
	}
	built := filepath.Join(tree, "deploy/runtimes/out")
	parts, err := filepath.Glob(filepath.Join(clone, "deploy/runtimes/out/*.zst"))
	if err != nil {
		return "", err
	}
	for _, part := range append(parts, filepath.Join(clone, "deploy/runtimes/out/manifest.json")) {
		data, err := os.ReadFile(part)
		if err != nil {
			return "", fmt.Errorf("copy the built runtimes: %w", err)
		}
		if err := os.WriteFile(filepath.Join(built, filepath.Base(part)), data, 0o644); err != nil {
			return "", err
		}
	}
	if prepare != nil {
		if err := prepare(built); err != nil {
			return "", fmt.Errorf("change the runtimes: %w", err)
		}
	}
	program = filepath.Join(into, "redoubt-before")
	// As the Makefile does, so that what the two have in common is built once.
	_, err = run(ctx, tree, "go", "build", "-trimpath", "-buildvcs=false",
		"-ldflags", "-s -w -X redoubt.dev/redoubt/cmd/redoubt/cli.Version="+commit[:7], "-o", program, "./cmd/redoubt")
	return program, err
}

// OtherContainerd gives the runtimes in a folder a containerd that does the same
// and has another digest, as another version's has.
func OtherContainerd(folder string) error {
	packed := filepath.Join(folder, "containerd.zst")
	data, err := os.ReadFile(packed)
	if err != nil {
		return err
	}
	dec, err := zstd.NewReader(nil)
	if err != nil {
		return err
	}
	defer dec.Close()
	data, err = dec.DecodeAll(data, nil)
	if err != nil {
		return err
	}
	data = append(data, "another"...) // which an ELF loader does not look at
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		return err
	}
	defer enc.Close()
	if err := os.WriteFile(packed, enc.EncodeAll(data, nil), 0o644); err != nil {
		return err
	}
	manifest := filepath.Join(folder, "manifest.json")
	text, err := os.ReadFile(manifest)
	if err != nil {
		return err
	}
	var m struct {
		Arch  string           `json:"arch"`
		Parts []map[string]any `json:"parts"`
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return err
	}
	for _, p := range m.Parts {
		if p["name"] == "containerd" {
			sum := sha256.Sum256(data)
			p["sha256"], p["size"] = hex.EncodeToString(sum[:]), len(data)
		}
	}
	if text, err = json.Marshal(m); err != nil {
		return err
	}
	return os.WriteFile(manifest, text, 0o644)
}

func run(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOTOOLCHAIN=local", "GOWORK=off", "CGO_ENABLED=0")
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, args[0], err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out.String(), nil
}
