package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/agent/health"
	"redoubt.dev/redoubt/agent/logs"
	"redoubt.dev/redoubt/agent/reconcile"
	"redoubt.dev/redoubt/agent/session"
	"redoubt.dev/redoubt/agent/store"
	"redoubt.dev/redoubt/isolation"
	"redoubt.dev/redoubt/isolation/gossip"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
	"redoubt.dev/redoubt/proto/tracing"
)

// FeatureLevel of this agent, told to servers.
const FeatureLevel = 1

// DefaultProbeEvery is how often proofs are renewed, give or take a tenth.
const DefaultProbeEvery = 30 * time.Minute

// Config of an agent.
type Config struct {
	Member
	DataDir string
	Version string
	Labels  map[string]string
	// Servers are API addresses beside those that the fleet told.
	Servers []string
	// GossipBind is "host:port"; empty: no gossip. GossipAdvertise is where the
	// site's others reach it; empty: the address that this host has towards a
	// server.
	GossipBind, GossipAdvertise string
	ProbeEvery                  time.Duration // 0: DefaultProbeEvery
	AllowHostPaths              []string
	Limits                      reconcile.Limits
	Session                     session.Config // identity fields are filled in
}

// Host is what a node has. OpenHost makes a real one, FakeHost one in memory.
type Host struct {
	Driver  driver.Driver
	Network reconcile.Network
	// Facts measures the host, Findings proves its runtimes: one round.
	Facts    func(context.Context) (isolation.Host, error)
	Findings func(context.Context, isolation.Host) ([]isolation.Finding, error)
	// Measure looks at a live boundary; f is what its runtime promises here.
	Measure func(ctx context.Context, c driver.Container, f isolation.Finding) (reconcile.Measurement, error)
	// Dial connects to an instance of this node; nil: as any host does.
	Dial health.Dial
	// Inside connects to a port of the instance uid as its own processes do; nil:
	// nothing is forwarded.
	Inside func(ctx context.Context, uid string, port uint16) (net.Conn, error)
	// Egress are the counters of an instance's egress rules. May be nil.
	Egress func(uid string) ([]EgressCount, error)
	// Warnings say what keeps instances from what they are promised and that the
	// node cannot put right itself. May be nil.
	Warnings func() []string
	// KeepImages removes images that are not among those wanted, when the disk
	// is full, until ctx ends. May be nil.
	KeepImages func(ctx context.Context, wanted func() []string) error
	// Run keeps the parts going; it returns when ctx ends. May be nil.
	Run func(context.Context) error
}

// Deps of an agent. The last three may be nil.
type Deps struct {
	Host            Host
	Identity        Identity
	Log             *slog.Logger
	Dial            DialContext
	GossipTransport gossip.Transport
	// Metrics is filled by the agent; nil: its own, which nobody reads.
	Metrics *Metrics
	// Traces, if set, makes this agent's spans.
	Traces tracing.Provider
	// BootClock and BootID replace the kernel's, for simulations.
	BootClock func() time.Duration
	BootID    string
}

// Agent is a node's agent. Make one with New; Run it once.
type Agent struct {
	cfg      Config
	deps     Deps
	store    *store.Store
	lease    *lease
	reporter *Reporter
	session  *session.Session
	loop     *reconcile.Loop
	health   *health.Monitor
	pool     *gossip.Pool
	renewer  *renewer
	bulk     *bulk
	trace    *placements
	hints    chan *redoubtv1.Hint
	// statusChanged, reportChanged and tryNow wake the session.
	statusChanged, reportChanged, tryNow chan struct{}

	mu        sync.Mutex
	converted map[string]reconcile.Assignment // by uid, of source
	source    map[string]*redoubtv1.Assignment
	load      atomic.Uint32
}

