package topology

import (
	"fmt"
	"net"
	"slices"
)

// Plan is what to make. Prefix and Net keep plans on one host apart.
type Plan struct {
	// Prefix begins every name, at most 7 characters so that links fit.
	Prefix  string
	Net     byte // 10.Net.0.0/16
	Servers []string
	Sites   []Site
	// Owner is who made it, at most 250 characters; it is noted in the core.
	Owner string
}

// Site is a switch with nodes, behind a link of its own.
type Site struct {
	Name  string
	Nodes []string
}

const (
	coreHost = 253
	userHost = 254
	siteHost = 254
)

func (p Plan) addr(third, fourth int) net.IP { return net.IPv4(10, p.Net, byte(third), byte(fourth)) }

func (p Plan) network(third, fourth, bits int) *net.IPNet {
	return &net.IPNet{IP: p.addr(third, fourth).To4(), Mask: net.CIDRMask(bits, 32)}
}

// Address is where a server or node is reached; empty for an unknown name.
func (p Plan) Address(name string) string {
	if i := slices.Index(p.Servers, name); i >= 0 {
		return p.addr(0, i+1).String()
	}
	for s, site := range p.Sites {
		if i := slices.Index(site.Nodes, name); i >= 0 {
			return p.addr(s+1, i+1).String()
		}
	}
	return ""
}

// Namespace is the name below /run/netns of a server, a node, a site or "core".
func (p Plan) Namespace(name string) string { return p.Prefix + "-" + name }

// Namespaces lists all names below /run/netns, the core first.
func (p Plan) Namespaces() []string {
	out := []string{p.Namespace("core")}
	for _, s := range p.Sites {
		out = append(out, p.Namespace(s.Name))
	}
	for _, s := range p.Servers {
		out = append(out, p.Namespace(s))
	}
	for _, s := range p.Sites {
		for _, n := range s.Nodes {
			out = append(out, p.Namespace(n))
		}
	}
	return out
}

// UserLink is the only link in the host's namespace.
func (p Plan) UserLink() string { return p.Prefix + "-user" }

// Nodes lists the nodes of all sites.
func (p Plan) Nodes() []string {
	var out []string
	for _, s := range p.Sites {
		out = append(out, s.Nodes...)
	}
	return out
}

// SiteOf is the site of a node.
func (p Plan) SiteOf(node string) string {
	for _, s := range p.Sites {
		if slices.Contains(s.Nodes, node) {
			return s.Name
		}
	}
	return ""
}

func (p Plan) check() error {
	if p.Prefix == "" || len(p.Prefix) > 10 {
		return fmt.Errorf("topology: prefix %q must have 1 to 10 characters", p.Prefix)
	}
	if len(p.Sites) > 50 || len(p.Servers) > 50 {
		return fmt.Errorf("topology: at most 50 sites and 50 servers")
	}
	seen := map[string]bool{}
	for _, n := range p.Namespaces() {
		if seen[n] {
			return fmt.Errorf("topology: %s is there twice", n)
		}
		seen[n] = true
	}
	return nil
}
