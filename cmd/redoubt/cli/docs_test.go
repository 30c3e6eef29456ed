package cli

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"redoubt.dev/redoubt/cmd/redoubt/workloadfile"
)

var (
	typed  = regexp.MustCompile(`^(?:    |[a-z]+# |\$ )(?:sudo )?(?:\./|bin/|/usr/local/bin/)?redoubt (.*)$`)
	inline = regexp.MustCompile("`(?:sudo )?redoubt ([a-z][^`]*)`")
	aFlag  = regexp.MustCompile("`[^`]*?(--[a-z][a-z-]+)[^`]*`")
	yamlOf = regexp.MustCompile("(?s)```yaml\n(.*?)```")
	others = regexp.MustCompile(`docker|kubectl|runsc|runc |firewall-cmd|nft |git |go test|systemctl|curl|journalctl`)
)

// TestThePagesNameWhatThereIs: every command that a page for people types is a
// verb with flags that it takes, every flag that one names exists, and every
// workload is a good file.
func TestThePagesNameWhatThereIs(t *testing.T) {
	root := tree()
	flags := map[string]bool{"--help": true, "--version": true}
	var note func(c *cobra.Command) // hidden ones too
	note = func(c *cobra.Command) {
		name := func(f *pflag.Flag) { flags["--"+f.Name] = true }
		c.Flags().VisitAll(name)
		c.PersistentFlags().VisitAll(name)
		for _, sub := range c.Commands() {
			note(sub)
		}
	}
	note(root)
	pages, err := filepath.Glob("../../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	pages = append(pages, "../../../README.md")
	commands, workloads := 0, 0
	for _, page := range pages {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.ReplaceAll(string(b), "\\\n", " ")
		for line := range strings.Lines(text) {
			line = strings.TrimRight(line, "\n")
			if m := typed.FindStringSubmatch(line); m != nil {
				commands++
				parses(t, &cobra.Command{Use: filepath.Base(page)}, strings.Fields(m[1]))
			}
			for _, m := range inline.FindAllStringSubmatch(line, -1) {
				words := strings.Fields(m[1])
				if verb, _, err := root.Find(words); err != nil || verb == root {
					t.Errorf("%s: there is no `redoubt %s`", filepath.Base(page), m[1])
				}
			}
			for _, m := range aFlag.FindAllStringSubmatch(line, -1) {
				if !flags[m[1]] && !others.MatchString(m[0]) {
					t.Errorf("%s: no command has the flag %s", filepath.Base(page), m[1])
				}
			}
		}
		for i, block := range yamlOf.FindAllStringSubmatch(text, -1) {
			if !strings.Contains("\n"+block[1], "\nkind:") {
				continue // settings have tests of their own
			}
			workloads++
			if _, err := workloadfile.Parse(filepath.Base(page), []byte(block[1])); err != nil {
				t.Errorf("%s, YAML block %d: %v", filepath.Base(page), i+1, err)
			}
		}
	}
	if commands < 30 || workloads < 5 {
		t.Errorf("only %d commands and %d workloads were found: this test looks in the wrong place", commands, workloads)
	}
	t.Logf("%d commands, %d workloads, %d pages", commands, workloads, len(pages))
}
