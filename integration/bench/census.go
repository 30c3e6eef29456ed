package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	client "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"redoubt.dev/redoubt/integration/net/fleet"
	"redoubt.dev/redoubt/integration/net/topology"
)

// census is what one node and its server hold, by name.
type census map[string]float64

// things is the order in which a census is told: what a start makes and a stop
// must take away, then what daemons hold by themselves.
var things = []string{
	"shims", "processes in control groups", "control groups", "mounts", "network namespaces", "links", "nft rules", "nft elements",
	"addresses", "log files", "bundles", "containers in containerd", "tasks in containerd", "snapshots in containerd", "leases in containerd",
	"goroutines of the agent", "open files of the agent", "goroutines of the server", "open files of the server", "threads of containerd", "open files of containerd",
}

// weights are in MB, and told apart: memory is no count.
var weights = []string{"the agent", "the server", "containerd"}

const metricsAt = "127.0.0.1:9464"

// node is one whose things are counted.
type node struct {
	f       *fleet.Fleet
	name    string
	server  string
	pid     int // of containerd
	run     string
	bare    *client.Client
	ctrdDir string
}

func openNode(f *fleet.Fleet, name, server string) (*node, error) {
	n := &node{f: f, name: name, server: server}
	owners, _ := filepath.Glob("/run/redoubt/*/owner")
	for _, o := range owners {
		text, err := os.ReadFile(o)
		if fields := strings.Fields(string(text)); err == nil && len(fields) == 2 && fields[0] == name && strings.HasPrefix(fields[1], f.File(name)) {
			n.run, n.ctrdDir = filepath.Dir(o), fields[1]
		}
	}
	if n.run == "" {
		return nil, fmt.Errorf("node %s has no containerd", name)
	}
	pids := processesOf("containerd", "--config", n.ctrdDir)
	if len(pids) != 1 {
		return nil, fmt.Errorf("%d processes look like the containerd of %s", len(pids), name)
	}
	n.pid = pids[0]
	var err error
	n.bare, err = client.New(filepath.Join(n.run, "c.sock"))
	return n, err
}

// count takes a census. What moves by itself while it is taken may be one off.
func (n *node) count(ctx context.Context) (census, error) {
	c := census{}
	for _, words := range fleet.Processes() {
		if idOfShim(words, "redoubt-"+n.name) != "" {
			c["shims"]++
		}
	}
	if err := n.groups(c); err != nil {
		return nil, err
	}
	if err := n.mounts(c); err != nil {
		return nil, err
	}
	if err := topology.In(n.f.Plan().Namespace(n.name), func() error { return network(c) }); err != nil {
		return nil, fmt.Errorf("count the network of %s: %w", n.name, err)
	}
	if err := n.files(c); err != nil {
		return nil, err
	}
	if err := n.daemons(ctx, c); err != nil {
		return nil, err
	}
	return c, n.contained(ctx, c)
}

func (n *node) groups(c census) error {
	for _, pattern := range []string{"/sys/fs/cgroup/*/redoubt/" + n.name, "/sys/fs/cgroup/redoubt/" + n.name} {
		roots, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, root := range roots {
			_ = filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
				if err == nil && d.IsDir() && path != root {
					c["control groups"]++
					if strings.Contains(path, "/pids/") || strings.HasPrefix(path, "/sys/fs/cgroup/redoubt/") {
						procs, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
						c["processes in control groups"] += float64(len(strings.Fields(string(procs))))
					}
				}
				return nil // what goes meanwhile is gone
			})
		}
	}
	return nil
}

func (n *node) mounts(c census) error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		w := strings.Fields(s.Text())
		if len(w) < 5 || !strings.HasPrefix(w[4], n.run+"/") && !strings.HasPrefix(w[4], n.f.File(n.name)+"/") {
			continue
		}
		c["mounts"]++
		if strings.Contains(s.Text(), " - nsfs ") {
			c["network namespaces"]++
		}
	}
	return nil
}

