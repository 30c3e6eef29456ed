package residue

import (
	"context"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// Options say where to look.
type Options struct {
	// Clone is the folder that may change.
	Clone string
	// Ignore lists further folders, files, mounts and control groups, by path;
	// a * stands for anything but a slash. REDOUBT_RESIDUE_IGNORE adds to it,
	// separated by colons, for hosts where others are at work.
	Ignore []string
	// Only are the kinds to list, all if empty.
	Only []Kind
	// Root is walked for files, "/" if empty. Other file systems mounted
	// below it are walked only where they can keep what a program writes.
	Root string
}

// List is what a host holds, by kind and then by name; the value says how it
// is.
type List struct {
	Things map[Kind]map[string]string
	procs  map[int]proc
	// held are files that processes have open, with the holders.
	held map[string][]int
}

// Kind is a sort of thing that can stay behind.
type Kind string

// The kinds, in the order in which Diff reports them.
const (
	Process   Kind = "process"
	Mount     Kind = "mount"
	Namespace Kind = "network namespace"
	Link      Kind = "link"
	Rule      Kind = "nft rule"
	Group     Kind = "control group"
	Sysctl    Kind = "sysctl"
	File      Kind = "file"
)

var kinds = []Kind{Process, Mount, Namespace, Link, Rule, Group, Sysctl, File}

// Take lists the host.
func Take(o Options) (List, error) {
	l := List{Things: map[Kind]map[string]string{}}
	for _, k := range kinds {
		l.Things[k] = map[string]string{}
	}
	for _, step := range []struct {
		kind Kind
		do   func(*List, Options) error
	}{
		{Process, processes}, {Mount, mounts}, {Namespace, namespaces}, {Link, links},
		{Rule, rules}, {Group, groups}, {Sysctl, sysctls}, {File, files},
	} {
		if len(o.Only) > 0 && !slices.Contains(o.Only, step.kind) {
			continue
		}
		if err := step.do(&l, o); err != nil {
			return List{}, fmt.Errorf("list each %s: %w", step.kind, err)
		}
	}
	for _, k := range []Kind{Mount, Group, File} {
		for name := range l.Things[k] {
			if o.ignored(name) {
				delete(l.Things[k], name)
			}
		}
	}
	return l, nil
}

// ignored tells whether a path, or a folder above it, is to be left out.
func (o Options) ignored(name string) bool {
	patterns := slices.Concat(o.Ignore, strings.FieldsFunc(os.Getenv("REDOUBT_RESIDUE_IGNORE"), func(r rune) bool { return r == ':' }))
	for p := name; len(p) > 1 && p[0] == '/'; p = path.Dir(p) {
		for _, pattern := range patterns {
			if ok, err := path.Match(pattern, p); err == nil && ok {
				return true
			}
		}
	}
	return false
}

// Difference is one thing that is not as it was.
type Difference struct {
	Kind Kind
	Name string
	// Before and After say how it was and is; empty where it was not there.
	Before, After string
}

func (d Difference) String() string {
	switch {
	case d.Before == "":
		return fmt.Sprintf("new %s: %s (%s)", d.Kind, d.Name, d.After)
	case d.After == "":
		return fmt.Sprintf("%s is gone: %s (%s)", d.Kind, d.Name, d.Before)
	}
	return fmt.Sprintf("%s changed: %s: %s -> %s", d.Kind, d.Name, d.Before, d.After)
}

// Diff lists what differs, sorted by kind and name.
func Diff(before, after List) []Difference {
	var out []Difference
	for _, k := range kinds {
		b, a := before.Things[k], after.Things[k]
		var names []string
		for n := range b {
			names = append(names, n)
		}
		for n := range a {
			if _, ok := b[n]; !ok {
				names = append(names, n)
			}
		}
		slices.Sort(names)
		for _, n := range names {
			if d := (Difference{k, n, b[n], a[n]}); d.Before != d.After && !excused(before, after, d) {
				out = append(out, d)
			}
		}
	}
	return out
}

// excused applies the rules of the package comment.
func excused(before, after List, d Difference) bool {
	switch d.Kind {
	case Process:
		if d.Before != "" {
			return true // what ended has left nothing
		}
		return after.descends(before, d.Name)
	case Namespace:
		// One that only processes of others hold.
		return d.Before != "" || after.foreign(before, d.Name)
	case File:
		for _, pid := range append(slices.Clone(before.held[d.Name]), after.held[d.Name]...) {
			if pid != os.Getpid() && before.older(after, pid) {
				return true
			}
		}
	}
	return false
}

// Quiet takes lists until two in a row do not differ, for as long as patience
// lasts: what earlier work gives back late must not look like a difference. It
// returns the last list, and what still changed.
func Quiet(ctx context.Context, o Options, patience time.Duration) (List, []Difference, error) {
	deadline := time.Now().Add(patience)
	last, err := Take(o)
	for err == nil {
		select {
		case <-ctx.Done():
			return List{}, nil, ctx.Err()
		case <-time.After(time.Second):
		}
		var next List
		if next, err = Take(o); err != nil {
			break
		}
		diff := Diff(last, next)
		if len(diff) == 0 || time.Now().After(deadline) {
			return next, diff, nil
		}
		last = next
	}
	return List{}, nil, err
}

// Settled takes lists until one differs in nothing from before, for as long as
// patience lasts: the kernel frees namespaces and groups a little after the last
// user is gone. It returns what still differs.
func Settled(ctx context.Context, before List, o Options, patience time.Duration) ([]Difference, error) {
	deadline := time.Now().Add(patience)
	for {
		after, err := Take(o)
		if err != nil {
			return nil, err
		}
		diff := Diff(before, after)
		if len(diff) == 0 || time.Now().After(deadline) {
			return diff, nil
		}
		select {
		case <-ctx.Done():
			return diff, ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// Describe puts differences on lines, the first hundred of them.
func Describe(ds []Difference) string {
	const most = 100
	var lines []string
	for _, d := range ds[:min(most, len(ds))] {
		lines = append(lines, "  "+d.String())
	}
	if more := len(ds) - most; more > 0 {
		lines = append(lines, fmt.Sprintf("  and %d more", more))
	}
	return strings.Join(lines, "\n")
}
