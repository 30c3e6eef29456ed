// Package network gives every instance on a node a network namespace of its
// own on a private bridge, with an address that it keeps, a way out, published
// ports and working name resolution. It uses netlink and nftables directly and
// needs no program on the host.
//
// # What it makes
//
// The bridge stands in a namespace of its own, the switch. One veth pair joins
// it to the host: the host's end carries the gateway address, and all routing,
// filtering and translation happen there. Each instance has a port on the
// bridge whose other end is eth0 in the instance's namespace.
//
//	host namespace                  switch               instance
//	nft table redoubt-NODE
//	rdn… 10.88.x.1/24 ── veth ── rdu… [bridge rdb…] rdp… ── veth ── eth0
//
// The switch is apart because net.bridge.bridge-nf-call-iptables cannot be
// switched off for one bridge. With it (the default of every new namespace once
// br_netfilter is loaded) a translated packet that returns to the bridge it
// came from is bridged instead of routed, and an isolated port drops it: an
// instance would not reach a published port of its neighbour. In the switch no
// packet is ever translated, whatever the setting; it is cleared there only to
// save the work. The switch also keeps the bridge, its ports and the rules
// against spoofing out of reach of whoever flushes the host's rules.
//
// # Promises
//
// Addresses: an instance keeps its address until Detach. The lease is on disk,
// synced, before anything uses it; no two instances ever hold the same one, and
// a kill at any moment loses at most work that Sweep removes.
//
// Isolation: instances do not reach each other at layer 2, nor at layer 3
// except through a published port or where the one that is reached lets the
// other's workload in (Policy.AllowFrom); that too goes by the host. They send
// from their own address only. They reach no service of the host except the
// resolver (and ping), no loopback address, nothing in 169.254.0.0/16 and no other
// address at which a cloud answers with credentials. Nobody outside reaches an
// instance except through a published port.
//
// Egress: a limited instance opens connections only to what its rules name.
// Rules see addresses as the instance sends to them, before translation, and
// count. What is refused is logged.
//
// Names: the resolver at the gateway answers WORKLOAD.NAMESPACE.redoubt for
// instances of this node that the asker may reach, and asks the host's resolvers
// for all else. While no agent runs, instances ask those of the host's resolvers
// that they can reach by themselves.
//
// Ownership: every name is made from the node's id, so several agents may share
// one kernel and one namespace. Rules are in a table of the node's own; no
// other table is touched. Sysctls of the host are recorded before they are set
// and put back by Teardown, by the last node that leaves.
//
// Concurrency: all methods may be called from any goroutine. One lock
// (Network.mu) serialises everything that changes the host; the resolver counts
// queries under one of its own and takes no other meanwhile. No method starts a goroutine that outlives it; Run joins all of its own.
//
// The namespaces that the package works in are those of the thread that called
// Open, so that one process may hold several networks.
//
// # What it leaves to others
//
// It knows no container. Whoever starts one asks for a new attachment at each
// start and calls Detach when the instance is gone for good. It does not cross
// nodes, and it gives no IPv6 to instances: theirs is off.
package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

var (
	// ErrInvalid marks a spec or configuration that no retry will make valid.
	ErrInvalid = errors.New("invalid")
	// ErrPortHeld marks a host port that somebody else holds.
	ErrPortHeld = errors.New("host port held")
	// ErrExhausted marks a subnet without a free address.
	ErrExhausted = errors.New("no free address")
	// ErrLocked marks a directory that another agent is using.
	ErrLocked = errors.New("in use by another agent")
)

// Config says for whom and where a Network works.
type Config struct {
	// Node is the id that every object's name is made from.
	Node string
	// Dir keeps leases and sysctl records over restarts, and the mounts that
	// pin the namespaces. One agent owns it at a time.
	Dir string
	// Subnet holds the gateway (its first address) and the instances. The zero
	// value chooses a free /24 once and remembers it.
	Subnet netip.Prefix
	// Log receives what changes on the host and what was repaired. Nil drops it.
	Log *slog.Logger

	// resolvers are the host's resolver files, most telling last. Empty means
	// the usual places; tests name their own.
	resolvers []string
}

// Port publishes one port of an instance on the host.
type Port struct {
	// Container is the port inside the instance.
	Container uint16 `json:"container"`
	// Host is the port on the host; zero means that it is not published.
	Host uint16 `json:"host"`
	// HostIP limits the port to one address of the host; zero means all.
	HostIP netip.Addr `json:"hostIP,omitzero"`
	// Protocol is tcp or udp; empty means tcp.
	Protocol string `json:"protocol"`
}

// Spec is what an instance asks for.
type Spec struct {
	// Instance is its id: letters, digits, dot, dash and underscore.
	Instance string
	Ports    []Port
	// Hostname is the name that /etc/hosts gives to the instance's own
	// address; empty means the instance id.
	Hostname string
	// None asks for a namespace that has a loopback interface and nothing else.
	None bool
	// Policy says whom it may talk to.
	Policy Policy
}

// Attachment is where an instance is attached.
type Attachment struct {
	// Netns is the path at which the namespace is pinned.
	Netns string
	// Address and Gateway are zero for an instance with network none.
	Address netip.Addr
	Gateway netip.Addr
	// ResolvConf and Hosts are files to bind over those of the image. They are
	// written in place when the host's resolvers change.
	ResolvConf string
	Hosts      string
}

