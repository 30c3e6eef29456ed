package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"redoubt.dev/redoubt/integration/net/topology"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// adapt copies an example file with the demo's sites and patience in it, and
// tells what it changed. Comments and order stay.
func (d *demo) adapt(name string) (path string, changed []string, err error) {
	text, err := os.ReadFile(filepath.Join(d.examples, name+".yml"))
	if err != nil {
		return "", nil, err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil || len(doc.Content) != 1 {
		return "", nil, fmt.Errorf("%s/%s.yml is not one document: %v", d.examples, name, err)
	}
	var sites []string
	for _, s := range d.fleet.Plan().Sites {
		sites = append(sites, s.Name)
	}
	root := doc.Content[0]
	list := &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
	for _, s := range sites {
		list.Content = append(list.Content, scalar(s))
	}
	put(field(root, "placement"), "sites", list)
	put(field(root, "disconnect"), "lostAfter", scalar(d.lostAfter.String()))
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := enc.Encode(&doc); err != nil {
		return "", nil, err
	}
	if err := os.WriteFile(d.fleet.File(name+".yml"), out.Bytes(), 0o600); err != nil {
		return "", nil, err
	}
	return d.fleet.Path(name + ".yml"), []string{"sites " + strings.Join(sites, " and "), "lostAfter " + d.lostAfter.String()}, nil
}

func scalar(text string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Value: text} }

// field is the mapping under a key, made if there is none.
func field(m *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == key {
			return m.Content[i+1]
		}
	}
	n := &yaml.Node{Kind: yaml.MappingNode, Style: yaml.FlowStyle}
	m.Content = append(m.Content, scalar(key), n)
	return n
}

func put(m *yaml.Node, key string, value *yaml.Node) {
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == key {
			m.Content[i+1] = value
			return
		}
	}
	m.Content = append(m.Content, scalar(key), value)
}

// published is the port of the nodes at which a workload is reached.
func (d *demo) published(ctx context.Context, name string) (uint32, error) {
	var port uint32
	err := d.fleet.Call(ctx, func(ctx context.Context, c redoubtv1.FleetServiceClient) error {
		r, err := c.GetWorkload(ctx, &redoubtv1.GetWorkloadRequest{Namespace: "default", Name: name})
		for _, ct := range r.GetWorkload().GetSpec().GetContainers() {
			for _, p := range ct.GetPorts() {
				port = uint32(p.GetHostPort())
			}
		}
		return err
	})
	if err == nil && port == 0 {
		err = verdict{name + " publishes a port", "none in its file"}
	}
	return port, err
}

// serves fetches web's page inside a node's own network.
func (d *demo) serves(ctx context.Context, node string) error {
	port, err := d.published(ctx, "web")
	if err != nil {
		return err
	}
	url := fmt.Sprintf("http://%s:%d/", d.fleet.Plan().Address(node), port)
	return topology.In(d.fleet.Plan().Namespace(d.fleet.Plan().SiteOf(node)), func() error {
		return fetchHere(ctx, url)
	})
}

// farewell tells how to talk to a fleet that stays.
func (d *demo) farewell() {
	d.headline("The fleet stays up")
	d.note("Talk to it from this folder:")
	d.command("export", "REDOUBT_CONTEXT=$PWD/"+d.fleet.Path("admin.context"))
	d.command(d.fleet.Program(), "node", "list")
	d.command(d.fleet.Program(), "run", "--prefer", "vm", "toolbox", "--", "uname", "-a")
	d.line("")
	d.note("Logs of servers and agents are in %s. Stop it, and leave nothing behind, with:", d.fleet.Path("logs"))
	d.command("make", "demo-stop")
}

// summary is the table of what was proven.
func (d *demo) summary() {
	d.headline("What was shown")
	wide := 0
	for _, f := range d.proven {
		wide = max(wide, len(f.what))
	}
	d.line("")
	for _, f := range d.proven {
		d.line(d.paint(green, "✓ ") + fmt.Sprintf("%-*s  %s", min(wide, 46), f.what, f.measured))
	}
	d.line(d.paint(green, "✓ ") + fmt.Sprintf("%-*s  %s", min(wide, 46), "nothing is left on this host", seconds(time.Since(d.begun))+" in all"))
	d.line("")
}