// New opens the node's store and composes an agent; it starts nothing. Close
// it if it is not run.
func New(cfg Config, deps Deps) (*Agent, error) {
	if cfg.ProbeEvery == 0 {
		cfg.ProbeEvery = DefaultProbeEvery
	}
	if deps.BootClock == nil {
		deps.BootClock = bootClock
	}
	if deps.BootID == "" {
		id, err := bootID()
		if err != nil {
			return nil, err
		}
		deps.BootID = id
	}
	st, err := store.Open(cfg.DataDir, cfg.Node)
	if err != nil {
		return nil, err
	}
	a := &Agent{
		cfg: cfg, deps: deps, store: st, lease: newLease(st, deps.Log),
		hints: make(chan *redoubtv1.Hint, 256), statusChanged: make(chan struct{}, 1), reportChanged: make(chan struct{}, 1),
		tryNow: make(chan struct{}, 1),
	}
	if a.deps.Metrics == nil {
		a.deps.Metrics = NewMetrics()
	}
	a.trace = newPlacements(tracing.New(deps.Traces, tracing.KeyNode, cfg.Node, tracing.KeySite, cfg.Site))
	if err := a.compose(); err != nil {
		st.Close()
		return nil, err
	}
	a.deps.Metrics.a = a
	return a, nil
}

func (a *Agent) compose() error {
	cfg, deps := a.cfg, a.deps
	if cfg.Cluster != "" {
		if err := a.store.BindCluster(cfg.Cluster); err != nil {
			return err
		}
	}
	a.bulk = &bulk{driver: deps.Host.Driver, inside: deps.Host.Inside, egress: deps.Host.Egress, store: a.store, logs: filepath.Join(cfg.DataDir, "logs")}
	if err := os.MkdirAll(a.bulk.logs, 0o700); err != nil {
		return fmt.Errorf("make log directory: %w", err)
	}
	a.reporter = &Reporter{
		node: isolation.NodeID(cfg.Node), site: isolation.SiteID(cfg.Site), labels: cfg.Labels, every: cfg.ProbeEvery,
		boot: deps.BootClock, host: deps.Host, generation: a.store.Generation, log: deps.Log, again: make(chan struct{}, 1),
	}
	a.session = session.New(a.sessionConfig(), session.Deps{
		Dial: dialer(deps.Identity, deps.Dial), Node: &link{a}, Bulk: a.bulk, MoveAt: moveAt,
		StatusChanged: a.statusChanged, ReportChanged: a.reportChanged, Hints: a.hints, TryNow: a.tryNow, Acknowledged: a.trace.acknowledged, Log: deps.Log,
	})
	a.health = newHealth(deps.Host, deps.Log)
	a.loop = reconcile.NewLoop(reconcile.Deps{
		Driver: meteredDriver{deps.Host.Driver, deps.Metrics}, Network: deps.Host.Network, Ledger: ledger{a.store, a.lease},
		Assignments: a.assignments, Proof: a.reporter.Proof, ProofChanged: a.reporter.Watch(),
		Connected: a.session.Connected, Now: a.now, Health: a.health, Measure: a.measure,
		LogPath: a.bulk.logPath, LogStarts: func(uid string, attempt uint64) {
			if err := logs.Started(a.bulk.logPath(uid), attempt, time.Now()); err != nil {
				deps.Log.Warn("the output of this run will not be told from that of the one before", "uid", uid, "err", err)
			}
		}, LogGone: func(uid string) {
			if err := logs.Remove(a.bulk.logPath(uid)); err != nil {
				deps.Log.Warn("cannot remove a log", "uid", uid, "err", err)
			}
		},
		Recorded: a.recorded, AllowHostPaths: cfg.AllowHostPaths, Tracer: a.trace.tracer, Log: deps.Log,
	}, cfg.Limits)
	a.assignments() // so that what was assigned before is known to trace
	a.trace.resume(a.store.Facts(), time.Now())
	if out, ok := deps.Identity.(writable); ok {
		a.renewer = &renewer{node: cfg.Node, src: deps.Identity, out: out, store: a.store, servers: a.servers,
			dial: dialer(deps.Identity, deps.Dial), raw: deps.Dial, renewed: func() { poke(a.tryNow) }, log: deps.Log}
	}
	if cfg.GossipBind == "" {
		return nil
	}
	pool, err := gossip.New(gossip.Config{
		Node: isolation.NodeID(cfg.Node), Site: isolation.SiteID(cfg.Site), Bind: cfg.GossipBind, Advertise: a.gossipAddress(),
		Peers: func() []string { return a.store.Fleet().GetGossipPeers() }, Transport: deps.GossipTransport,
		OnHint: a.hint, Log: deps.Log,
	}, a.store.Fleet().GetGossipKeys())
	if err != nil {
		return err
	}
	a.pool = pool
	return nil
}

