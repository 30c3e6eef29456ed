package network

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// setting is a sysctl and a value, named by its path below /proc/sys.
type setting struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

const forwarding = "net/ipv4/ip_forward"

func sysctlPath(name string) string { return filepath.Join("/proc/sys", name) }

// readSysctl reads in the namespace of the calling thread.
func readSysctl(name string) (string, error) {
	b, err := os.ReadFile(sysctlPath(name))
	if err != nil {
		return "", fmt.Errorf("read sysctl: %w", err)
	}
	return string(bytes.TrimSpace(b)), nil
}

// setSysctl writes in the namespace of the calling thread, if it must.
func setSysctl(name, value string) (changed bool, err error) {
	if now, err := readSysctl(name); err == nil && strings.Join(strings.Fields(now), " ") == value {
		return false, nil
	}
	if err := os.WriteFile(sysctlPath(name), []byte(value), 0); err != nil {
		return false, fmt.Errorf("set sysctl %s=%s: %w", name, value, err)
	}
	return true, nil
}

// setPresent sets those settings that this kernel has.
func setPresent(settings []setting) error {
	for _, s := range settings {
		if _, err := setSysctl(s.Name, s.Value); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// switchSettings keep the bridge a plain bridge.
var switchSettings = []setting{
	{"net/bridge/bridge-nf-call-iptables", "0"},
	{"net/bridge/bridge-nf-call-ip6tables", "0"},
	{"net/bridge/bridge-nf-call-arptables", "0"},
	{"net/ipv6/conf/default/disable_ipv6", "1"},
	{"net/ipv6/conf/all/disable_ipv6", "1"},
}

// instanceSettings are those of a fresh instance namespace. The last two let a
// user that is not root listen on any port and ping, without a capability.
var instanceSettings = []setting{
	{"net/ipv6/conf/default/disable_ipv6", "1"},
	{"net/ipv6/conf/all/disable_ipv6", "1"},
	{"net/ipv4/conf/all/accept_redirects", "0"},
	{"net/ipv4/conf/default/accept_redirects", "0"},
	{"net/ipv4/ip_unprivileged_port_start", "0"},
	{"net/ipv4/ping_group_range", "0 2147483647"},
}

// linkSettings belong to the host's link and go with it. route_localnet lets
// the host reach published ports at 127.0.0.1; what comes in from instances for
// such an address is dropped by the rules. proxy_arp_pvlan makes the host answer
// for an instance's neighbours, which it cannot see itself: what it may send them
// goes by the host and its rules.
func linkSettings(link string) []setting {
	return []setting{
		{"net/ipv6/conf/" + link + "/disable_ipv6", "1"},
		{"net/ipv4/conf/" + link + "/route_localnet", "1"},
		{"net/ipv4/conf/" + link + "/forwarding", "1"},
		{"net/ipv4/conf/" + link + "/accept_redirects", "0"},
		{"net/ipv4/conf/" + link + "/accept_source_route", "0"},
		{"net/ipv4/conf/" + link + "/proxy_arp_pvlan", "1"},
		{"net/ipv4/neigh/" + link + "/proxy_delay", "0"},
	}
}

// forwardingSettings reads what setting ip_forward overwrites: the kernel
// copies it to every interface and sets accept_redirects to its opposite.
func forwardingSettings() ([]setting, error) {
	entries, err := os.ReadDir(sysctlPath("net/ipv4/conf"))
	if err != nil {
		return nil, fmt.Errorf("read sysctls: %w", err)
	}
	list := []string{forwarding, "net/ipv4/conf/all/accept_redirects"}
	for _, e := range entries {
		if e.Name() != "all" {
			list = append(list, "net/ipv4/conf/"+e.Name()+"/forwarding")
		}
	}
	var out []setting
	for _, name := range list {
		v, err := readSysctl(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the interface went away meanwhile
		}
		if err != nil {
			return nil, err
		}
		out = append(out, setting{name, v})
	}
	return out, nil
}

// scope names this boot and this network namespace. An inode number alone is
// used again soon; the cookie never is, where the kernel has it.
func scope(ns *namespace) (string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	id := strconv.FormatUint(ns.inode, 10)
	err = ns.do(func() error {
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("identify network namespace: %w", err)
		}
		defer unix.Close(s)
		if cookie, err := unix.GetsockoptUint64(s, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE); err == nil {
			id += "/" + strconv.FormatUint(cookie, 10)
		}
		return nil
	})
	return strings.TrimSpace(string(boot)) + "/" + id, err
}

// aliasOf is the alias of the host's link. It repeats the recorded value of
// ip_forward, so that a node that comes later in the same namespace, and finds
// forwarding on, knows what to leave behind if it goes last.
func aliasOf(node string, sysctls []setting) string {
	return linkAlias + node + " " + forwarding + "=" + recordedForwarding(sysctls)
}

func recordedForwarding(sysctls []setting) string {
	for _, s := range sysctls {
		if s.Name == forwarding {
			return s.Value
		}
	}
	return ""
}

// aliasForwarding reads back what aliasOf wrote, "" if nothing was recorded.
func aliasForwarding(alias string) string {
	_, v, _ := strings.Cut(alias, " "+forwarding+"=")
	return v
}

// recordSysctls remembers, before anything is set, what to put back. A record
// of another boot or namespace says nothing about this one.
func (n *Network) recordSysctls() error {
	here, err := scope(n.host)
	if err != nil || n.ledger.Scope == here {
		return err
	}
	var found []setting
	if err := n.host.do(func() (err error) {
		found, err = forwardingSettings()
		return err
	}); err != nil {
		return err
	}
	if recordedForwarding(found) != "0" {
		found = nil // forwarding was on, and stays so
		neighbours, err := n.links.neighbours()
		if err != nil {
			return err
		}
		for _, l := range neighbours {
			if aliasForwarding(l.Attrs().Alias) == "0" {
				found = []setting{{forwarding, "0"}}
			}
		}
	}
	var translators []string
	if len(found) > 0 {
		n.log.Info("forwarding is switched on for this host and put back at teardown", "sysctl", "net.ipv4.ip_forward", "before", "0")
		translators = n.nft.translators()
	}
	return n.ledger.update(func(r *record) { r.Scope, r.Sysctls, r.Translators = here, found, translators })
}

// restoreSysctls puts back what was recorded, unless somebody still needs it. A
// setting that is no longer what this node made of it was changed by somebody
// else meanwhile, and stays.
func (n *Network) restoreSysctls() error {
	here, err := scope(n.host)
	if err != nil || n.ledger.Scope != here || len(n.ledger.Sysctls) == 0 {
		return err
	}
	neighbours, err := n.links.neighbours()
	if err != nil {
		return err
	}
	if len(neighbours) > 0 {
		n.log.Info("forwarding stays on for another node on this host", "link", neighbours[0].Attrs().Name)
		return nil
	}
	for _, t := range n.nft.translators() {
		if !slices.Contains(n.ledger.Translators, t) {
			n.log.Warn("forwarding stays on: somebody came to need it after this node had switched it on; if nothing does, run: sysctl -w net.ipv4.ip_forward=0", "nft table", t)
			return nil
		}
	}
	return n.host.do(func() error { return putBack(n.ledger.Sysctls) })
}

// whileForwarding is what a setting becomes when forwarding is switched on.
func whileForwarding(name string) string {
	if strings.HasSuffix(name, "/accept_redirects") {
		return "0"
	}
	return "1"
}

// putBack works in the namespace of the calling thread. Switching forwarding off
// overwrites the others, so all are looked at before it.
func putBack(recorded []setting) error {
	if now, err := readSysctl(forwarding); err != nil || now != whileForwarding(forwarding) {
		return err // somebody else switched it off, and all that follows with it
	}
	before, err := forwardingSettings()
	if err != nil {
		return err
	}
	was := map[string]string{}
	for _, s := range recorded {
		was[s.Name] = s.Value
	}
	var then []setting
	for _, s := range before {
		old, ok := was[s.Name]
		switch {
		case s.Value != whileForwarding(s.Name):
			then = append(then, s) // somebody else's
		case ok:
			then = append(then, setting{s.Name, old})
		}
	}
	if err := setPresent(recorded[:1]); err != nil {
		return err
	}
	return setPresent(slices.DeleteFunc(then, func(s setting) bool { return s.Name == forwarding }))
}
