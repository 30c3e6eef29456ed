// Package dev is a whole fleet of one machine in one process: a control server,
// the embedded authority, and an agent with a private containerd, for trying
// things.
//
// Run leaves an administrator's context where the CLI looks for it, and takes
// everything away when it ends: containers, network, directory and context.
// What a killed one left is taken away by the next.
package dev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"redoubt.dev/redoubt/agent"
	"redoubt.dev/redoubt/control"
	"redoubt.dev/redoubt/control/leader"
	"redoubt.dev/redoubt/deploy/node"
	"redoubt.dev/redoubt/identity"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
	"redoubt.dev/redoubt/proto/tracing"
)

// Where a dev fleet lives unless told otherwise.
const (
	DefaultDir     = "/var/lib/redoubt/dev"
	DefaultContext = "/run/redoubt/dev/context"
)

const (
	serverID    = "dev"
	nodeID      = "dev"
	siteID      = "local"
	trustDomain = "dev.redoubt"
)

// Config of a dev fleet.
type Config struct {
	Dir     string // "": DefaultDir
	Context string // "": DefaultContext
	// Keep leaves the fleet's data and its containers for the next Run.
	Keep     bool
	Runtimes string // see node.Config
	Version  string
	// Traces, if set, makes the spans of the server and the node.
	Traces tracing.Provider
	Log    *slog.Logger
	// Ready is called once the node has proven its runtimes.
	Ready func(*redoubtv1.Node)
}

// Run runs the fleet until ctx ends.
func Run(ctx context.Context, cfg Config) (err error) {
	if cfg.Dir == "" {
		cfg.Dir = DefaultDir
	}
	if cfg.Context == "" {
		cfg.Context = DefaultContext
	}
	if os.Geteuid() != 0 {
		return errors.New("dev runs containers and needs root: start it with sudo")
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return err
	}
	lock, err := lockDir(cfg.Dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	nodeDir := filepath.Join(cfg.Dir, "node")
	if err := agent.NodeFree(nodeID, nodeDir); err != nil {
		if errors.Is(err, agent.ErrNodeHeld) {
			err = fmt.Errorf("a dev fleet is running already on this machine: stop it first: %w", err)
		}
		return errors.Join(err, removeEmpty(cfg.Dir))
	}
	d := &fleet{Config: cfg, node: node.Config{
		DataDir: nodeDir, RuntimesDir: filepath.Join(cfg.Dir, "runtimes"), Runtimes: cfg.Runtimes,
		Node: nodeID, Site: siteID, Version: cfg.Version, Traces: cfg.Traces, Log: cfg.Log.With("part", "agent"),
	}}
	if !cfg.Keep {
		if err := d.remove(); err != nil {
			return fmt.Errorf("take away what an earlier dev left: %w", err)
		}
		defer func() { err = errors.Join(err, d.remove(), os.Remove(cfg.Dir)) }()
	}
	defer func() {
		if e := os.Remove(cfg.Context); e != nil && !errors.Is(e, os.ErrNotExist) {
			err = errors.Join(err, e)
		}
		_ = os.Remove(filepath.Dir(cfg.Context)) // only if empty
	}()
	return d.run(ctx)
}

type fleet struct {
	Config
	node node.Config
}

// remove takes everything away but the directory and its lock.
func (f *fleet) remove() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := node.Remove(ctx, f.node); err != nil {
		return err
	}
	entries, err := os.ReadDir(f.Dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(f.Dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func (f *fleet) run(ctx context.Context) error {
	serverDir := filepath.Join(f.Dir, "server")
	addresses, err := pickAddresses()
	if err != nil {
		return err
	}
	if err := identity.MakePrivateDir(filepath.Dir(f.Context)); err != nil {
		return err
	}
	if err := control.Init(control.InitConfig{
		Dir: serverDir, ID: serverID, TrustDomain: trustDomain, Addresses: addresses, AdminContext: f.Context, Log: f.Log,
	}); err != nil {
		return err
	}
	// The server ends after the node, which says goodbye to it.
	serverCtx, stopServer := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServer()
	timing := leader.DefaultTiming()
	timing.Heartbeat, timing.SilentAfter = time.Second, 5*time.Second
	ready := make(chan struct{})
	serverDone := make(chan error, 1)
	go func() {
		serverDone <- control.Run(serverCtx, control.Config{
			Dir: serverDir, Version: f.Version, Timing: timing, Traces: f.Traces, Log: f.Log.With("part", "server"), Ready: func() { close(ready) },
		})
	}()
	select {
	case <-ready:
	case err := <-serverDone:
		return err
	case <-ctx.Done():
		stopServer()
		return <-serverDone
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		select {
		case err := <-serverDone:
			serverDone <- err
			return errors.Join(errors.New("the server ended"), err)
		case <-gctx.Done():
			return nil
		}
	})
	g.Go(func() error { return f.runNode(gctx) })
	err = g.Wait()
	stopServer()
	return errors.Join(err, <-serverDone)
}

// runNode enrols the node with a token of its own fleet, runs it, and tells
// when it has proven its runtimes.
func (f *fleet) runNode(ctx context.Context) error {
	file, err := identity.LoadFile(f.Context)
	if err != nil {
		return err
	}
	conn, err := identity.NewConn("passthrough:///"+file.Addresses[0], file.Source(), identity.AuthorizeServers(file.SVID.ID.TrustDomain()))
	if err != nil {
		return err
	}
	defer conn.Close()
	client := redoubtv1.NewFleetServiceClient(conn)
	token, err := client.CreateJoinToken(ctx, &redoubtv1.CreateJoinTokenRequest{Node: nodeID, Site: siteID})
	if err != nil {
		return ended(ctx, fmt.Errorf("make a join token: %w", err))
	}
	cfg := f.node
	cfg.Token = token.GetToken()
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return node.Run(gctx, cfg) })
	g.Go(func() error { return ended(gctx, f.awaitProof(gctx, client)) })
	return g.Wait()
}