func (a *Agent) sessionConfig() session.Config {
	c := a.cfg.Session
	c.Node, c.Site, c.BootID, c.Version = a.cfg.Node, a.cfg.Site, a.deps.BootID, a.cfg.Version
	c.FeatureLevel, c.GossipAddress = FeatureLevel, a.gossipAddress()
	return c
}

// gossipAddress is where the site's others reach this node, "" if unknown.
func (a *Agent) gossipAddress() string {
	if a.cfg.GossipBind == "" {
		return ""
	}
	if a.cfg.GossipAdvertise != "" {
		return a.cfg.GossipAdvertise
	}
	host, port, err := net.SplitHostPort(a.cfg.GossipBind)
	if err != nil {
		return ""
	}
	if ip := net.ParseIP(host); host != "" && (ip == nil || !ip.IsUnspecified()) {
		return a.cfg.GossipBind
	}
	for _, s := range a.servers() {
		// Connecting a datagram socket sends nothing; it asks for the route.
		conn, err := net.Dial("udp", s)
		if err != nil {
			continue
		}
		host, _, err := net.SplitHostPort(conn.LocalAddr().String())
		conn.Close()
		if err == nil {
			return net.JoinHostPort(host, port)
		}
	}
	return ""
}

// Close gives the data directory back.
func (a *Agent) Close() error { return a.store.Close() }

// Probe asks for a new round of proofs now.
func (a *Agent) Probe() { a.reporter.Probe() }

// Connected reports whether the control plane acknowledged this node lately.
func (a *Agent) Connected() bool { return a.session.Connected() }

// Run serves until ctx ends, then closes the store. Containers stay.
func (a *Agent) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, a.store.Close()) }()
	a.deps.Log.Info("agent starts", "node", a.cfg.Node, "site", a.cfg.Site, "version", a.cfg.Version)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var parts sync.WaitGroup
	// must: without it the node cannot keep its work running.
	must := func(name string, run func(context.Context) error) {
		parts.Go(func() {
			if err := run(ctx); err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	// try: the node keeps its work running without it.
	try := func(name string, run func(context.Context) error) {
		parts.Go(func() {
			for ctx.Err() == nil {
				err := run(ctx)
				if ctx.Err() != nil {
					return
				}
				a.deps.Log.Error(name+" stopped; it is tried again", "err", err)
				select {
				case <-time.After(15 * time.Second):
				case <-ctx.Done():
				}
			}
		})
	}
	if a.deps.Host.Run != nil {
		must("host", a.deps.Host.Run)
	}
	must("reporter", a.reporter.Run)
	must("reconciler", a.loop.Run)
	must("probes of instances", a.health.Run)
	must("session", a.session.Run)
	must("log keeper", logs.Keeper{Dir: a.bulk.logs, Log: a.deps.Log}.Run)
	must("relay", a.relay)
	if keep := a.deps.Host.KeepImages; keep != nil {
		try("removal of unused images", func(ctx context.Context) error { return keep(ctx, a.images) })
	}
	if a.renewer != nil {
		try("renewal of the node's identity", a.renewer.run)
	}
	if a.pool != nil {
		try("gossip", a.pool.Run)
	}
	parts.Wait()
	a.deps.Log.Info("agent ends; containers keep running", "node", a.cfg.Node)
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) && !errors.Is(cause, context.DeadlineExceeded) {
		return cause
	}
	return nil
}

// relay carries changes between the parts: of the store to the session, of the
// report to the session and to gossip.
func (a *Agent) relay(ctx context.Context) error {
	stored, stop := a.store.Watch()
	defer stop()
	reported := a.reporter.Watch()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-stored:
			poke(a.statusChanged)
		case <-reported:
			poke(a.reportChanged)
		}
		a.reckon()
	}
}

