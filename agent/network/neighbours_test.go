package network

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	mdnetlink "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// neighbour is a rule set as another program leaves it, and what of ours it
// keeps from passing.
type neighbour struct {
	file   string
	warn   []string // words of the warning, in no order; none: all passes
	remedy string   // begins so
}

var neighbours = []neighbour{
	{file: "docker-20.10.24.recorded.save", warn: []string{"nft table ip filter,", " drops ", "elsewhere (chain FORWARD)", "published port 18001/tcp (chain FORWARD)"}, remedy: "iptables -I DOCKER-USER"},
	{file: "docker-28.written.save", warn: []string{"nft table ip filter,", " drops ", "elsewhere (chain FORWARD)", "published port 18001/udp (chain FORWARD)"}, remedy: "iptables -I DOCKER-USER"},
	{file: "docker-29-iptables.recorded.save", warn: []string{"nft table ip filter,", " drops ", "elsewhere (chain FORWARD)", "published port 18001/tcp (chain FORWARD)"}, remedy: "iptables -I DOCKER-USER"},
	{file: "docker-29-nftables.recorded.nft"},
	{file: "kube-proxy-1.34.4-iptables.recorded.save"},
	{file: "kube-proxy-1.34.4-nftables.recorded.nft"},
	{file: "ufw.written.save", warn: []string{"nft table ip filter,", "elsewhere (chain FORWARD)", "names (chain INPUT)"}, remedy: "ufw "},
	{file: "input-and-forward-drop.written.nft", warn: []string{"nft table inet filter,", " drops ", "elsewhere (chain forward)", "names (chain input)", "published port 18001/tcp (chain forward)"}, remedy: "nft insert rule inet filter"},
}

func (o operator) load(file string) {
	o.w.t.Helper()
	path := must(filepath.Abs("testdata/foreign/" + file))
	if strings.HasSuffix(file, ".nft") {
		o.must("nft -f " + path)
		return
	}
	for _, m := range regexp.MustCompile(`--nfacct-name +(\S+)`).FindAllStringSubmatch(string(must(os.ReadFile(path))), -1) {
		o.account(m[1])
	}
	o.must("iptables-restore --noflush " + path)
}

// account makes a counter that rules refer to, as kube-proxy does before them.
func (o operator) account(name string) {
	o.w.t.Helper()
	conn := must(mdnetlink.Dial(unix.NETLINK_NETFILTER, &mdnetlink.Config{NetNS: int(o.w.node.fd.Fd())}))
	defer conn.Close()
	const subsystem, create, nameAttribute = 7, 0, 1 // of nfnetlink_acct
	attributes := must(mdnetlink.MarshalAttributes([]mdnetlink.Attribute{{Type: nameAttribute, Data: append([]byte(name), 0)}}))
	if _, err := conn.Execute(mdnetlink.Message{
		Header: mdnetlink.Header{Type: subsystem<<8 | create, Flags: mdnetlink.Request | mdnetlink.Create | mdnetlink.Acknowledge},
		Data:   append([]byte{unix.AF_UNSPEC, 0, 0, 0}, attributes...),
	}); err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EEXIST) {
		o.w.t.Fatalf("make the counter %s: %v", name, err)
	}
}

// What passes beside rule sets of others, and what does not, is what the
// warnings say, whoever came first; the remedy opens it and nothing more; not a
// byte of theirs changes by us.
func TestBesideRulesOfOthers(t *testing.T) {
	seen := map[string]bool{}
	for _, nb := range neighbours {
		seen[nb.file] = true
		t.Run(nb.file, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			o := w.operator()
			o.load(nb.file)
			theirs := o.foreign()
			if strings.Count(theirs, "\n") < 10 {
				t.Fatalf("nothing was loaded:\n%s", theirs)
			}
			same := func(when string) {
				t.Helper()
				if diff := cmp.Diff(theirs, o.foreign()); diff != "" {
					t.Errorf("%s, their rules are not as they were (-before +after):\n%s", when, diff)
				}
			}
			n := w.open()
			_, a := w.attach(n, Spec{Instance: "web-1", Ports: somePorts(1)})
			_, b := w.attach(n, Spec{Instance: "web-2"})
			w.serve(a, "web", "0.0.0.0:80")
			w.serve(w.outside, "outside", "0.0.0.0:9000")
			w.serve(w.node, "host", "0.0.0.0:7000")
			w.run(n)
			w.ok(n.converge(context.Background()))
			// Each with what the warning would say of it.
			ways := map[string]func() bool{
				"elsewhere": func() bool {
					_, err := w.call(a, "tcp4", "192.0.2.1:9000", 300*time.Millisecond)
					return err == nil
				},
				"names (": func() bool { return w.resolves(a, n) },
				"published port 18001/tcp": func() bool {
					_, err := w.call(w.outside, "tcp4", "192.0.2.2:18001", 300*time.Millisecond)
					return err == nil
				},
				"to instances (": func() bool {
					_, err := w.call(w.node, "tcp4", n.Attached()["web-1"].Address.String()+":80", 300*time.Millisecond)
					return err == nil
				},
			}
			agrees := func() {
				t.Helper()
				warning := strings.Join(n.Warnings(), "\n")
				for what, passes := range ways {
					told := strings.Contains(warning, what)
					for range 10 { // until names are served
						if passes() != told {
							break
						}
						time.Sleep(100 * time.Millisecond)
					}
					if got := passes(); got == told {
						t.Errorf("%q passes: %v; the warning: %s", what, got, warning)
					}
				}
			}
			closed := func() {
				t.Helper()
				w.refuse(a, "192.0.2.2:7000")
				w.refuse(b, n.Attached()["web-1"].Address.String()+":80")
				w.refuse(w.outside, "192.0.2.2:80")
			}
			warning := strings.Join(n.Warnings(), "\n")
			if len(nb.warn) == 0 && warning != "" {
				t.Errorf("warned of what lets all pass: %s", warning)
			}
			for _, want := range nb.warn {
				if !strings.Contains(warning, want) {
					t.Errorf("the warning does not say %q: %s", want, warning)
				}
			}
			agrees()
			closed()
			same("beside us")

			// They come after us.
			o.must("nft flush ruleset")
			o.load(nb.file)
			w.eventually("our rules are back", func() bool {
				n.mu.Lock()
				defer n.mu.Unlock()
				ok, err := n.nft.matches(n.ledger.Subnet, n.published(), n.policies())
				return err == nil && ok
			})
			w.ok(n.converge(context.Background()))
			agrees()
			same("loaded after us")

			if len(nb.warn) > 0 {
				remedy := remedyOf(t, strings.Join(n.Warnings(), "\n"))
				if !strings.HasPrefix(remedy, nb.remedy) {
					t.Errorf("the remedy is %q; want %s…", remedy, nb.remedy)
				}
				if !strings.HasPrefix(remedy, "ufw") { // not here
					o.must(remedy)
					w.warning(n, "")
					agrees()
					closed()
					theirs = o.foreign()
				}
			}
			w.ok(n.Teardown(context.Background()))
			same("after teardown")
		})
	}
	for _, f := range must(filepath.Glob("testdata/foreign/*")) {
		if !seen[filepath.Base(f)] {
			t.Error("not looked at:", f)
		}
	}
}
