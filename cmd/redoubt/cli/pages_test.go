package cli

import (
	"bytes"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// tree is the whole command with its help.
func tree() *cobra.Command {
	a := &app{Env: Env{Getenv: func(string) string { return "" }, Stdout: &bytes.Buffer{}, Stderr: &bytes.Buffer{}}}
	return complete(a.root())
}

func TestEveryVerbHasAnExampleThatIsOne(t *testing.T) {
	seen := 0
	err := walk(tree(), func(c *cobra.Command) error {
		if c.Name() == "help" {
			return nil
		}
		if c.Short == "" || c.Example == "" {
			t.Errorf("%s has no short line or no example: give it one, in its own Example or in examples.go", c.CommandPath())
		}
		for line := range strings.Lines(c.Example) {
			words := strings.Fields(strings.TrimPrefix(strings.TrimSpace(line), "sudo "))
			if len(words) > 0 && (words[0] == "redoubt" || words[0] == "./redoubt") {
				seen++
				parses(t, c, words[1:])
			} else if !strings.Contains(line, "<(redoubt ") {
				t.Errorf("%s: its example %q is no command of ours", c.CommandPath(), line)
			}
		}
		return nil
	})
	if err != nil || seen < 50 {
		t.Errorf("%d examples were parsed, %v", seen, err)
	}
}

// parses fails unless the words are a verb with flags and arguments that it
// takes.
func parses(t *testing.T, c *cobra.Command, words []string) {
	t.Helper()
	if i := slices.IndexFunc(words, func(w string) bool { return w == "|" || w == ">" || w == "#" }); i >= 0 {
		words = words[:i]
	}
	verb, rest, err := tree().Find(words)
	if err != nil {
		t.Errorf("%s: example %q: %v", c.CommandPath(), words, err)
		return
	}
	if err := verb.ParseFlags(rest); err != nil {
		t.Errorf("%s: example %q: %v", c.CommandPath(), words, err)
		return
	}
	if err := verb.ValidateArgs(verb.Flags().Args()); err != nil {
		t.Errorf("%s: example %q: %v", c.CommandPath(), words, err)
	}
}

func TestHelpFitsATerminal(t *testing.T) {
	err := walk(tree(), func(c *cobra.Command) error {
		if c.Name() == "help" || c.Parent() != nil && c.Parent().Name() == "completion" {
			return nil // cobra's own words
		}
		var b bytes.Buffer
		c.SetOut(&b)
		if err := c.Help(); err != nil {
			return err
		}
		for line := range strings.Lines(b.String()) {
			if line = strings.TrimRight(line, "\n"); width(line) > 80 {
				t.Errorf("%s --help has a line of %d columns: %s", c.CommandPath(), width(line), line)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestTheReferenceIsCurrent holds docs/cli against the command itself.
func TestTheReferenceIsCurrent(t *testing.T) {
	const dir = "../../../docs/cli"
	want, err := reference(tree())
	if err != nil {
		t.Fatal(err)
	}
	have := map[string][]byte{}
	files, err := filepath.Glob(filepath.Join(dir, "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if have[filepath.Base(f)], err = os.ReadFile(f); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if !bytes.Equal(want[name], have[name]) {
			t.Errorf("docs/cli/%s is not what the command says; run: go generate ./cmd/redoubt", name)
		}
		delete(have, name)
	}
	for name := range have {
		t.Errorf("docs/cli/%s is of a verb that is no more; run: go generate ./cmd/redoubt", name)
	}
}

// The manual pages are written alike each time, and man can read them.
func TestManualPagesCanBeRead(t *testing.T) {
	pages, err := manPages(tree())
	if err != nil {
		t.Fatal(err)
	}
	again, err := manPages(tree())
	if err != nil || !maps.EqualFunc(pages, again, bytes.Equal) {
		t.Errorf("two runs differ: %v", err)
	}
	page := pages["redoubt-agent-install.1"]
	if !bytes.Contains(page, []byte("--token-file")) || !bytes.Contains(page, []byte(".SH EXAMPLE")) {
		t.Errorf("the page of agent install reads\n%s", page)
	}
	man, err := exec.LookPath("man")
	if err != nil {
		t.Skip("man is not here: its view of the pages is not asked")
	}
	path := filepath.Join(t.TempDir(), "page.1")
	if err := os.WriteFile(path, page, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(man, "--warnings", "-l", path)
	cmd.Env = append(os.Environ(), "MANPAGER=cat", "MANWIDTH=80", "LC_ALL=C.UTF-8")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || stderr.Len() > 0 || !bytes.Contains(out, []byte("token-file")) {
		t.Errorf("man: %v\n%s%s", err, stderr.String(), out)
	}
}