// images are those that the node's assignments name.
func (a *Agent) images() []string {
	var names []string
	for _, as := range a.assignments() {
		if as.Container.Image != "" {
			names = append(names, as.Container.Image)
		}
	}
	return names
}

// reckon brings load and digest up to date.
func (a *Agent) reckon() {
	rep, ok := a.reporter.Report()
	if !ok || rep.Host.MemoryBytes <= 0 {
		return
	}
	final := map[string]bool{}
	for _, f := range a.store.Facts() {
		final[f.UID] = f.Phase.Final()
	}
	var used int64
	for _, p := range a.store.Assignments() {
		if !final[p.GetUid()] {
			used += p.GetMemoryBytes()
		}
	}
	a.load.Store(uint32(min(1000, max(0, used*1000/rep.Host.MemoryBytes))))
	if a.pool == nil {
		return
	}
	d := gossip.Digest{Generation: rep.Generation, KVM: rep.Host.KVM.Verdict, Load: a.load.Load()}
	for _, f := range rep.Findings {
		if f.State == isolation.StateVerified {
			d.Classes = d.Classes.With(f.Class)
		}
	}
	if err := a.pool.SetDigest(d); err != nil {
		a.deps.Log.Warn("digest not gossiped", "err", err)
	}
}

// hint keeps what gossip heard for the session; the oldest go first.
func (a *Agent) hint(h gossip.Hint) {
	kinds := map[gossip.Kind]redoubtv1.Hint_Kind{
		gossip.Changed: redoubtv1.Hint_KIND_CHANGED, gossip.Suspect: redoubtv1.Hint_KIND_SUSPECT, gossip.Alive: redoubtv1.Hint_KIND_ALIVE,
	}
	p := &redoubtv1.Hint{Kind: kinds[h.Kind], Node: string(h.Node), Digest: h.Digest.Proto()}
	for {
		select {
		case a.hints <- p:
			return
		default:
		}
		select {
		case <-a.hints:
		default:
		}
	}
}

func (a *Agent) now() store.Moment {
	return store.Moment{Boot: a.deps.BootID, At: a.deps.BootClock()}
}

// servers are what the fleet told, then what was configured.
func (a *Agent) servers() []string {
	out := a.store.Fleet().GetServers()
	for _, s := range a.cfg.Servers {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// assignments converts what is stored; each message once.
func (a *Agent) assignments() []reconcile.Assignment {
	stored := a.store.Assignments()
	a.mu.Lock()
	defer a.mu.Unlock()
	converted, source := map[string]reconcile.Assignment{}, map[string]*redoubtv1.Assignment{}
	var out []reconcile.Assignment
	for _, p := range stored {
		uid := p.GetUid()
		source[uid] = p
		if a.source[uid] == p {
			converted[uid] = a.converted[uid]
		} else {
			converted[uid] = assignment(p)
		}
		out = append(out, converted[uid])
	}
	a.converted, a.source = converted, source
	a.trace.keep(converted)
	return out
}

// recorded takes note of what is durable now of an instance.
func (a *Agent) recorded(before, now store.Facts) {
	if now.Restarts > before.Restarts {
		a.deps.Metrics.restarts.Add(float64(now.Restarts - before.Restarts))
	}
	a.trace.recorded(before, now, time.Now())
}

func (a *Agent) measure(ctx context.Context, c driver.Container) (reconcile.Measurement, error) {
	if a.deps.Host.Measure == nil {
		return reconcile.Measurement{}, errors.New("this host measures nothing")
	}
	for _, f := range a.reporter.Proof().Findings {
		if f.Runtime == c.Runtime && f.Variant == c.Variant {
			return a.deps.Host.Measure(ctx, c, f)
		}
	}
	return reconcile.Measurement{}, fmt.Errorf("no finding of %s %s", c.Runtime, c.Variant)
}

// bootID names this boot of the kernel.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("which boot this is: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
