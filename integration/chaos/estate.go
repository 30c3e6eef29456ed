package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"redoubt.dev/redoubt/integration/net/fleet"
	"redoubt.dev/redoubt/integration/net/topology"
	"redoubt.dev/redoubt/integration/residue"
)

// estate is what a node has on its host, by kind. It is counted: what an
// instance has is under other names and addresses after it was started again.
// The names are for who has to find out.
type estate map[string][]string

func (e estate) add(kind string, names ...string) { e[kind] = append(e[kind], names...) }

// estate counts what there is of a node: what it has beside what its agent
// always has is its instances'.
func (c *chaos) estate(h *host) (estate, error) {
	e := estate{}
	run := h.runDir()
	for _, words := range fleet.Processes() {
		line := strings.Join(words, " ")
		if strings.Contains(line, h.dir+"/") || run != "" && strings.Contains(line, run+"/") {
			e.add("process "+filepath.Base(words[0]), line)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for s := bufio.NewScanner(bytes.NewReader(mounts)); s.Scan(); {
		if f := strings.Fields(s.Text()); len(f) > 4 && (strings.HasPrefix(f[4], h.dir+"/") || run != "" && strings.HasPrefix(f[4], run+"/")) {
			e.add("mount", f[4])
		}
	}
	roots, _ := filepath.Glob("/sys/fs/cgroup/*")
	for _, root := range append(roots, "/sys/fs/cgroup") {
		_ = filepath.WalkDir(filepath.Join(root, "redoubt", h.node), func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				e.add("control group", path)
			}
			return nil
		})
	}
	for kind, pattern := range map[string]string{
		"bundle":           run + "/state/io.containerd.runtime.v2.task/redoubt-" + h.node + "/*",
		"socket of a shim": run + "/s/*",
		"state of runsc":   run + "/r/redoubt-" + h.node + "/*",
		"snapshot":         h.dir + "/containerd/root/io.containerd.snapshotter.v1.*/snapshots/*",
		"network lease":    h.dir + "/network/instances/*",
		"namespace":        h.dir + "/network/netns/*",
	} {
		found, _ := filepath.Glob(pattern)
		e.add(kind, found...)
	}
	for where, at := range map[string]string{
		"the node":   filepath.Join("/run/netns", c.Plan().Namespace(h.node)),
		"the switch": filepath.Join(h.dir, "network", "netns", ".switch"),
	} {
		var l residue.List
		if err := topology.At(at, func() (err error) {
			l, err = residue.Take(residue.Options{Only: []residue.Kind{residue.Link, residue.Rule}})
			return err
		}); err != nil {
			return nil, fmt.Errorf("look into the network of %s: %w", h.node, err)
		}
		for name, value := range l.Things[residue.Link] {
			if first, _, _ := strings.Cut(name, " "); first == "route" || first == "rule" {
				e.add(first+" of "+where, name)
				continue
			}
			e.add("link of "+where, name)
			for word := range strings.FieldsSeq(value) {
				if strings.Contains(word, "/") {
					e.add("address of "+where, name+" "+word)
				}
			}
		}
		for name, value := range l.Things[residue.Rule] {
			n := 0
			if _, err := fmt.Sscanf(value, "%d", &n); err != nil {
				continue
			}
			// An anonymous set has a number that the kernel deals.
			if at := strings.Index(name, " set __"); at >= 0 {
				name = name[:at] + " sets"
			}
			e.add("rule or element of nft "+name+" of "+where, slices.Repeat([]string{name}, n)...)
		}
	}
	return e, nil
}

// beyond says what there is more of than there was before.
func (e estate) beyond(before estate) (out []string) {
	for _, kind := range slices.Sorted(maps.Keys(e)) {
		if len(e[kind]) <= len(before[kind]) {
			continue
		}
		more := slices.DeleteFunc(slices.Clone(e[kind]), func(name string) bool { return slices.Contains(before[kind], name) })
		slices.Sort(more)
		out = append(out, fmt.Sprintf("%d × %s, there were %d: now %s", len(e[kind]), kind, len(before[kind]), strings.Join(slices.Compact(more), ", ")))
	}
	return out
}

// leavings says what a node has on its host beyond what it had before, once it
// had the time to remove it. What a containerd that died was removing, the next
// removes with the next container; so if need be there is one more.
func (c *chaos) leavings(ctx context.Context, h *host, before estate) {
	var last []string
	wait := func(patience time.Duration) bool {
		return until(patience, 500*time.Millisecond, func() bool {
			e, err := c.estate(h)
			if h.site == spare {
				delete(e, "snapshot") // it had no image yet
			}
			if last = e.beyond(before); err != nil {
				last = []string{err.Error()}
			}
			return len(last) == 0 || ctx.Err() != nil
		})
	}
	if wait(5*time.Second) || c.oneMore(ctx, h) && wait(withinStop) {
		return
	}
	c.say("%s has more on its host than before all this: %s", h.node, strings.Join(last, "; "))
}

// oneMore starts and stops a workload on a node of a site that has no other.
func (c *chaos) oneMore(ctx context.Context, h *host) bool {
	name := "last-" + h.node
	w, err := c.file(name, h, disconnects[0])
	if err == nil {
		_, err = c.apply(ctx, w)
	}
	if err == nil && !until(withinStart, 50*time.Millisecond, func() bool { return c.newest(name) != "" }) {
		err = fmt.Errorf("%s was not heard within %v", name, withinStart)
	}
	if err == nil {
		_, err = c.stop(ctx, name)
	}
	if err != nil {
		c.say("at the end on %s: %v", h.node, err)
	}
	return err == nil
}
