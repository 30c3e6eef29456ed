package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"redoubt.dev/redoubt/integration/net/topology"
)

// Config is one fleet.
type Config struct {
	// Clone is the working directory of every command; Binary and Dir are
	// below it and shown relative to it.
	Clone  string
	Binary string
	Dir    string
	Plan   topology.Plan
	// SVIDTTL is how long identities of servers and nodes last.
	SVIDTTL time.Duration
	// Heartbeat is how often agents speak; after three they count as silent.
	Heartbeat time.Duration
	// Supervisor is a command that every daemon's is given to as arguments, and
	// that starts it again when it ends; none: daemons are started bare.
	Supervisor []string
	// AgentArgs are further flags of every agent, ServerArgs of every server.
	AgentArgs, ServerArgs []string
	// Allow are the only runtimes that a node's agent offers; without an entry
	// it offers all.
	Allow map[string][]string
}

// TrustDomain of every fleet made here.
const TrustDomain = "demo.redoubt"

// Fleet is up, half up or down.
type Fleet struct {
	cfg     Config
	world   *topology.World
	lock    *os.File
	mu      sync.Mutex // guards state and running
	state   state
	running map[string]*Daemon
}

// state is what state.json holds.
type state struct {
	Clone   string        `json:"clone"`
	Plan    topology.Plan `json:"plan"`
	Daemons []record      `json:"daemons"`
}

// record is a daemon that was about to be started; Pid is 0 until it was.
type record struct {
	Name      string   `json:"name"`
	Namespace string   `json:"namespace"`
	Args      []string `json:"args"`
	Pid       int      `json:"pid,omitempty"`
	Start     string   `json:"start,omitempty"`
}

// ErrInUse says that another process works on this fleet now.
var ErrInUse = errors.New("another process works on this fleet")

// New takes the fleet's directory for this process. It makes nothing else.
func New(cfg Config) (*Fleet, error) {
	for _, p := range []*string{&cfg.Clone, &cfg.Binary, &cfg.Dir} {
		abs, err := filepath.Abs(*p)
		if err != nil {
			return nil, err
		}
		*p = abs
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("fleet directory: %w", err)
	}
	cfg.Plan.Owner = cfg.Dir
	f := &Fleet{cfg: cfg, world: topology.Open(cfg.Plan), running: map[string]*Daemon{}}
	lock, err := os.OpenFile(filepath.Join(cfg.Dir, "lock"), os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("fleet directory: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s: %w", cfg.Dir, ErrInUse)
		}
		return nil, fmt.Errorf("lock %s: %w", cfg.Dir, err)
	}
	f.lock = lock
	data, err := os.ReadFile(f.statePath())
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		lock.Close()
		return nil, err
	default:
		if err := json.Unmarshal(data, &f.state); err != nil {
			lock.Close()
			return nil, fmt.Errorf("read %s: %w; remove it when nothing of that fleet runs", f.statePath(), err)
		}
	}
	return f, nil
}

// Close lets go of the directory and leaves the fleet as it is.
func (f *Fleet) Close() error { return f.lock.Close() }

// Left tells whether an earlier process left something that state.json names.
func (f *Fleet) Left() bool { return f.state.Plan.Prefix != "" }

// Plan is the fleet's network.
func (f *Fleet) Plan() topology.Plan { return f.cfg.Plan }

// World can cut and heal sites.
func (f *Fleet) World() *topology.World { return f.world }

// Path is a path in the fleet's directory, as commands show it.
func (f *Fleet) Path(name string) string {
	rel, err := filepath.Rel(f.cfg.Clone, filepath.Join(f.cfg.Dir, name))
	if err != nil {
		return filepath.Join(f.cfg.Dir, name)
	}
	return rel
}

// File is the same path, absolute.
func (f *Fleet) File(name string) string { return filepath.Join(f.cfg.Dir, name) }

// Program is bin/redoubt as commands show it.
func (f *Fleet) Program() string {
	rel, err := filepath.Rel(f.cfg.Clone, f.cfg.Binary)
	if err != nil {
		return f.cfg.Binary
	}
	return rel
}

