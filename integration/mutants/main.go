// Command mutants shows that the tests which hold the great promises can fail.
//
// Each *.patch beside it is a small wrong program. Its header says what is
// wrong and which test must catch it:
//
//	# Placement ignores the floor.
//	# caught by: ./control/placement TestName
//
// For each, the runner copies the tree (what git tracks or would track), runs
// the test there, which must pass, applies the patch and runs the test again,
// which must fail — by failing, and not by not building. It ends with 1 if any
// wrong program is let through.
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

type mutant struct {
	file        string // absolute
	name, wrong string
	pkg, test   string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := hunt(ctx, os.Stdout, "integration/mutants"); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

func hunt(ctx context.Context, w io.Writer, dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.patch"))
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return fmt.Errorf("there is no patch in %s: run this at the top of the clone", dir)
	}
	var list []mutant
	for _, f := range files {
		m, err := read(f)
		if err != nil {
			return err
		}
		list = append(list, m)
	}
	clone, err := os.Getwd()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(".mutants", 0o755); err != nil {
		return err
	}
	tree, err := os.MkdirTemp(filepath.Join(clone, ".mutants"), "tree")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tree); _ = os.Remove(filepath.Join(clone, ".mutants")) }()
	if err := copyTree(ctx, tree); err != nil {
		return err
	}
	var escaped []string
	for _, m := range list {
		begun := time.Now()
		verdict := m.caught(ctx, tree)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		mark, text := "caught ", ""
		if verdict != nil {
			mark, text = "ESCAPED", "\n         "+strings.ReplaceAll(verdict.Error(), "\n", "\n         ")
			escaped = append(escaped, m.name)
		}
		fmt.Fprintf(w, "%s  %s\n         by %s in %s, %.0f s%s\n", mark, m.wrong, m.test, m.pkg, time.Since(begun).Seconds(), text)
	}
	if len(escaped) > 0 {
		return fmt.Errorf("%d of %d wrong programs escape: %s", len(escaped), len(list), strings.Join(escaped, ", "))
	}
	fmt.Fprintf(w, "all %d wrong programs are caught\n", len(list))
	return nil
}

// read reads a patch's header.
func read(file string) (mutant, error) {
	abs, err := filepath.Abs(file)
	if err != nil {
		return mutant{}, err
	}
	f, err := os.Open(file)
	if err != nil {
		return mutant{}, err
	}
	defer f.Close()
	m := mutant{file: abs, name: strings.TrimSuffix(filepath.Base(file), ".patch")}
	for s := bufio.NewScanner(f); s.Scan(); {
		text, ok := strings.CutPrefix(s.Text(), "# ")
		if !ok {
			break
		}
		if by, ok := strings.CutPrefix(text, "caught by: "); ok {
			words := strings.Fields(by)
			if len(words) != 2 {
				return mutant{}, fmt.Errorf("%s: %q is not a package and a test", file, by)
			}
			m.pkg, m.test = words[0], words[1]
			continue
		}
		m.wrong = strings.TrimSpace(m.wrong + " " + text)
	}
	if m.pkg == "" || m.wrong == "" {
		return mutant{}, fmt.Errorf("%s: its header must say what is wrong and `# caught by: PACKAGE TEST`", file)
	}
	return m, nil
}

// caught runs the test without and with the patch. The tree is as it was when
// it returns.
func (m mutant) caught(ctx context.Context, tree string) error {
	if out, err := m.runTest(ctx, tree); err != nil {
		return fmt.Errorf("the test fails without the patch: %w\n%s", err, tail(out))
	}
	if err := apply(ctx, tree, m.file, false); err != nil {
		return err
	}
	out, err := m.runTest(ctx, tree)
	if undo := apply(ctx, tree, m.file, true); undo != nil {
		return undo
	}
	switch {
	case err == nil:
		return errors.New("the test passes with the patch")
	case !strings.Contains(out, "--- FAIL: "+m.test):
		return fmt.Errorf("the test does not run with the patch: %w\n%s", err, tail(out))
	}
	return nil
}

func (m mutant) runTest(ctx context.Context, tree string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	out, err := command(ctx, tree, "go", "test", "-count=1", "-timeout=5m", "-run", "^"+m.test+"$", m.pkg)
	if err == nil && strings.Contains(out, "no tests to run") {
		return out, fmt.Errorf("%s has no test %s", m.pkg, m.test)
	}
	return out, err
}

func apply(ctx context.Context, tree, patch string, undo bool) error {
	args := []string{"apply", "-p1"}
	if undo {
		args = append(args, "-R")
	}
	if out, err := command(ctx, tree, "git", append(args, patch)...); err != nil {
		return fmt.Errorf("the patch does not apply; make it anew: %w\n%s", err, tail(out))
	}
	return nil
}

// command runs in the copy, which git must not take for a part of the clone.
func command(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CEILING_DIRECTORIES="+filepath.Dir(dir))
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func tail(out string) string {
	lines := strings.Split(strings.TrimSpace(out), "\n")
	return strings.Join(lines[max(0, len(lines)-12):], "\n")
}

// copyTree copies what git knows or would add, and the built runtimes, which
// are embedded.
func copyTree(ctx context.Context, to string) error {
	list := exec.CommandContext(ctx, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	var stderr bytes.Buffer
	list.Stderr = &stderr
	out, err := list.Output()
	if err != nil {
		return fmt.Errorf("git ls-files: %w: %s", err, stderr.String())
	}
	names := strings.Split(strings.TrimRight(string(out), "\x00"), "\x00")
	built, _ := filepath.Glob("deploy/runtimes/out/*")
	names = append(names, built...)
	for _, name := range names {
		if err := copyFile(name, filepath.Join(to, name)); err != nil {
			return fmt.Errorf("copy the tree: %w", err)
		}
	}
	return nil
}

func copyFile(from, to string) error {
	info, err := os.Lstat(from)
	if errors.Is(err, os.ErrNotExist) {
		return nil // deleted, and git does not know yet
	}
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, info.Mode().Perm())
}
