package integration

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/prototext"

	"redoubt.dev/redoubt/agent/image"
	"redoubt.dev/redoubt/cmd/redoubt/cli"
	"redoubt.dev/redoubt/cmd/redoubt/workloadfile"
	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/identity"
	"redoubt.dev/redoubt/identity/attest"
	"redoubt.dev/redoubt/isolation/gossip"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

var rewriteHostile = flag.Bool("rewrite", false, "write what is said now into testdata/hostile")

// decoders are what hostile input meets first, by the file of testdata/hostile
// that is for it.
var decoders = map[string]func(t *testing.T, input string) error{
	"api": func(t *testing.T, input string) error {
		var w redoubtv1.Workload
		if err := prototext.Unmarshal([]byte(input), &w); err != nil {
			// The wire bears what its text form does not.
			t.Fatalf("%q is not a message: %v", input, err)
		}
		_, err := fleet.NewWorkload(&w)
		return err
	},
	"image": func(t *testing.T, input string) error { _, err := image.Parse(unquote(t, input)); return err },
	"token": func(t *testing.T, input string) error { _, err := attest.ParseToken(unquote(t, input)); return err },
	"id":    func(t *testing.T, input string) error { _, err := identity.Parse(unquote(t, input)); return err },
	"gossip": func(t *testing.T, input string) error {
		_, err := gossip.DecodeDigest([]byte(unquote(t, input)))
		return err
	},
	// What a daemon's configuration file gets as an answer from the command.
	"config": func(t *testing.T, input string) error {
		path := filepath.Join(t.TempDir(), "server.yml")
		if err := os.WriteFile(path, []byte(unquote(t, input)), 0o600); err != nil {
			t.Fatal(err)
		}
		var stderr strings.Builder
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		code := cli.Run(ctx, cli.Env{Args: []string{"server", "--config", path, "--data-dir", filepath.Dir(path) + "/none"}, Stdin: strings.NewReader(""), Stdout: io.Discard, Stderr: &stderr,
			Getenv: func(string) string { return "" }})
		if code == 0 {
			return nil
		}
		return errors.New(strings.ReplaceAll(stderr.String(), filepath.Dir(path), "DIR"))
	},
	"file": func(t *testing.T, input string) error {
		_, err := workloadfile.Parse("web.yml", []byte(unquote(t, input)))
		return err
	},
	"csr": func(t *testing.T, input string) error { _, err := attest.CSRKey([]byte(unquote(t, input))); return err },
	"quantity": func(t *testing.T, input string) error {
		kind, value, _ := strings.Cut(unquote(t, input), " ")
		var err error
		switch kind {
		case "memory":
			_, err = fleet.ParseMemory(value)
		case "ports":
			_, err = fleet.ParsePortRange(value)
		default:
			_, err = fleet.ParseCPU(value)
		}
		return err
	},
	"context": func(t *testing.T, input string) error {
		path := filepath.Join(t.TempDir(), "context")
		if err := os.WriteFile(path, []byte(unquote(t, input)), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := identity.LoadFile(path)
		if err != nil {
			err = errors.New(strings.ReplaceAll(err.Error(), filepath.Dir(path), "DIR"))
		}
		return err
	},
}

func unquote(t *testing.T, s string) string {
	t.Helper()
	out, err := strconv.Unquote(s)
	if err != nil {
		t.Fatalf("%s: %v", s, err)
	}
	return out
}

// TestHostileInputs gives every decoder what an enemy or a tired person would,
// and holds the very words of the answer: what is wrong, where, and what would
// be right.
func TestHostileInputs(t *testing.T) {
	total := 0
	for name, decode := range decoders {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join("testdata", "hostile", name+".txt")
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			for _, story := range strings.Split(strings.TrimPrefix(string(data), "== "), "\n== ") {
				title, rest, _ := strings.Cut(story, "\n")
				input, want, ok := strings.Cut(rest, "\n----\n")
				if !ok {
					t.Fatalf("%s: %q has no answer", path, title)
				}
				total++
				want = strings.TrimSpace(want)
				err := decode(t, input)
				if err == nil {
					t.Errorf("%s: accepted", title)
					continue
				}
				got := strings.TrimSpace(err.Error())
				fmt.Fprintf(&out, "== %s\n%s\n----\n%s\n\n", title, input, got)
				if strings.ContainsFunc(got, func(r rune) bool { return r < ' ' && r != '\n' || r == 0x7f }) {
					t.Errorf("%s: the answer has control characters: %q", title, got)
				}
				if len(got) > 700 {
					t.Errorf("%s: the answer has %d characters", title, len(got))
				}
				if !*rewriteHostile && got != want {
					t.Errorf("%s:\n got %s\nwant %s", title, got, want)
				}
			}
			if *rewriteHostile {
				if err := os.WriteFile(path, []byte(strings.TrimSpace(out.String())+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
	// Beside these are those of cmd/redoubt/workloadfile and of the scripts.
	if total < 200 {
		t.Errorf("%d hostile inputs, want at least 200", total)
	}
}