// Log is the log file of a daemon.
func (f *Fleet) Log(name string) string { return f.File("logs/" + name + ".log") }

// Build makes the network. It refuses a host on which an agent of one of the
// nodes' names is at work: control groups are told apart by the node's name.
func (f *Fleet) Build(ctx context.Context) error {
	if groups := f.marks(f.cfg.Plan).groups; len(groups) > 0 && len(topology.Present(f.cfg.Plan)) == 0 {
		return fmt.Errorf("%s is there: an agent of node %s runs on this host already; stop that fleet first", groups[0], filepath.Base(groups[0]))
	}
	f.mu.Lock()
	f.state = state{Clone: f.cfg.Clone, Plan: f.cfg.Plan}
	err := f.save()
	f.mu.Unlock()
	if err != nil {
		return err
	}
	// The logs of an earlier run that failed were kept until now.
	if err := errors.Join(os.RemoveAll(f.File("logs")), os.MkdirAll(f.File("logs"), 0o700)); err != nil {
		return err
	}
	f.world, err = topology.Build(ctx, f.cfg.Plan)
	return err
}

func (f *Fleet) statePath() string { return f.File("state.json") }

// save writes state.json whole or not at all. f.mu is held.
func (f *Fleet) save() error {
	data, err := json.MarshalIndent(f.state, "", "  ")
	if err != nil {
		return err
	}
	tmp := f.statePath() + ".new"
	if err := os.WriteFile(tmp, append(data, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, f.statePath())
}

// ServerInit begins the fleet; ServerRun and AgentRun are daemons.
func (f *Fleet) ServerInit(id string) []string {
	return []string{"server", "init", "--data-dir", f.Path(id), "--id", id, "--trust-domain", TrustDomain,
		"--address", f.cfg.Plan.Address(id), "--admin-context", f.Path("admin.context")}
}

// JoinToken makes a token for a server, or for a node of a site, and puts it
// into a file.
func (f *Fleet) JoinToken(name string) []string {
	args := []string{"node", "join-token"}
	if site := f.cfg.Plan.SiteOf(name); site != "" {
		args = append(args, "--node", name, "--site", site)
	} else {
		args = append(args, "--role", "server")
	}
	return append(args, "--out", f.Path(name+".token"))
}

// ServerJoin admits a further server; it runs in that server's namespace.
func (f *Fleet) ServerJoin(id string) []string {
	first := f.cfg.Plan.Servers[0]
	return []string{"server", "join", "--data-dir", f.Path(id), "--id", id, "--address", f.cfg.Plan.Address(id),
		"--join", f.cfg.Plan.Address(first) + ":7452", "--token-file", f.Path(id + ".token")}
}

// ServerRun serves.
func (f *Fleet) ServerRun(id string) []string {
	args := []string{"server", "--data-dir", f.Path(id), "--svid-ttl", f.cfg.SVIDTTL.String(), "--heartbeat", f.cfg.Heartbeat.String()}
	return append(args, f.cfg.ServerArgs...)
}

// AgentRun enrols once and serves a node.
func (f *Fleet) AgentRun(node string) []string {
	var join []string
	for _, s := range f.cfg.Plan.Servers {
		join = append(join, f.cfg.Plan.Address(s)+":7452")
	}
	args := []string{"agent", "--data-dir", f.Path(node), "--runtimes-dir", f.Path("runtimes"), "--node", node, "--site", f.cfg.Plan.SiteOf(node),
		"--address", f.cfg.Plan.Address(node), "--join", strings.Join(join, ","), "--token-file", f.Path(node + ".token")}
	for _, r := range f.cfg.Allow[node] {
		args = append(args, "--allow-runtime", r)
	}
	return append(args, f.cfg.AgentArgs...)
}

// DaemonArgs is what runs as a daemon of this name: a server or an agent.
func (f *Fleet) DaemonArgs(name string) []string {
	if f.cfg.Plan.SiteOf(name) == "" {
		return f.ServerRun(name)
	}
	return f.AgentRun(name)
}
