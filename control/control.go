// Package control puts a control server together: its data directory, its
// authority and identity, consensus, the state, the leader's loops and the
// gRPC server.
//
// A server begins by Init (the first of a fleet) or Join (every other one),
// which write its data directory; Run then serves, now and after every restart.
// Run holds the directory's lock, so one process serves it at a time. Both Init
// and Join may be repeated after a crash at any point, with the same arguments.
//
// The data directory holds:
//
//	server.json   who this is and where it listens; not secret
//	ca/           the authority: its key never leaves
//	identity/     the trust bundle, for a cold start without a quorum
//	raft/         log, vote and snapshots
package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"

	"redoubt.dev/redoubt/control/consensus"
	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/control/leader"
	"redoubt.dev/redoubt/control/server"
	"redoubt.dev/redoubt/control/state"
	"redoubt.dev/redoubt/identity"
	"redoubt.dev/redoubt/identity/ca"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
	"redoubt.dev/redoubt/proto/tracing"
)

// Default ports. They collide with none of Nomad, Consul, Docker Swarm, etcd,
// Kubernetes and SPIRE.
const (
	PortAPI    = 7450
	PortRaft   = 7451
	PortEnroll = 7452
)

// settings is server.json.
type settings struct {
	ID            string `json:"id"`
	TrustDomain   string `json:"trust_domain"`
	ClusterID     string `json:"cluster_id"`
	APIAddress    string `json:"api_address"`
	RaftAddress   string `json:"raft_address"`
	EnrollAddress string `json:"enroll_address"`
	// First: this server began the fleet.
	First bool `json:"first,omitempty"`
	// Others are the API addresses of the other servers, as last known, by id.
	Others map[string]string `json:"others,omitempty"`
	// Removed: when this server learned that it was taken out of the fleet.
	Removed time.Time `json:"removed,omitzero"`
}

func settingsPath(dir string) string { return filepath.Join(dir, "server.json") }

func readSettings(dir string) (settings, error) {
	var s settings
	data, err := os.ReadFile(settingsPath(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return s, fmt.Errorf("%s is no server's data directory: begin a fleet with `redoubt server init --data-dir %s …`, or join one with `redoubt server join`: %w", dir, dir, fs.ErrNotExist)
	}
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return s, fmt.Errorf("read %s: %w", settingsPath(dir), err)
	}
	return s, nil
}

// Member says which server of which trust domain dir belongs to; an error that
// is fs.ErrNotExist says that it is nobody's yet.
func Member(dir string) (id, trustDomain string, err error) {
	s, err := readSettings(dir)
	return s.ID, s.TrustDomain, err
}

func (s settings) write(dir string) error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return identity.WriteFile(settingsPath(dir), append(data, '\n'))
}

// Addresses are where a server is reached, host:port each.
type Addresses struct{ API, Raft, Enroll string }

// AddressesAt are the default ports of a host.
func AddressesAt(host string) Addresses {
	at := func(port int) string { return net.JoinHostPort(host, fmt.Sprint(port)) }
	return Addresses{API: at(PortAPI), Raft: at(PortRaft), Enroll: at(PortEnroll)}
}

// Config is how a server runs.
type Config struct {
	Dir     string
	Version string
	// ServerTTL, NodeTTL and UserTTL are lifetimes of SVIDs. Zero: an hour, an
	// hour, a week.
	ServerTTL, NodeTTL, UserTTL time.Duration
	// RenewWindow after the end of its SVID an enrolled node may renew with its
	// key. Zero: 30 days.
	RenewWindow time.Duration
	Timing      leader.Timing    // zero: leader.DefaultTiming
	Raft        consensus.Timing // zero: consensus.DefaultTiming
	Log         *slog.Logger
	// Started, if set, is called once the server has its log and listens; it may
	// know no leader for long yet.
	Started func()
	// LogTail, if set, gives the last lines of the log, for `operator debug`.
	LogTail func() []byte
	// Registry, if set, takes this server's metrics.
	Registry prometheus.Registerer
	// Traces, if set, makes this server's spans.
	Traces tracing.Provider
	// Ready, if set, is called once the server knows a leader.
	Ready func()
}

