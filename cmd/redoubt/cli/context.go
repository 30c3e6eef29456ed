package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"redoubt.dev/redoubt/identity"
)

type contextEntry struct {
	Name    string    `json:"name"`
	Current bool      `json:"current"`
	User    string    `json:"user,omitempty"`
	Fleet   string    `json:"fleet,omitempty"`
	Servers []string  `json:"servers,omitempty"`
	Expires time.Time `json:"expires,omitzero"`
	Path    string    `json:"path"`
	Error   string    `json:"error,omitempty"`
}

func (a *app) contextListCommand() *cobra.Command {
	c := &cobra.Command{Use: "list", Short: "List contexts; the current one is marked", Args: cobra.NoArgs}
	a.formatted(c)
	c.RunE = func(*cobra.Command, []string) error {
		out, err := a.output()
		if err != nil {
			return err
		}
		cs, err := a.contexts()
		if err != nil {
			return err
		}
		known, err := cs.list()
		if err != nil {
			return err
		}
		current, _, _ := a.choose() // none, or one that is gone: nothing is marked
		entries := []contextEntry{}
		for _, name := range known {
			path, err := cs.find(name)
			if err != nil {
				return err
			}
			e := contextEntry{Name: name, Current: name == current, Path: path}
			if f, err := identity.LoadFile(path); err != nil {
				e.Error = err.Error()
			} else {
				e.User, e.Fleet = f.SVID.ID.String(), f.Bundle.TrustDomain().Name()
				if id, err := identity.FromSPIFFE(f.SVID.ID); err == nil {
					e.User = id.Name()
				}
				e.Servers, e.Expires = f.Addresses, f.SVID.Certificates[0].NotAfter
			}
			entries = append(entries, e)
		}
		return out.values(entries, func(t *table) {
			t.head("", "NAME", "USER", "FLEET", "SERVERS", "IDENTITY")
			t.wide("PATH")
			for _, e := range entries {
				mark := ""
				if e.Current {
					mark = "*"
				}
				state := e.Error
				if state == "" {
					state = "expires in " + age(time.Until(e.Expires))
					if !time.Now().Before(e.Expires) {
						state = "expired " + age(time.Since(e.Expires)) + " ago"
					}
				}
				t.row(e.Name, mark, e.Name, e.User, e.Fleet, list(e.Servers, 1), state, e.Path)
			}
			t.empty("There is no context. Add one with `redoubt context add NAME FILE`.")
		})
	}
	return c
}

func (a *app) contextUseCommand() *cobra.Command {
	c := &cobra.Command{Use: "use NAME", Short: "Make a context the current one", Args: names(1, 1, "a context (`redoubt context list`)")}
	c.RunE = func(_ *cobra.Command, args []string) error {
		cs, err := a.contexts()
		if err != nil {
			return err
		}
		if _, err := cs.find(args[0]); err != nil {
			return err
		}
		if err := cs.use(args[0]); err != nil {
			return err
		}
		a.say("Commands talk to %s now.", args[0])
		if env := a.Getenv("REDOUBT_CONTEXT"); env != "" && env != args[0] {
			a.say("But REDOUBT_CONTEXT is set to %s here and goes before it.", env)
		}
		return nil
	}
	return c
}

func (a *app) contextAddCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "add NAME FILE", Short: "Keep a copy of a context file under a name", Args: names(2, 2, "the context and its file"),
		Long: "Keeps a copy of a context file, as `redoubt server init --admin-context` writes\nit, under a name. The first context that is added becomes the current one.",
	}
	replace := c.Flags().Bool("replace", false, "replace a context of that name")
	c.RunE = func(_ *cobra.Command, args []string) error {
		cs, err := a.contexts()
		if err != nil {
			return err
		}
		name, file := args[0], args[1]
		if err := contextName(name); err != nil {
			return err
		}
		f, err := identity.LoadFile(file)
		if err != nil && strings.Contains(err.Error(), "chmod") {
			return err
		}
		if err != nil {
			return fmt.Errorf("%w; get the whole file anew from who made it, or with `redoubt server admin-context FILE` on a server's host", err)
		}
		if exists(cs.path(name)) && !*replace {
			return fmt.Errorf("there is a context %q already; choose another name, or --replace it", name)
		}
		if err := identity.MakePrivateDir(cs.dir); err != nil {
			return fmt.Errorf("add context %s: %w", name, err)
		}
		if err := identity.SaveFile(cs.path(name), f); err != nil {
			return fmt.Errorf("add context %s: %w", name, err)
		}
		current, err := cs.current()
		if err != nil {
			return err
		}
		if current == "" {
			if err := cs.use(name); err != nil {
				return err
			}
			current = name
		}
		a.say("Added %s (%s).", name, f.SVID.ID)
		if current != name {
			a.say("The current context is still %s; `redoubt context use %s` changes that.", current, name)
		}
		return nil
	}
	return c
}
