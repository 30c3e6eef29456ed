package network

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// resolution is how instances resolve names.
type resolution struct {
	// upstreams are what the host asks, and the node's resolver for instances.
	// servers are those of them that instances can reach by themselves: they
	// ask these while nobody answers at the gateway.
	servers   []netip.Addr
	upstreams []netip.Addr
	// extra are the search and options lines of the host.
	extra []string
}

func (r resolution) direct() bool { return len(r.servers) > 0 }

func (r resolution) equal(o resolution) bool {
	return slices.Equal(r.servers, o.servers) && slices.Equal(r.upstreams, o.upstreams) && slices.Equal(r.extra, o.extra)
}

// resolveConf is the file that an instance gets.
func (r resolution) resolvConf(gw netip.Addr) []byte {
	var b bytes.Buffer
	const atMost = 3 // what the C library reads
	servers := append([]netip.Addr{gw}, r.servers...)
	for _, s := range servers[:min(len(servers), atMost)] {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	for _, line := range r.extra {
		b.WriteString(line + "\n")
	}
	return b.Bytes()
}

// chooseResolution reads the host's resolver files in order and takes the first
// that names a server which instances can reach by themselves. If there is none,
// they ask through the forwarder what the first file names.
func chooseResolution(files []string, reachable func(netip.Addr) bool) (resolution, error) {
	var first *resolution
	for _, name := range files {
		data, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return resolution{}, fmt.Errorf("read resolvers: %w", err)
		}
		r := parseResolvConf(data)
		for _, s := range r.upstreams {
			if reachable(s) {
				r.servers = append(r.servers, s)
			}
		}
		if r.direct() {
			return r, nil
		}
		if first == nil {
			first = &r
		}
	}
	if first == nil {
		first = &resolution{}
	}
	if len(first.upstreams) == 0 {
		// What the C library asks when nothing is configured.
		first.upstreams = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	}
	return *first, nil
}

func parseResolvConf(data []byte) (r resolution) {
	var search, options string
	sc := bufio.NewScanner(bytes.NewReader(data))
	for sc.Scan() {
		line, _, _ := strings.Cut(sc.Text(), "#")
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		rest := strings.Join(fields[1:], " ")
		switch fields[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(fields[1]); err == nil {
				r.upstreams = append(r.upstreams, a.Unmap())
			}
		case "search", "domain": // the last one counts
			search = "search " + rest
		case "options":
			// trust-ad is a promise about the path to the host's own resolver;
			// rotate would ask others for names that only this node knows.
			kept := slices.DeleteFunc(fields[1:], func(o string) bool { return o == "trust-ad" || o == "rotate" })
			if len(kept) > 0 {
				options = "options " + strings.Join(kept, " ")
			}
		}
	}
	for _, line := range []string{search, options} {
		if line != "" {
			r.extra = append(r.extra, line)
		}
	}
	return r
}

// reachable tells whether instances may ask the server themselves: the host's
// own addresses and link-local ones are closed to them, and they have no IPv6.
func (n *Network) reachable() (func(netip.Addr) bool, error) {
	own, err := n.links.addresses()
	if err != nil {
		return nil, err
	}
	return n.reachableFrom(own), nil
}

func (n *Network) reachableFrom(own []netip.Addr) func(netip.Addr) bool {
	return func(a netip.Addr) bool {
		return a.Is4() && !a.IsLoopback() && !a.IsUnspecified() && !a.IsLinkLocalUnicast() &&
			!n.ledger.Subnet.Contains(a) && !slices.Contains(own, a) &&
			!slices.ContainsFunc(metadata, func(p netip.Prefix) bool { return p.Contains(a) })
	}
}

// refreshResolvers follows the host's resolvers, also for running instances.
func (n *Network) refreshResolvers() error {
	reachable, err := n.reachable()
	if err != nil {
		return err
	}
	now, err := chooseResolution(n.cfg.resolvers, reachable)
	if err != nil {
		return err
	}
	if now.equal(n.resolve) {
		return nil
	}
	n.resolve = now
	n.log.Info("instances resolve names", "upstreams", now.upstreams, "direct", now.servers)
	var errs []error
	for _, a := range n.attached {
		// In place: instances have this very file, not its name, mounted.
		if a.Address.IsValid() {
			errs = append(errs, os.WriteFile(a.ResolvConf, now.resolvConf(a.Gateway), 0o644))
		}
	}
	return errors.Join(errs...)
}

// writeFiles writes what the instance sees in /etc; the hosts file comes last
// and at once, since it marks the attachment complete.
func (n *Network) writeFiles(instance string, a Attachment, l lease) error {
	if err := os.MkdirAll(filepath.Dir(a.Hosts), 0o755); err != nil {
		return fmt.Errorf("files of instance: %w", err)
	}
	resolv := []byte("# this instance has no network\n")
	own := netip.AddrFrom4([4]byte{127, 0, 1, 1})
	if a.Address.IsValid() {
		resolv, own = n.resolve.resolvConf(a.Gateway), a.Address
	}
	hosts := fmt.Sprintf("127.0.0.1\tlocalhost\n%s\t%s\n", own, l.Hostname)
	if l.Hostname != instance {
		hosts = fmt.Sprintf("127.0.0.1\tlocalhost\n%s\t%s %s\n", own, l.Hostname, instance)
	}
	next := a.Hosts + ".new"
	if err := errors.Join(
		os.WriteFile(a.ResolvConf, resolv, 0o644),
		os.WriteFile(next, []byte(hosts), 0o644),
	); err != nil {
		return fmt.Errorf("files of instance: %w", err)
	}
	if err := os.Rename(next, a.Hosts); err != nil {
		return fmt.Errorf("files of instance: %w", err)
	}
	return nil
}
