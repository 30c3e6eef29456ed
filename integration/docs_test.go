package integration

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// documents are the pages for people, by path from the root of the module.
func documents(t *testing.T) map[string]string {
	t.Helper()
	docs := map[string]string{}
	paths := []string{"../README.md", "../ARCHITECTURE.md"}
	for _, dir := range []string{"../docs", "../deploy"} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && strings.HasSuffix(path, ".md") {
				paths = append(paths, path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		docs[strings.TrimPrefix(path, "../")] = string(data)
	}
	return docs
}

var (
	declared = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)[A-Z0-9_]\w*)\(`)
	named    = regexp.MustCompile("`((?:Test|Fuzz|Benchmark)[A-Z0-9_]\\w*)`")
	rowOf    = regexp.MustCompile("(?m)^\\| `([a-z0-9_/]+)` \\|")
	link     = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading  = regexp.MustCompile(`(?m)^#+ +(.+?) *$`)
	fenced   = regexp.MustCompile("(?s)```.*?```")
)

// testsOfTree are the names of all tests, with the folders that have them.
func testsOfTree(t *testing.T) map[string][]string {
	t.Helper()
	tests := map[string][]string{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != ".." && strings.HasPrefix(d.Name(), "."):
			return fs.SkipDir
		case !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		data, err := os.ReadFile(path)
		for _, m := range declared.FindAllStringSubmatch(string(data), -1) {
			tests[m[1]] = append(tests[m[1]], strings.TrimPrefix(filepath.Dir(path), "../"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(tests) < 100 {
		t.Fatalf("found %d tests: this one looks in the wrong place", len(tests))
	}
	return tests
}

// TestDocsNameWhatThereIs: every test that a page names exists, in a package
// that the row of the table names; and every package has its row in the house.
func TestDocsNameWhatThereIs(t *testing.T) {
	docs, tests := documents(t), testsOfTree(t)
	count := 0
	for page, text := range docs {
		for _, line := range strings.Split(text, "\n") {
			for _, m := range named.FindAllStringSubmatch(line, -1) {
				count++
				where := tests[m[1]]
				if len(where) == 0 {
					t.Errorf("%s names %s, and there is no such test", page, m[1])
					continue
				}
				cells := strings.Split(line, "|")
				if len(cells) != 5 || !strings.Contains(text, "| guarantee | where | test |") {
					continue
				}
				found := false
				for _, dir := range where {
					found = found || strings.Contains(cells[2], "`"+dir+"`")
				}
				if !found {
					t.Errorf("%s: %s is in %s, and its row says %s", page, m[1], strings.Join(where, ", "), strings.TrimSpace(cells[2]))
				}
			}
		}
	}
	if count < 80 {
		t.Errorf("the pages name %d tests: guarantees have lost theirs", count)
	}

	house := map[string]bool{}
	for _, m := range rowOf.FindAllStringSubmatch(docs["ARCHITECTURE.md"], -1) {
		house[m[1]] = true
	}
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		if !house[name] && len(p.GoFiles) > 0 && name != "internal_dep" {
			t.Errorf("ARCHITECTURE.md has no row for package %s in the house", name)
		}
	}
}

// anchorOf is what a heading is linked by.
func anchorOf(heading string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(heading) {
		switch {
		case r == ' ':
			b.WriteByte('-')
		case r == '-' || r == '_' || r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r > 127:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// TestDocsLinksLead: every relative link leads to a file, and to a heading in it.
func TestDocsLinksLead(t *testing.T) {
	docs := documents(t)
	for page, text := range docs {
		text = fenced.ReplaceAllString(text, "")
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			target, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			to := page
			if target != "" {
				to = filepath.Join(filepath.Dir(page), target)
			}
			if _, err := os.Stat(filepath.Join("..", to)); err != nil {
				t.Errorf("%s links to %s: %v", page, m[1], err)
				continue
			}
			if anchor == "" {
				continue
			}
			found := false
			for _, h := range heading.FindAllStringSubmatch(docs[to], -1) {
				found = found || anchorOf(h[1]) == anchor
			}
			if !found {
				t.Errorf("%s links to %s, and %s has no such heading", page, m[1], to)
			}
		}
	}
}
