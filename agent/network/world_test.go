package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestMain moves the tests into network and mount namespaces of their own, so
// that whatever they break or leave is gone when they end.
func TestMain(m *testing.M) {
	const inside = "REDOUBT_TEST_INSIDE"
	if os.Getuid() != 0 || os.Getenv(inside) != "" {
		if role := os.Getenv(childRole); role != "" {
			os.Exit(child(role))
		}
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:   unix.CLONE_NEWNET,
		Unshareflags: unix.CLONE_NEWNS, // also makes all mounts private
		Pdeathsig:    syscall.SIGKILL,
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, "run the tests in namespaces of their own:", err)
		os.Exit(1)
	}
	os.Exit(cmd.ProcessState.ExitCode())
}

// world is a host with one uplink to an outside that knows nothing of the
// instances' addresses.
type world struct {
	t       testing.TB
	node    *namespace
	outside *namespace
	dir     string
}

var (
	nodeAddr    = netip.MustParsePrefix("192.0.2.2/24")
	outsideAddr = netip.MustParsePrefix("192.0.2.1/24")
)

const uplinkMTU = 1400

func newWorld(t testing.TB) *world {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: network namespaces")
	}
	w := &world{t: t, dir: filepath.Join(t.TempDir(), "network")}
	w.node, w.outside = w.bare(), w.bare()
	h := must(handleAt(w.node, unix.NETLINK_ROUTE))
	defer h.Close()
	w.ok(h.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs("up0", uplinkMTU), PeerName: "up0", PeerNamespace: netlink.NsFd(w.outside.fd.Fd()),
	}))
	w.address(w.node, "up0", nodeAddr)
	w.address(w.outside, "up0", outsideAddr)
	w.ok(h.RouteAdd(&netlink.Route{Gw: outsideAddr.Addr().AsSlice()}))
	t.Cleanup(func() {
		if err := unmountBelow(w.dir); err != nil {
			t.Error(err)
		}
	})
	return w
}

// bare makes a namespace with loopback only.
func (w *world) bare() *namespace {
	w.t.Helper()
	var ns *namespace
	w.ok(onOwnThread(func() (err error) {
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			// Link-local addresses come late and would differ.
			// Forwarding would be as it happens to be on this machine.
			err = errors.Join(setPresent([]setting{{"net/ipv6/conf/default/disable_ipv6", "1"}, {forwarding, "0"}}), loopbackUp())
		}
		if err == nil {
			ns, err = openNamespace(threadNamespace)
		}
		return err
	}))
	w.t.Cleanup(func() { ns.fd.Close() })
	return ns
}

func (w *world) address(ns *namespace, link string, p netip.Prefix) {
	w.t.Helper()
	h := must(handleAt(ns, unix.NETLINK_ROUTE))
	defer h.Close()
	l := must(h.LinkByName(link))
	w.ok(h.AddrAdd(l, &netlink.Addr{IPNet: ipnet(p)}))
	w.ok(h.LinkSetUp(l))
}

func (w *world) config() Config {
	return Config{Node: "n1", Dir: w.dir, Log: slog.New(slog.NewTextHandler(testWriter{w.t}, nil)), resolvers: []string{"testdata/resolv.direct"}}
}

func (w *world) open() *Network { return w.openWith(w.config()) }

func (w *world) openWith(cfg Config) *Network {
	w.t.Helper()
	n, err := w.tryOpen(cfg)
	w.ok(err)
	return n
}

func (w *world) tryOpen(cfg Config) (n *Network, err error) {
	err = w.node.do(func() (err error) {
		n, err = Open(context.Background(), cfg)
		return err
	})
	if n != nil {
		w.t.Cleanup(func() { n.Close() })
	}
	return n, err
}

func (w *world) attach(n *Network, spec Spec) (Attachment, *namespace) {
	w.t.Helper()
	a, err := n.Attach(context.Background(), spec)
	w.ok(err)
	ns, err := openNamespace(a.Netns)
	w.ok(err)
	w.t.Cleanup(func() { ns.fd.Close() })
	return a, ns
}

func (w *world) ok(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// serve answers each caller on tcp and udp with name and the address it sees.
func (w *world) serve(ns *namespace, name, address string) {
	w.t.Helper()
	w.ok(ns.do(func() error {
		l, err := net.Listen("tcp4", address)
		if err != nil {
			return err
		}
		p, err := net.ListenPacket("udp4", address)
		if err != nil {
			return err
		}
		w.t.Cleanup(func() { l.Close(); p.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprintf(c, "%s %s", name, host(c.RemoteAddr()))
				c.Close()
			}
		}()
		go func() {
			buf := make([]byte, 64)
			for {
				_, from, err := p.ReadFrom(buf)
				if err != nil {
					return
				}
				p.WriteTo(fmt.Appendf(nil, "%s %s", name, host(from)), from)
			}
		}()
		return nil
	}))
}

func host(a net.Addr) string { h, _, _ := net.SplitHostPort(a.String()); return h }

// call asks the server at address from ns.
func (w *world) call(ns *namespace, protocol, address string, patience time.Duration) (answer string, err error) {
	err = ns.do(func() error {
		c, err := net.DialTimeout(protocol, address, patience)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		if strings.HasPrefix(protocol, "udp") {
			if _, err := c.Write([]byte("?")); err != nil {
				return err
			}
			buf := make([]byte, 64)
			m, err := c.Read(buf)
			answer = string(buf[:m])
			return err
		}
		b, err := io.ReadAll(c)
		answer = string(b)
		return err
	})
	return answer, err
}

// expect demands the answer over tcp and udp.
func (w *world) expect(ns *namespace, address, want string) {
	w.t.Helper()
	for _, protocol := range []string{"tcp4", "udp4"} {
		got, err := w.call(ns, protocol, address, 3*time.Second)
		if err != nil || got != want {
			w.t.Errorf("%s %s: got %q, %v; want %q", protocol, address, got, err, want)
		}
	}
}

// refuse demands that nothing comes back, over tcp and udp.
func (w *world) refuse(ns *namespace, address string) {
	w.t.Helper()
	for _, protocol := range []string{"tcp4", "udp4"} {
		if got, err := w.call(ns, protocol, address, 300*time.Millisecond); err == nil {
			w.t.Errorf("%s %s: got %q; want nothing", protocol, address, got)
		}
	}
}

func (w *world) eventually(what string, f func() bool) {
	w.t.Helper()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if f() {
			return
		}
		if time.Now().After(end) {
			w.t.Fatalf("never happened: %s", what)
		}
	}
}

func (w *world) run(n *Network) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error("run:", err)
		}
	})
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	if testing.Verbose() {
		w.t.Log(strings.TrimSpace(string(b)))
	}
	return len(b), nil
}

func unmountBelow(dir string) error {
	for _, m := range mountsBelow(dir) {
		if err := unmountAll(m); err != nil {
			return err
		}
	}
	return nil
}

// mountsBelow lists the mounts at and below dir, deepest first.
func mountsBelow(dir string) (out []string) {
	for _, line := range strings.Split(string(must(os.ReadFile("/proc/self/mountinfo"))), "\n") {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir) {
			out = append([]string{f[4]}, out...)
		}
	}
	return out
}
