package gossip

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"redoubt.dev/redoubt/isolation"
)

// DefaultPort is apart from that of Docker Swarm, which also gossips on a host.
const DefaultPort = 7453

// Kind of a Hint.
type Kind uint8

const (
	Changed Kind = iota + 1 // the digest has another generation than before
	Suspect                 // the pool takes it for dead
	Alive                   // it joined or came back
)

var kindNames = [...]string{"", "changed", "suspect", "alive"}

func (k Kind) String() string { return kindNames[min(int(k), len(kindNames)-1)] }

// Hint is what was heard of another node.
type Hint struct {
	Kind   Kind
	Node   isolation.NodeID
	Digest Digest
}

// Conflict: two hosts use one name.
type Conflict struct {
	Node           isolation.NodeID
	Present, Other string // addresses
}

// Transport carries a pool's packets and streams; nil in a Config is the
// network's own.
type Transport = memberlist.Transport

// Config of a pool.
type Config struct {
	Node isolation.NodeID
	Site isolation.SiteID
	Bind string // "host:port"; an empty host is all addresses, no port is DefaultPort
	// Advertise is where others reach this node; empty: as bound.
	Advertise string
	// Peers are addresses of other members, as known now.
	Peers func() []string
	// Transport replaces UDP and TCP; for simulations.
	Transport Transport
	// OnHint and OnConflict must not block. OnConflict may be nil.
	OnHint     func(Hint)
	OnConflict func(Conflict)
	Log        *slog.Logger
}

// Pool is one node's place in its site's pool. Make one with New; Run it once.
type Pool struct {
	cfg    Config
	keyed  chan struct{} // closed when there are keys
	update chan struct{} // the digest has changed

	mu      sync.Mutex
	keys    [][]byte
	ring    *memberlist.Keyring
	digest  Digest
	meta    []byte
	heard   map[string]uint64 // generation by member
	flagged map[string]bool
	// newcomers bounds names that are learned.
	newcomers newcomers
	// alive has the address of each member. It is kept from events, because
	// memberlist changes the nodes that it hands out.
	alive map[string]string
}

