package network

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// operator types commands on a world's node, with programs that deploy/deps.sh
// unpacked and that are not installed on this host.
type operator struct {
	w    *world
	dir  string // for files of its own; first on PATH
	root string
	env  []string
}

func (w *world) operator() operator {
	w.t.Helper()
	o := operator{w: w, dir: w.t.TempDir(), root: must(filepath.Abs("../../bin/firewalls"))}
	if _, err := os.Stat(o.root + "/usr/sbin/firewalld"); err != nil {
		w.t.Skip("needs firewalld, nft and iptables, unpacked by deploy/deps.sh")
	}
	lib := must(filepath.Glob(o.root + "/usr/lib/*-linux-gnu"))
	for _, name := range []string{"iptables", "iptables-save", "iptables-restore"} {
		w.ok(os.Symlink(o.root+"/usr/sbin/xtables-nft-multi", o.dir+"/"+name))
	}
	o.env = append(os.Environ(), "LD_LIBRARY_PATH="+strings.Join(lib, ":"),
		"XTABLES_LIBDIR="+lib[0]+"/xtables", "PATH="+o.dir+":"+o.root+"/usr/sbin:"+os.Getenv("PATH"))
	return o
}

// sh runs what an operator types, on the node.
func (o operator) sh(command string) (string, error) {
	cmd := exec.Command("sh", "-c", command)
	cmd.Env, cmd.Dir = o.env, o.dir
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := o.w.node.do(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	return out.String(), err
}

func (o operator) must(command string) string {
	o.w.t.Helper()
	out, err := o.sh(command)
	if err != nil {
		o.w.t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return out
}

// foreign is everything in the node's nft that is not Redoubt's, as nft lists it.
func (o operator) foreign() string {
	o.w.t.Helper()
	var b strings.Builder
	ours := false
	for _, line := range strings.SplitAfter(o.must("nft -s list ruleset 2>/dev/null"), "\n") {
		if strings.HasPrefix(line, "table ") {
			ours = strings.HasPrefix(line, "table ip "+tablePrefix)
		}
		if !ours {
			b.WriteString(line)
		}
	}
	return b.String()
}

// warning waits until the network's warnings say want, or for "" that there are none.
func (w *world) warning(n *Network, want string) string {
	w.t.Helper()
	var all string
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		all = strings.Join(n.Warnings(), "\n")
		if want == "" && all == "" || want != "" && strings.Contains(all, want) {
			return all
		}
		if time.Now().After(end) {
			w.t.Fatalf("warnings are %q; want %q", all, want)
		}
	}
}

// remedyOf is what a warning says to run.
func remedyOf(t *testing.T, warning string) string {
	t.Helper()
	_, remedy, ok := strings.Cut(warning, "to let it pass: ")
	if !ok || strings.Contains(remedy, "\n") {
		t.Fatalf("no one remedy in %q", warning)
	}
	remedy, _, _ = strings.Cut(remedy, ", and ")
	return remedy
}

// resolves tells whether the node's resolver answers the instance.
func (w *world) resolves(ns *namespace, n *Network) bool {
	return ns.do(func() error {
		c, err := net.DialTimeout("udp4", gateway(n.Subnet()).String()+":53", time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		client := dns.Client{Timeout: time.Second}
		_, _, err = client.ExchangeWithConn(new(dns.Msg).SetQuestion("nobody.default.redoubt.", dns.TypeA), &dns.Conn{Conn: c})
		return err
	}) == nil
}