func (c *Config) defaults() {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.ServerTTL, time.Hour)
	def(&c.NodeTTL, time.Hour)
	def(&c.UserTTL, 7*24*time.Hour)
	def(&c.RenewWindow, 30*24*time.Hour)
	if c.Timing == (leader.Timing{}) {
		c.Timing = leader.DefaultTiming()
	}
	if c.Raft == (consensus.Timing{}) {
		c.Raft = consensus.DefaultTiming()
	}
}

// Run serves until ctx ends, then hands leadership over and stops. A server that
// was removed from its fleet ends by itself with ErrRemoved.
func Run(ctx context.Context, cfg Config) (err error) {
	cfg.defaults()
	set, err := readSettings(cfg.Dir)
	if err != nil {
		return err
	}
	if !set.Removed.IsZero() {
		return set.removal(cfg.Dir)
	}
	td, err := spiffeid.TrustDomainFromString(set.TrustDomain)
	if err != nil {
		return fmt.Errorf("%s: trust domain: %w", settingsPath(cfg.Dir), err)
	}
	self, err := identity.ServerID(td, set.ID)
	if err != nil {
		return fmt.Errorf("%s: %w", settingsPath(cfg.Dir), err)
	}
	authority, err := ca.Load(filepath.Join(cfg.Dir, "ca"))
	if err != nil {
		return err
	}
	log := cfg.Log.With("server", set.ID)
	disk, err := identity.OpenDisk(filepath.Join(cfg.Dir, "identity"), log)
	if err != nil {
		return err
	}
	source, err := identity.NewSelfSource(disk, authority, self, cfg.ServerTTL, log)
	if err != nil {
		return err
	}
	defer source.Close()

	var listeners [3]net.Listener
	for i, address := range []string{set.APIAddress, set.RaftAddress, set.EnrollAddress} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			for _, open := range listeners[:i] {
				open.Close()
			}
			return fmt.Errorf("listen on %s: %w; is another server running, or the address not this host's?", address, err)
		}
		listeners[i] = l
	}
	metrics := server.NewMetrics()
	store := state.NewStore()
	layer := consensus.NewLayer(listeners[1], consensus.MutualTLS(source, identity.AuthorizeServers(td)), nil)
	node, err := consensus.Open(consensus.Config{
		ServerID: set.ID, ClusterID: set.ClusterID, Dir: filepath.Join(cfg.Dir, "raft"), Address: set.RaftAddress,
		Layer: layer, Store: store, Logger: log, Timing: cfg.Raft, Meter: metrics,
	})
	if err != nil {
		return errors.Join(err, listeners[0].Close(), layer.Close(), listeners[2].Close())
	}
	if set.First {
		if err := node.Bootstrap(); err != nil && !errors.Is(err, consensus.ErrBootstrapped) {
			return errors.Join(err, node.Close(), listeners[0].Close(), listeners[2].Close())
		}
	}
	tracer := tracing.New(cfg.Traces, tracing.KeyServer, set.ID)
	lead := leader.New(node, store, cfg.Timing, log)
	srv := server.New(server.Config{
		ID: set.ID, Version: cfg.Version, AdvertiseAPI: set.APIAddress,
		NodeTTL: cfg.NodeTTL, UserTTL: cfg.UserTTL, RenewWindow: cfg.RenewWindow, Timing: cfg.Timing,
	}, td, server.Parts{Consensus: node, Store: store, Leader: lead, Authority: authority, Source: source, Metrics: metrics, LogTail: cfg.LogTail, Tracer: tracer, Log: log})
	lead.Meter(metrics)
	lead.Trace(tracer)
	if cfg.Registry != nil {
		if err := cfg.Registry.Register(metrics); err != nil {
			return errors.Join(fmt.Errorf("register metrics: %w", err), node.Close(), listeners[0].Close(), listeners[2].Close())
		}
	}
	lead.Join(node, srv.PeerApplied)
	lead.Record(set.ID)

	// Consensus ends last: what the server still answers needs it.
	raftCtx, stopRaft := context.WithCancel(context.WithoutCancel(ctx))
	defer stopRaft()
	raftDone := make(chan error, 1)
	go func() { raftDone <- node.Run(raftCtx) }()
	select {
	case <-node.Started():
	case err := <-raftDone:
		return errors.Join(err, listeners[0].Close(), listeners[2].Close())
	}
	if cfg.Started != nil {
		cfg.Started()
	}

	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return source.Run(gctx) })
	g.Go(func() error { return trust(gctx, store, td, source, authority, log) })
	g.Go(func() error { return srv.Run(gctx, listeners[0], listeners[2]) })
	g.Go(func() error { return ended(gctx, node.Lead(gctx, lead.Run)) })
	g.Go(func() error {
		if set.First {
			if err := initialise(gctx, node, store, set, authority, cfg.Version); err != nil {
				return err
			}
		}
		return srv.Declare(gctx, set.server(cfg.Version))
	})
	g.Go(func() error { return watchRemoval(gctx, node, store, srv, set, cfg, log) })
	if cfg.Ready != nil {
		g.Go(func() error { return ready(gctx, node, store, cfg.Ready) })
	}
	g.Go(func() error {
		select {
		case err := <-raftDone:
			raftDone <- err
			return errors.Join(errors.New("consensus ended by itself"), err)
		case <-gctx.Done():
			return nil
		}
	})
	err = g.Wait()
	stopRaft()
	return errors.Join(err, <-raftDone)
}