// Network is the network of one node.
type Network struct {
	cfg   Config
	names names
	log   *slog.Logger
	host  *namespace
	lock  *os.File

	mu      sync.Mutex // guards all below and every change on the host
	closed  bool
	ledger  *ledger
	links   *links
	nft     *firewall
	guard   *guard
	mtu     int
	resolve resolution
	// attached holds the instances whose namespace is complete.
	attached map[string]Attachment
	// uncounted: it was said that the kernel bounds nobody's connections.
	uncounted bool
	// refusals are how many packets of limited instances had been refused when
	// that was last logged.
	refusals map[string]uint64
	// obstacles are what others' rules were last found to keep from instances.
	obstacles []string
	// after is called when a step that changes the host is done. Tests set it
	// to die there.
	after func(step string)
}

// Open creates or repairs the network of a node: its switch, its link to the
// host, its rules and the sysctls they need. Instances that were attached stay
// attached. It works in the network and mount namespaces of the calling thread.
func Open(ctx context.Context, cfg Config) (*Network, error) {
	n, err := prepare(cfg)
	if err != nil {
		return nil, err
	}
	if err := n.open(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open the network of node %s: %w", cfg.Node, err), n.Close())
	}
	return n, nil
}

// prepare opens what a network needs and changes nothing but its directory.
func prepare(cfg Config) (*Network, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if len(cfg.resolvers) == 0 {
		cfg.resolvers = []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"}
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("network directory %s: %w", cfg.Dir, err)
	}
	cfg.Dir = dir
	n := &Network{
		cfg: cfg, names: namesOf(cfg.Node), log: cfg.Log.With("node", cfg.Node),
		attached: map[string]Attachment{},
		after:    func(string) {},
	}
	for _, d := range []string{n.cfg.Dir, n.pins(), n.files()} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return nil, fmt.Errorf("network directory: %w", err)
		}
	}
	if n.lock, err = lockDir(filepath.Join(n.cfg.Dir, "lock")); err != nil {
		return nil, err
	}
	fail := func(err error) (*Network, error) { return nil, errors.Join(err, n.Close()) }
	if n.host, err = currentNamespace(); err != nil {
		return fail(err)
	}
	if n.ledger, err = openLedger(filepath.Join(n.cfg.Dir, "state.json"), cfg.Node); err != nil {
		return fail(err)
	}
	if n.links, err = openLinks(n.names, n.host); err != nil {
		return fail(err)
	}
	if n.nft, err = openFirewall(n.names, n.host); err != nil {
		return fail(err)
	}
	return n, nil
}

func (n *Network) open(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.settleSubnet(); err != nil {
		return err
	}
	if _, err := n.repair(ctx); err != nil {
		return err
	}
	n.lookAround()
	return nil
}

// Attached returns the instances whose namespace is there and complete.
func (n *Network) Attached() map[string]Attachment {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make(map[string]Attachment, len(n.attached))
	for id, a := range n.attached {
		out[id] = a
	}
	return out
}

// Subnet is the range that instances get their addresses from.
func (n *Network) Subnet() netip.Prefix {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ledger.Subnet
}

// Close lets go of the directory and leaves everything on the host as it is.
func (n *Network) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil
	}
	n.closed = true
	if n.links != nil {
		n.links.close()
	}
	var err error
	if n.host != nil {
		err = n.host.fd.Close()
	}
	return errors.Join(err, n.lock.Close())
}

func (n *Network) usable(ctx context.Context) error {
	if n.closed {
		return fmt.Errorf("network of node %s: %w", n.cfg.Node, os.ErrClosed)
	}
	return ctx.Err()
}

func (n *Network) pins() string               { return filepath.Join(n.cfg.Dir, "netns") }
func (n *Network) pin(instance string) string { return filepath.Join(n.pins(), instance) }
func (n *Network) files() string              { return filepath.Join(n.cfg.Dir, "instances") }
func (n *Network) attachment(instance string, l lease) Attachment {
	dir := filepath.Join(n.files(), instance)
	a := Attachment{
		Netns:      n.pin(instance),
		ResolvConf: filepath.Join(dir, "resolv.conf"),
		Hosts:      filepath.Join(dir, "hosts"),
	}
	if !l.None {
		a.Address, a.Gateway = l.Address, gateway(n.ledger.Subnet)
	}
	return a
}

func (c Config) validate() error {
	if err := validID("node id", c.Node); err != nil {
		return err
	}
	if c.Dir == "" {
		return fmt.Errorf("%w network configuration: no directory", ErrInvalid)
	}
	if c.Subnet.IsValid() {
		if !c.Subnet.Addr().Is4() || c.Subnet.Bits() < 8 || c.Subnet.Bits() > 30 {
			return fmt.Errorf("%w subnet %s: it must be IPv4, between /8 and /30", ErrInvalid, c.Subnet)
		}
		if c.Subnet != c.Subnet.Masked() {
			return fmt.Errorf("%w subnet %s: did you mean %s?", ErrInvalid, c.Subnet, c.Subnet.Masked())
		}
	}
	return nil
}

// lockDir takes the directory for this process. The kernel lets go of it when
// the process ends, however it ends.
func lockDir(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock network directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("network directory %s: %w; give this agent a directory of its own or stop the other", filepath.Dir(path), ErrLocked)
		}
		return nil, fmt.Errorf("lock network directory %s: %w", filepath.Dir(path), err)
	}
	return f, nil
}
