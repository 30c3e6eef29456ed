package topology

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// World is a plan that was made.
type World struct{ plan Plan }

// Build makes the plan. If it fails it removes what it made.
func Build(ctx context.Context, p Plan) (*World, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	if left := Present(p); len(left) > 0 {
		return nil, fmt.Errorf("topology: %s is there already: a fleet of this name is up on this host, made by %s; stop it there first",
			left[0], cmp.Or(Owner(p), "someone unknown"))
	}
	if err := free(p); err != nil {
		return nil, err
	}
	w := &World{p}
	if err := w.build(ctx); err != nil {
		return nil, errors.Join(err, Remove(p))
	}
	return w, nil
}

// Open takes over a plan that an earlier process made.
func Open(p Plan) *World { return &World{p} }

// Plan is what was made.
func (w *World) Plan() Plan { return w.plan }

// free refuses a host that uses these addresses for something else.
func free(p Plan) error {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("topology: list routes: %w", err)
	}
	all := p.network(0, 0, 16)
	for _, r := range routes {
		if ones := maskBits(r.Dst); r.Dst != nil && ones > 0 && (all.Contains(r.Dst.IP) || r.Dst.Contains(all.IP)) {
			return fmt.Errorf("topology: this host routes %s already, and the demo's network %s lies in it: remove that route first", r.Dst, all)
		}
	}
	return nil
}

func maskBits(n *net.IPNet) int {
	if n == nil {
		return 0
	}
	ones, _ := n.Mask.Size()
	return ones
}

func (w *World) build(ctx context.Context) error {
	p := w.plan
	for _, name := range p.Namespaces() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := create(name); err != nil {
			return err
		}
		// The core is the first: from here on it is known whose all this is.
		if name == p.Namespace("core") && p.Owner != "" {
			if err := In(name, func() error { return own(p.Owner) }); err != nil {
				return err
			}
		}
	}
	if err := In(p.Namespace("core"), func() error {
		if err := lo(); err != nil {
			return err
		}
		if err := set("net.ipv4.ip_forward", "1"); err != nil {
			return err
		}
		return bridge("br0", p.network(0, coreHost, 24))
	}); err != nil {
		return err
	}
	for i, s := range p.Servers {
		if err := w.member("core", s, p.network(0, i+1, 24), p.addr(0, coreHost)); err != nil {
			return err
		}
	}
	for i, s := range p.Sites {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := w.site(i, s); err != nil {
			return err
		}
	}
	return w.user()
}

// site makes a site's router, its link to the core and its nodes.
func (w *World) site(i int, s Site) error {
	p := w.plan
	if err := In(p.Namespace(s.Name), func() error {
		if err := lo(); err != nil {
			return err
		}
		if err := set("net.ipv4.ip_forward", "1"); err != nil {
			return err
		}
		return bridge("br0", p.network(i+1, siteHost, 24))
	}); err != nil {
		return err
	}
	// The routed link: "up" in the site, the site's name in the core.
	if err := w.cable("core", s.Name, s.Name, "up"); err != nil {
		return err
	}
	if err := In(p.Namespace("core"), func() error { return address(s.Name, p.network(201+i, 1, 30)) }); err != nil {
		return err
	}
	if err := In(p.Namespace(s.Name), func() error {
		if err := address("up", p.network(201+i, 2, 30)); err != nil {
			return err
		}
		return route("up", nil, p.addr(201+i, 1))
	}); err != nil {
		return err
	}
	if err := w.Heal(s.Name); err != nil {
		return err
	}
	for n, node := range s.Nodes {
		if err := w.member(s.Name, node, p.network(i+1, n+1, 24), p.addr(i+1, siteHost)); err != nil {
			return err
		}
	}
	return nil
}

// member plugs a namespace into a switch.
func (w *World) member(at, name string, address_ *net.IPNet, via net.IP) error {
	if err := w.cable(at, name, name, "eth0"); err != nil {
		return err
	}
	if err := In(w.plan.Namespace(at), func() error { return enslave(name) }); err != nil {
		return err
	}
	return In(w.plan.Namespace(name), func() error {
		if err := lo(); err != nil {
			return err
		}
		if err := address("eth0", address_); err != nil {
			return err
		}
		return route("eth0", nil, via)
	})
}

// user joins the host's own namespace to the core.
func (w *World) user() error {
	p := w.plan
	// Made inside the core and pushed out, so that the host's namespace never
	// holds an end that no name tells apart.
	host, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer host.Close()
	if err := In(p.Namespace("core"), func() error {
		if err := veth("user", p.UserLink()); err != nil {
			return err
		}
		link, err := netlink.LinkByName(p.UserLink())
		if err != nil {
			return err
		}
		if err := netlink.LinkSetNsFd(link, int(host.Fd())); err != nil {
			return err
		}
		return enslave("user")
	}); err != nil {
		return fmt.Errorf("link to the host: %w", err)
	}
	if err := address(p.UserLink(), p.network(0, userHost, 24)); err != nil {
		return err
	}
	return route(p.UserLink(), p.network(0, 0, 16), p.addr(0, coreHost))
}

