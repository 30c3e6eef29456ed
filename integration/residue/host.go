package residue

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
)

// mounts lists mount points by path, with what is mounted there; several on one
// path are told apart by their order.
func mounts(l *List, _ Options) error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	count := map[string]int{}
	for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan(); {
		before, after, ok := strings.Cut(s.Text(), " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 6 || len(g) < 2 {
			return fmt.Errorf("a line of mountinfo reads %q", s.Text())
		}
		point := unescape(f[4])
		name := point
		if n := count[point]; n > 0 {
			name = fmt.Sprintf("%s (%d)", point, n+1)
		}
		count[point]++
		// Its id and its peer group are numbers that a new boot deals anew;
		// what it is and how are not.
		l.Things[Mount][name] = strings.Join([]string{g[0], g[1], f[3], f[5]}, " ")
	}
	return nil
}

func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

func links(l *List, _ Options) error {
	list, err := netlink.LinkList()
	if err != nil {
		return err
	}
	for _, link := range list {
		a := link.Attrs()
		addresses, err := netlink.AddrList(link, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		words := []string{link.Type(), a.HardwareAddr.String(), a.Flags.String(), fmt.Sprintf("mtu %d", a.MTU)}
		for _, address := range addresses {
			words = append(words, address.IPNet.String())
		}
		l.Things[Link][a.Name] = strings.Join(words, " ")
	}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return err
	}
	for _, r := range routes {
		l.Things[Link]["route "+r.String()] = "there"
	}
	policy, err := netlink.RuleList(netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, r := range policy {
		l.Things[Link]["rule "+r.String()] = "there"
	}
	return nil
}

// rules lists nft tables, chains and sets, and each chain's rules by a digest.
func rules(l *List, _ Options) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	tables, err := c.ListTables()
	if err != nil {
		return err
	}
	for _, t := range tables {
		name := fmt.Sprintf("table %d %s", t.Family, t.Name)
		l.Things[Rule][name] = "there"
		sets, err := c.GetSets(t)
		if err != nil {
			return err
		}
		for _, s := range sets {
			holds := "fills by itself"
			if !s.Dynamic {
				elements, err := c.GetSetElements(s)
				if err != nil {
					return err
				}
				holds = fmt.Sprintf("%d elements", len(elements))
			}
			l.Things[Rule][name+" set "+s.Name] = holds
		}
	}
	chains, err := c.ListChains()
	if err != nil {
		return err
	}
	for _, ch := range chains {
		list, err := c.GetRules(ch.Table, ch)
		if err != nil {
			return err
		}
		sum := sha256.New()
		for _, r := range list {
			for _, e := range r.Exprs {
				fmt.Fprintf(sum, "%#v\n", e)
			}
		}
		l.Things[Rule][fmt.Sprintf("table %d %s chain %s", ch.Table.Family, ch.Table.Name, ch.Name)] =
			fmt.Sprintf("%d rules %x", len(list), sum.Sum(nil)[:6])
	}
	return nil
}

func groups(l *List, _ Options) error {
	return filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
				return nil
			}
			return err
		}
		if d.IsDir() {
			l.Things[Group][path] = "there"
		}
		return nil
	})
}

// counters are sysctls that move by themselves, below /proc/sys.
var counters = []string{
	"fs/aio-nr", "fs/dentry-state", "fs/file-nr", "fs/inode-nr", "fs/inode-state", "fs/quota",
	"kernel/ns_last_pid", "kernel/pty/nr", "kernel/random", "kernel/tainted", "kernel/sched_domain",
	"net/netfilter/nf_conntrack_count", "net/ipv4/tcp_fastopen_key", "net/ipv6/conf/all/stable_secret",
	"fs/binfmt_misc", "vm/stat_refresh", "vm/compact_memory", "vm/drop_caches", "kernel/hung_task_detect_count",
}

func sysctls(l *List, _ Options) error {
	const root = "/proc/sys"
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		name := strings.TrimPrefix(path, root+"/")
		if slices.ContainsFunc(counters, func(c string) bool { return within(name, c) }) {
			if d != nil && d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if err != nil || d.IsDir() {
			return nil // an interface that went meanwhile
		}
		info, err := d.Info()
		if err != nil || info.Mode().Perm()&0o444 == 0 {
			return nil
		}
		if value, err := os.ReadFile(path); err == nil {
			l.Things[Sysctl][name] = strings.Join(strings.Fields(string(value)), " ")
		}
		return nil
	})
}

func within(path, prefix string) bool {
	return path == prefix || strings.HasPrefix(path, strings.TrimSuffix(prefix, "/")+"/")
}