func (f *fleet) awaitProof(ctx context.Context, client redoubtv1.FleetServiceClient) error {
	watch, err := client.Watch(ctx, &redoubtv1.WatchRequest{})
	if err != nil {
		return err
	}
	for {
		if _, err := watch.Recv(); err != nil {
			return err
		}
		r, err := client.GetNode(ctx, &redoubtv1.GetNodeRequest{Id: nodeID})
		if err != nil {
			continue // not enrolled yet
		}
		if n := r.GetNode(); n.GetState() == redoubtv1.NodeState_NODE_STATE_READY {
			if f.Ready != nil {
				f.Ready(n)
			}
			return nil
		}
	}
}

func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// pickAddresses takes the default ports on loopback, or free ones if a server
// of a real fleet has them.
func pickAddresses() (control.Addresses, error) {
	want := control.AddressesAt("127.0.0.1")
	picked := []*string{&want.API, &want.Raft, &want.Enroll}
	for _, address := range picked {
		l, err := net.Listen("tcp", *address)
		if err != nil {
			if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
				return want, err
			}
			*address = l.Addr().String()
		}
		l.Close()
	}
	return want, nil
}

// lockDir makes sure that one process has the directory. The lock lies beside
// it, so that the directory can be emptied under it.
func lockDir(dir string) (io.Closer, error) {
	f, err := os.OpenFile(strings.TrimSuffix(dir, "/")+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("a dev fleet is running already in %s: stop it, or use another --data-dir", dir)
	}
	return lockFile{f}, nil
}

// removeEmpty takes dir away if nothing is in it.
func removeEmpty(dir string) error {
	if err := os.Remove(dir); err != nil && !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	return nil
}

// lockFile is removed with the lock held, so that nothing is left.
type lockFile struct{ *os.File }

func (l lockFile) Close() error { return errors.Join(os.Remove(l.Name()), l.File.Close()) }