// cable joins two namespaces by a pair of links.
func (w *World) cable(a, b, nameA, nameB string) error {
	p := w.plan
	far, err := os.Open(filepath.Join(netnsDir, p.Namespace(b)))
	if err != nil {
		return err
	}
	defer far.Close()
	err = In(p.Namespace(a), func() error {
		tmp := "x" + nameA
		if err := veth(nameA, tmp); err != nil {
			return err
		}
		link, err := netlink.LinkByName(tmp)
		if err != nil {
			return err
		}
		return netlink.LinkSetNsFd(link, int(far.Fd()))
	})
	if err == nil && nameB != "x"+nameA {
		err = In(p.Namespace(b), func() error {
			link, err := netlink.LinkByName("x" + nameA)
			if err != nil {
				return err
			}
			return netlink.LinkSetName(link, nameB)
		})
	}
	if err != nil {
		return fmt.Errorf("link %s to %s: %w", a, b, err)
	}
	return nil
}

// Cut takes a site's link down at the core's side.
func (w *World) Cut(site string) error { return w.link(site, false) }

// Heal brings a site's link up again.
func (w *World) Heal(site string) error { return w.link(site, true) }

// Unplug takes a server or node off its switch: from one moment to the next it
// is silent, and no connection of its ends.
func (w *World) Unplug(name string) error { return w.plug(name, false) }

// Plug undoes Unplug.
func (w *World) Plug(name string) error { return w.plug(name, true) }

func (w *World) plug(name string, in bool) error {
	at := "core"
	if site := w.plan.SiteOf(name); site != "" {
		at = site
	}
	return In(w.plan.Namespace(at), func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("link to %s: %w", name, err)
		}
		if in {
			return netlink.LinkSetUp(link)
		}
		return netlink.LinkSetDown(link)
	})
}

func (w *World) link(site string, up bool) error {
	p := w.plan
	for i, s := range p.Sites {
		if s.Name != site {
			continue
		}
		return In(p.Namespace("core"), func() error {
			link, err := netlink.LinkByName(site)
			if err != nil {
				return fmt.Errorf("link to site %s: %w", site, err)
			}
			if !up {
				return netlink.LinkSetDown(link)
			}
			if err := netlink.LinkSetUp(link); err != nil {
				return fmt.Errorf("link to site %s: %w", site, err)
			}
			// The kernel forgets the routes of a link that goes down.
			return route(site, p.network(i+1, 0, 24), p.addr(201+i, 2))
		})
	}
	return fmt.Errorf("topology: there is no site %q", site)
}

// Present lists what there is of a plan on this host.
func Present(p Plan) []string {
	var out []string
	for _, n := range p.Namespaces() {
		if _, err := os.Lstat(filepath.Join(netnsDir, n)); err == nil {
			out = append(out, "network namespace "+n)
		}
	}
	if _, err := netlink.LinkByName(p.UserLink()); err == nil {
		out = append(out, "link "+p.UserLink())
	}
	return out
}

func own(owner string) error {
	link, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetAlias(link, owner)
}

// Owner is who made what there is of a plan; empty if that is nothing, or if
// its maker died before it could say.
func Owner(p Plan) string {
	owner := ""
	_ = In(p.Namespace("core"), func() error {
		link, err := netlink.LinkByName("lo")
		if err == nil {
			owner = link.Attrs().Alias
		}
		return err
	})
	return owner
}

// Remove removes all of a plan, whole or half made. Processes in its namespaces
// must have ended; the namespaces of those that have not stay with them.
func Remove(p Plan) error {
	var errs []error
	if link, err := netlink.LinkByName(p.UserLink()); err == nil {
		if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("remove link %s: %w", p.UserLink(), err))
		}
	}
	for _, n := range p.Namespaces() {
		errs = append(errs, drop(n))
	}
	// The folder was made with the first namespace of the host; with the last
	// one it goes. It stays where `ip netns` has mounted it.
	if err := os.Remove(netnsDir); err != nil && !errors.Is(err, fs.ErrNotExist) &&
		!errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EEXIST) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func lo() error {
	link, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

func bridge(name string, a *net.IPNet) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("make switch: %w", err)
	}
	return address(name, a)
}

func veth(name, peer string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: peer}); err != nil {
		return fmt.Errorf("make link %s: %w", name, err)
	}
	return nil
}

func enslave(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	br, err := netlink.LinkByName("br0")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetMaster(link, br); err != nil {
		return fmt.Errorf("plug in %s: %w", name, err)
	}
	return netlink.LinkSetUp(link)
}

// address gives a link its address and brings it up. The address is IPv4 only
// and is used at once.
func address(name string, a *net.IPNet) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	if err := set("net.ipv6.conf."+name+".disable_ipv6", "1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: a}); err != nil {
		return fmt.Errorf("address %s of %s: %w", a, name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up %s: %w", name, err)
	}
	return nil
}

func route(name string, to *net.IPNet, via net.IP) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	r := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: to, Gw: via}
	// A link that has just come up may not take a gateway for a moment.
	for try := 0; ; try++ {
		if err = netlink.RouteReplace(r); err == nil || try == 50 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		return fmt.Errorf("route to %s by %s: %w", to, name, err)
	}
	return nil
}
