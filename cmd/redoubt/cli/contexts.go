package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"redoubt.dev/redoubt/identity"
)

// devName is the context of a running `redoubt dev`.
const devName = "dev"

// contexts is the folder that holds a person's contexts, a file each, and
// beside it a file with the name of the current one.
type contexts struct {
	dir, dev string
}

func (a *app) contexts() (contexts, error) {
	base := a.Getenv("XDG_CONFIG_HOME")
	if base == "" {
		home := a.Getenv("HOME")
		if home == "" {
			return contexts{}, errors.New("neither HOME nor XDG_CONFIG_HOME is set, so there is no place for contexts; name a context file with --context PATH")
		}
		base = filepath.Join(home, ".config")
	}
	return contexts{dir: filepath.Join(base, "redoubt", "contexts"), dev: a.DevContext}, nil
}

func (c contexts) path(name string) string { return filepath.Join(c.dir, name) }
func (c contexts) pointer() string         { return filepath.Join(filepath.Dir(c.dir), "current-context") }

// find returns the path of a context by its name.
func (c contexts) find(name string) (string, error) {
	if err := contextName(name); err != nil {
		return "", err
	}
	if exists(c.path(name)) {
		return c.path(name), nil
	}
	if name == devName && exists(c.dev) {
		return c.dev, nil
	}
	known, err := c.list()
	if err != nil {
		return "", err
	}
	if name == devName {
		return "", errors.New("there is no context \"dev\": `sudo redoubt dev` is not running (or not as this user: its context is root's)")
	}
	if len(known) == 0 {
		return "", fmt.Errorf("there is no context %q, nor any other; add one with `redoubt context add %s FILE`", name, name)
	}
	return "", fmt.Errorf("there is no context %q; there are: %s", name, strings.Join(known, ", "))
}

func contextName(name string) error {
	if identity.CheckName(name) != nil {
		return fmt.Errorf("%q cannot be a context's name, which is 1 to %d of a-z, 0-9 and \"-\"", name, identity.MaxName)
	}
	return nil
}

// list returns the names of all contexts, sorted.
func (c contexts) list() ([]string, error) {
	entries, err := os.ReadDir(c.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list contexts: %w", err)
	}
	var known []string
	for _, e := range entries {
		if e.Type().IsRegular() && identity.CheckName(e.Name()) == nil {
			known = append(known, e.Name())
		}
	}
	if !slices.Contains(known, devName) && exists(c.dev) {
		known = append(known, devName)
	}
	slices.Sort(known)
	return known, nil
}

// current is the name that `context use` chose, or "".
func (c contexts) current() (string, error) {
	b, err := os.ReadFile(c.pointer())
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read the current context: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

func (c contexts) use(name string) error {
	if err := os.MkdirAll(filepath.Dir(c.pointer()), 0o700); err != nil {
		return fmt.Errorf("use context %s: %w", name, err)
	}
	if err := identity.WriteFile(c.pointer(), []byte(name+"\n")); err != nil {
		return fmt.Errorf("use context %s: %w", name, err)
	}
	return nil
}

// choose returns the name and the path of the context that a command uses: the
// flag's, the environment's, the current one, else that of a running dev.
func (a *app) choose() (name, path string, err error) {
	for _, from := range []struct{ what, value string }{{"--context", a.context}, {"REDOUBT_CONTEXT", a.Getenv("REDOUBT_CONTEXT")}} {
		if from.value == "" {
			continue
		}
		if contextName(from.value) != nil { // what cannot be a name is a path
			return from.value, from.value, nil
		}
		c, err := a.contexts()
		if err != nil {
			return "", "", err
		}
		path, err := c.find(from.value)
		if err != nil {
			return "", "", fmt.Errorf("%s: %w", from.what, err)
		}
		return from.value, path, nil
	}
	c, err := a.contexts()
	if err == nil {
		switch name, err := c.current(); {
		case err != nil:
			return "", "", err
		case name != "":
			path, err := c.find(name)
			if err != nil {
				return "", "", fmt.Errorf("current context: %w; choose another with `redoubt context use`", err)
			}
			return name, path, nil
		}
	}
	if f, err := os.Open(a.DevContext); err == nil {
		f.Close()
		return devName, a.DevContext, nil
	} else if errors.Is(err, fs.ErrPermission) {
		return "", "", fmt.Errorf("`redoubt dev` runs as root and its context is root's: repeat the command with sudo, or choose another fleet with `redoubt context use`")
	}
	if err != nil {
		return "", "", err
	}
	return "", "", errors.New("this command talks to a fleet and knows none. Begin one here with `sudo redoubt dev`, or add the file that `redoubt server init --admin-context FILE` wrote: `redoubt context add NAME FILE`")
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