// New makes a pool; it starts nothing. Without keys Run waits for SetKeys.
func New(cfg Config, keys [][]byte) (*Pool, error) {
	p := &Pool{
		cfg: cfg, keyed: make(chan struct{}), update: make(chan struct{}, 1),
		heard: map[string]uint64{}, flagged: map[string]bool{}, alive: map[string]string{}, newcomers: newNewcomers(),
	}
	if err := p.SetDigest(Digest{Node: cfg.Node}); err != nil {
		return nil, err
	}
	if len(keys) > 0 {
		if err := p.SetKeys(keys); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// SetDigest changes what this node says about itself.
func (p *Pool) SetDigest(d Digest) error {
	d.Node = p.cfg.Node
	meta, err := d.Encode()
	if err != nil {
		return err
	}
	p.mu.Lock()
	same := bytes.Equal(meta, p.meta)
	p.digest, p.meta = d, meta
	p.mu.Unlock()
	if !same {
		select {
		case p.update <- struct{}{}:
		default:
		}
	}
	return nil
}

// SetKeys installs the site's keys: the first encrypts, all decrypt.
func (p *Pool) SetKeys(keys [][]byte) error {
	if len(keys) == 0 {
		return errors.New("set gossip keys: there is none")
	}
	for i, k := range keys {
		if err := memberlist.ValidateKey(k); err != nil {
			return fmt.Errorf("set gossip keys: key %d of %d: %w", i+1, len(keys), err)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if slices.EqualFunc(keys, p.keys, bytes.Equal) {
		return nil
	}
	if p.ring == nil {
		ring, err := memberlist.NewKeyring(keys, keys[0])
		if err != nil {
			return fmt.Errorf("set gossip keys: %w", err)
		}
		p.ring, p.keys = ring, keys
		close(p.keyed)
		return nil
	}
	// First know the new ones, then use one, then forget the old: at no moment
	// is anything refused that a member may rightly say.
	for _, k := range keys {
		if err := p.ring.AddKey(k); err != nil {
			return fmt.Errorf("set gossip keys: %w", err)
		}
	}
	if err := p.ring.UseKey(keys[0]); err != nil {
		return fmt.Errorf("set gossip keys: %w", err)
	}
	for _, old := range p.keys {
		if !slices.ContainsFunc(keys, func(k []byte) bool { return bytes.Equal(k, old) }) {
			if err := p.ring.RemoveKey(old); err != nil {
				return fmt.Errorf("set gossip keys: %w", err)
			}
		}
	}
	p.keys = keys
	p.cfg.Log.Info("gossip keys changed", "site", string(p.cfg.Site), "keys", len(keys))
	return nil
}

// Members are the nodes that are taken for alive, this one too, sorted. It is
// empty while Run does not run.
func (p *Pool) Members() []isolation.NodeID {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []isolation.NodeID
	for name := range p.alive {
		out = append(out, isolation.NodeID(name))
	}
	slices.Sort(out)
	return out
}

const (
	probeInterval = 500 * time.Millisecond
	rejoinFirst   = time.Second
	rejoinSlow    = 15 * time.Second
)

func (p *Pool) config() (*memberlist.Config, error) {
	c := memberlist.DefaultLANConfig()
	c.Name = string(p.cfg.Node)
	// Members of another site are refused, even where they share an address.
	c.Label = "redoubt/" + string(p.cfg.Site)
	c.Transport = p.cfg.Transport
	host, port, err := splitAddress(p.cfg.Bind)
	if err != nil {
		return nil, fmt.Errorf("gossip address %q: %w", p.cfg.Bind, err)
	}
	if host == "" {
		host = "0.0.0.0"
	}
	c.BindAddr, c.BindPort, c.AdvertisePort = host, port, port
	if p.cfg.Advertise != "" {
		if c.AdvertiseAddr, c.AdvertisePort, err = splitAddress(p.cfg.Advertise); err != nil {
			return nil, fmt.Errorf("gossip address %q to advertise: %w", p.cfg.Advertise, err)
		}
	}
	// A death shows within a probe, and a suspicion of three probes or, when
	// few members confirm it, twice that.
	c.ProbeInterval, c.ProbeTimeout = probeInterval, 300*time.Millisecond
	c.SuspicionMult, c.SuspicionMaxTimeoutMult = 3, 2
	c.GossipInterval, c.PushPullInterval = 200*time.Millisecond, 15*time.Second
	c.TCPTimeout = 5 * time.Second
	c.DeadNodeReclaimTime = 30 * time.Second
	d := delegate{p}
	c.Delegate, c.Events, c.Conflict, c.Alive = d, d, d, d
	c.Keyring = p.ring
	c.GossipVerifyIncoming, c.GossipVerifyOutgoing = true, true
	c.LogOutput = logWriter{p.cfg.Log}
	return c, nil
}

func splitAddress(s string) (string, int, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		if s != "" && !bytes.ContainsRune([]byte(s), ':') {
			return s, DefaultPort, nil
		}
		return "", 0, err
	}
	if port == "" {
		return host, DefaultPort, nil
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return host, int(n), err
}

// Run takes part until ctx ends, then leaves in good order. It returns an
// error if the address cannot be used.
func (p *Pool) Run(ctx context.Context) error {
	select {
	case <-p.keyed:
	case <-ctx.Done():
		return nil
	}
	cfg, err := p.config()
	if err != nil {
		return err
	}
	if cfg.Transport == nil {
		if cfg.Transport, err = memberlist.NewNetTransport(&memberlist.NetTransportConfig{
			BindAddrs: []string{cfg.BindAddr}, BindPort: cfg.BindPort, Logger: log.New(cfg.LogOutput, "", 0),
		}); err != nil {
			return fmt.Errorf("join the site's pool at %s: %w", p.cfg.Bind, err)
		}
	}
	guarded := newGuard(cfg.Transport)
	cfg.Transport = guarded
	list, err := memberlist.Create(cfg)
	if err != nil {
		_ = guarded.Shutdown()
		guarded.stop()
		return fmt.Errorf("join the site's pool at %s: %w", p.cfg.Bind, err)
	}
	defer func() {
		p.mu.Lock()
		bye := p.digest
		bye.Leaving = true
		if meta, err := bye.Encode(); err == nil {
			p.meta = meta
		}
		p.mu.Unlock()
		// Lost messages only make the others suspect what has ended anyway.
		_ = list.UpdateNode(time.Second)
		_ = list.Leave(time.Second)
		_ = list.Shutdown()
		guarded.stop()
		p.mu.Lock()
		clear(p.alive)
		p.mu.Unlock()
	}()

	delay := rejoinFirst
	join := time.NewTimer(0)
	defer join.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.update:
			if err := list.UpdateNode(time.Second); err != nil {
				p.cfg.Log.Debug("gossip of a changed digest is slow", "err", err)
			}
		case <-join.C:
			if missing := p.missing(); len(missing) == 0 {
				// To look again costs nothing, and a node that is told of
				// its first peers must not wait to be of use to them.
				delay = rejoinFirst
			} else if n, err := list.Join(missing); n > 0 {
				p.cfg.Log.Debug("joined gossip peers", "joined", n, "of", len(missing))
				delay = rejoinFirst
			} else {
				p.cfg.Log.Debug("gossip peers do not answer", "err", err)
				delay = min(2*delay, rejoinSlow)
			}
			join.Reset(delay/2 + rand.N(delay))
		}
	}
}

// missing are the known peers that are not alive members: at first all, later
// those behind a partition.
func (p *Pool) missing() []string {
	peers := p.cfg.Peers()
	p.mu.Lock()
	defer p.mu.Unlock()
	here := map[string]bool{}
	for _, addr := range p.alive {
		here[addr] = true
	}
	var out []string
	for _, addr := range peers {
		if !here[addr] && !slices.Contains(out, addr) {
			out = append(out, addr)
		}
	}
	return out
}