// network counts in the calling thread's namespace.
func network(c census) error {
	links, err := netlink.LinkList()
	if err != nil {
		return err
	}
	c["links"] = float64(len(links))
	nft, err := nftables.New()
	if err != nil {
		return err
	}
	chains, err := nft.ListChains()
	if err != nil {
		return err
	}
	for _, ch := range chains {
		rules, err := nft.GetRules(ch.Table, ch)
		if err != nil {
			return err
		}
		c["nft rules"] += float64(len(rules))
	}
	tables, err := nft.ListTables()
	if err != nil {
		return err
	}
	for _, t := range tables {
		sets, err := nft.GetSets(t)
		if err != nil {
			return err
		}
		for _, s := range sets {
			elements, err := nft.GetSetElements(s)
			if err != nil {
				return err
			}
			c["nft elements"] += float64(len(elements))
		}
	}
	return nil
}

func (n *node) files(c census) error {
	logs, err := os.ReadDir(filepath.Join(n.f.File(n.name), "logs"))
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	c["log files"] = float64(len(logs))
	bundles, err := filepath.Glob(filepath.Join(n.run, "state", "io.containerd.runtime.v2.task", "redoubt-"+n.name, "*"))
	if err != nil {
		return err
	}
	c["bundles"] = float64(len(bundles))
	ledgers, err := filepath.Glob(filepath.Join(n.f.File(n.name), "network", "*.json"))
	if err != nil {
		return err
	}
	for _, path := range ledgers {
		var held struct {
			Leases map[string]json.RawMessage `json:"leases"`
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if json.Unmarshal(data, &held) == nil {
			c["addresses"] += float64(len(held.Leases))
		}
	}
	if len(ledgers) == 0 {
		return fmt.Errorf("node %s keeps no addresses where they were looked for", n.name)
	}
	return nil
}

func (n *node) daemons(ctx context.Context, c census) error {
	for who, name := range map[string]string{"the agent": n.name, "the server": n.server} {
		m, err := metrics(ctx, n.f.Plan().Namespace(name))
		if err != nil {
			return fmt.Errorf("metrics of %s: %w", name, err)
		}
		c["goroutines of "+who], c["open files of "+who] = m["go_goroutines"], m["process_open_fds"]
		memory, err := pss(n.f.Daemon(name).Pid)
		if err != nil {
			return err
		}
		c[who] = mb(memory)
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", n.pid))
	if err != nil {
		return err
	}
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", n.pid))
	if err != nil {
		return err
	}
	memory, err := pss(n.pid)
	c["open files of containerd"], c["threads of containerd"], c["containerd"] = float64(len(fds)), float64(len(threads)), mb(memory)
	return err
}

// metrics are the values without labels that a daemon serves on its loopback.
func metrics(ctx context.Context, namespace string) (map[string]float64, error) {
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(_ context.Context, _, address string) (c net.Conn, err error) {
		err = topology.In(namespace, func() error {
			c, err = net.DialTimeout("tcp", address, 5*time.Second)
			return err
		})
		return c, err
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+metricsAt+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	r, err := (&http.Client{Transport: tr, Timeout: 20 * time.Second}).Do(req)
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	out := map[string]float64{}
	for line := range strings.Lines(string(text)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if v, err := strconv.ParseFloat(value, 64); ok && err == nil {
			out[name] = v
		}
	}
	if out["go_goroutines"] == 0 {
		return nil, fmt.Errorf("no go_goroutines in %d bytes", len(text))
	}
	return out, nil
}

// contained counts what containerd itself remembers.
func (n *node) contained(ctx context.Context, c census) error {
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(ctx, "redoubt-"+n.name), time.Minute)
	defer cancel()
	containers, err := n.bare.Containers(ctx)
	if err != nil {
		return err
	}
	c["containers in containerd"] = float64(len(containers))
	running, err := n.bare.TaskService().List(ctx, &tasks.ListTasksRequest{})
	if err != nil {
		return err
	}
	c["tasks in containerd"] = float64(len(running.Tasks))
	if err := n.bare.SnapshotService("overlayfs").Walk(ctx, func(context.Context, snapshots.Info) error {
		c["snapshots in containerd"]++
		return nil
	}); err != nil {
		return err
	}
	held, err := n.bare.LeasesService().List(ctx)
	c["leases in containerd"] = float64(len(held))
	return err
}
