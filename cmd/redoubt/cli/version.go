package cli

import (
	"errors"
	"fmt"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"redoubt.dev/redoubt/deploy/runtimes"
)

type versionInfo struct {
	Version string        `json:"version"`
	Go      string        `json:"go"`
	Arch    string        `json:"arch"`
	Parts   []carriedPart `json:"parts"`
}

type carriedPart struct {
	Name    string `json:"name"`
	Kind    string `json:"kind"`
	Module  string `json:"module,omitempty"`
	Version string `json:"version"`
	Digest  string `json:"digest"`
	Size    int64  `json:"size"`
}

func (a *app) versionCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "version", Short: "Print the version and every part that is carried, with its digest", Args: cobra.NoArgs,
	}
	a.formatted(c)
	c.RunE = func(*cobra.Command, []string) error {
		out, err := a.output()
		if err != nil {
			return err
		}
		info := versionInfo{Version: Version, Go: runtime.Version(), Arch: runtime.GOOS + "/" + runtime.GOARCH, Parts: []carriedPart{}}
		bundle, err := runtimes.Embedded()
		if err != nil && !errors.Is(err, runtimes.ErrNotEmbedded) {
			return err
		}
		for _, p := range bundle.Parts() {
			info.Parts = append(info.Parts, carriedPart{p.Name, string(p.Kind), p.Module, p.Version, p.Digest, p.Size})
		}
		if out.format == "table" || out.format == "wide" {
			if _, err := fmt.Fprintf(out.w, "redoubt %s (%s, %s)\n\n", info.Version, info.Go, info.Arch); err != nil {
				return err
			}
		}
		return out.values(info, func(t *table) {
			t.head("PART", "VERSION", "DIGEST")
			t.wide("SIZE", "KIND", "MODULE")
			for _, p := range info.Parts {
				digest := p.Digest
				if out.format != "wide" {
					digest = shortDigest(digest)
				}
				t.row(p.Name, p.Name, p.Version, digest, size(p.Size), p.Kind, p.Module)
			}
			t.empty("It carries no runtimes: it was built without `make runtimes`. Agents need the host's own: --runtimes host.")
		})
	}
	return c
}

// shortDigest keeps enough of a digest to recognise it.
func shortDigest(d string) string {
	_, hex, ok := strings.Cut(d, ":")
	if !ok || len(hex) <= 16 {
		return d
	}
	return hex[:16]
}