func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (s settings) server(version string) *redoubtv1.Server {
	return &redoubtv1.Server{
		Id: s.ID, ApiAddress: s.APIAddress, RaftAddress: s.RaftAddress, EnrollAddress: s.EnrollAddress,
		FeatureLevel: state.FeatureLevel, Version: version,
	}
}

// initialise writes the fleet's first entry; repeating it changes nothing.
func initialise(ctx context.Context, node *consensus.Node, store *state.Store, set settings, authority *ca.Authority, version string) error {
	for {
		if _, leads := node.LeaderTerm(); leads {
			_, err := node.Propose(ctx, &redoubtv1.Command{Id: "init-" + set.ClusterID, Operations: []*redoubtv1.Operation{{Operation: &redoubtv1.Operation_InitCluster{InitCluster: &redoubtv1.InitCluster{
				ClusterId: set.ClusterID, TrustDomain: set.TrustDomain, Server: set.server(version),
				Authority: &redoubtv1.Authority{Server: set.ID, Certificate: authority.Certificate().Raw},
				Admin:     &redoubtv1.RoleBinding{User: AdminUser, Namespace: fleet.AllNamespaces, Role: fleet.RoleAdmin},
			}}}}})
			if err == nil {
				return nil
			}
		}
		if store.Snapshot().Cluster().ID == set.ClusterID {
			return nil
		}
		select {
		case <-node.LeaderChanged():
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil
		}
	}
}

// trust keeps the bundle on disk and in use equal to the replicated one, and
// lets the own authority sign once it is in it.
func trust(ctx context.Context, store *state.Store, td spiffeid.TrustDomain, source *identity.SelfSource, authority *ca.Authority, log *slog.Logger) error {
	for {
		ws := state.NewWatchSet()
		bundle := x509bundle.New(td)
		for _, a := range store.Snapshot().Authorities(ws) {
			cert, err := parseAuthority(a.Certificate)
			if err != nil {
				log.Error("an authority in the state cannot be read", "authority", a.Server, "err", err)
				continue
			}
			bundle.AddX509Authority(cert)
		}
		if !bundle.Empty() {
			if err := source.SetBundle(bundle); err != nil {
				log.Error("the trust bundle is not stored", "err", err)
			}
			if err := authority.Activate(bundle); err != nil {
				log.Debug("the own authority does not sign yet", "err", err)
			}
		}
		if ws.WatchCtx(ctx) != nil {
			return nil
		}
	}
}

// ready calls f once a leader is known and the fleet is initialised.
func ready(ctx context.Context, node *consensus.Node, store *state.Store, f func()) error {
	for {
		if id, _ := node.Leader(); id != "" && store.Snapshot().Cluster().ID != "" {
			f()
			return nil
		}
		select {
		case <-node.LeaderChanged():
		case <-store.Changed():
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil
		}
	}
}
