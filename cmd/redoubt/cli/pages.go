package cli

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"redoubt.dev/redoubt/deploy/install"
)

// docsCommand writes the reference of the command out of the command itself.
func (a *app) docsCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "docs man|markdown", Short: "Write the manual pages, or the reference in Markdown", Hidden: true,
		Args: cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs), ValidArgs: []string{"man", "markdown"},
		Example: "  redoubt docs man --dir man1",
	}
	dir := c.Flags().String("dir", ".", "the `DIR`ectory to write to")
	c.RunE = func(_ *cobra.Command, args []string) error {
		write := manPages
		if args[0] == "markdown" {
			write = reference
		}
		pages, err := write(a.root())
		if err != nil {
			return err
		}
		if err := os.MkdirAll(*dir, 0o755); err != nil {
			return err
		}
		old, err := filepath.Glob(filepath.Join(*dir, "redoubt*"))
		if err != nil {
			return err
		}
		for _, path := range old { // of verbs that are no more
			if _, ok := pages[filepath.Base(path)]; !ok {
				if err := os.Remove(path); err != nil {
					return err
				}
			}
		}
		for name, text := range pages {
			if err := os.WriteFile(filepath.Join(*dir, name), text, 0o644); err != nil {
				return err
			}
		}
		return nil
	}
	return c
}

// walk calls f for every command that people see.
func walk(c *cobra.Command, f func(*cobra.Command) error) error {
	if err := f(c); err != nil {
		return err
	}
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() && !sub.IsAdditionalHelpTopicCommand() {
			if err := walk(sub, f); err != nil {
				return err
			}
		}
	}
	return nil
}

// complete is the tree as the pages show it: whole, and without what differs
// from host to host.
func complete(root *cobra.Command) *cobra.Command {
	root.DisableAutoGenTag = true
	root.InitDefaultHelpCmd()
	root.InitDefaultHelpFlag()
	return root
}

// manPages are the manual pages, by file name.
func manPages(root *cobra.Command) (map[string][]byte, error) {
	pages := map[string][]byte{}
	return pages, walk(complete(root), func(c *cobra.Command) error {
		var b bytes.Buffer
		header := &doc.GenManHeader{Section: "1", Source: "Redoubt " + Version, Manual: "Redoubt", Date: builtAt()}
		if err := doc.GenMan(c, header, &b); err != nil {
			return fmt.Errorf("manual page of %s: %w", c.CommandPath(), err)
		}
		pages[strings.ReplaceAll(c.CommandPath(), " ", "-")+".1"] = b.Bytes()
		return nil
	})
}

// builtAt is when the source was committed, so that two runs write the same.
func builtAt() *time.Time {
	at := time.Unix(0, 0).UTC()
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if t, err := time.Parse(time.RFC3339, s.Value); s.Key == "vcs.time" && err == nil {
				at = t
			}
		}
	}
	return &at
}

// reference is the command's reference in Markdown, by file name.
func reference(root *cobra.Command) (map[string][]byte, error) {
	pages := map[string][]byte{}
	return pages, walk(complete(root), func(c *cobra.Command) error {
		var b bytes.Buffer
		if err := doc.GenMarkdown(c, &b); err != nil {
			return fmt.Errorf("reference of %s: %w", c.CommandPath(), err)
		}
		pages[strings.ReplaceAll(c.CommandPath(), " ", "_")+".md"] = append(bytes.TrimRight(b.Bytes(), "\n"), '\n')
		return nil
	})
}

// installedPages are what an install puts beside the program: manual pages and
// completions.
func (a *app) installedPages() (map[string][]byte, error) {
	pages := map[string][]byte{}
	man, err := manPages(a.root())
	if err != nil {
		return nil, err
	}
	for name, text := range man {
		pages[install.ManDir+"/"+name] = text
	}
	root := a.root()
	for path, write := range map[string]func(*bytes.Buffer) error{
		install.Bash: func(b *bytes.Buffer) error { return root.GenBashCompletionV2(b, true) },
		install.Zsh:  func(b *bytes.Buffer) error { return root.GenZshCompletion(b) },
		install.Fish: func(b *bytes.Buffer) error { return root.GenFishCompletion(b, true) },
	} {
		var b bytes.Buffer
		err = errors.Join(err, write(&b))
		pages[path] = b.Bytes()
	}
	return pages, err
}

// isPage tells a page from the other files of an install.
func isPage(path string) bool {
	return slices.ContainsFunc(install.PagePatterns, func(p string) bool {
		ok, err := filepath.Match(p, path)
		return ok && err == nil
	})
}
