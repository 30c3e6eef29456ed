package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// Conn is a connection to one server.
type Conn interface {
	grpc.ClientConnInterface
	Close() error
}

// Dialer makes a connection to the API address of a server, authenticated both
// ways. With serverID it must be that server, else any. It may dial lazily.
type Dialer func(address, serverID string) (Conn, error)

// Node is what the session speaks for.
type Node interface {
	// Held is what the node's assignments are of; version 0 is nothing.
	Held() (clusterID string, version uint64)
	// Servers are the API addresses to try, as known now.
	Servers() []string
	// Welcome takes note of the cluster. An error ends the session.
	Welcome(clusterID string) error
	// Fleet makes an update of the fleet durable.
	Fleet(*redoubtv1.FleetUpdate) error
	// Assign makes assignments durable. ErrGap, wrapped, asks for all anew.
	Assign(*redoubtv1.Assignments) error
	// Statuses of all instances, as of now.
	Statuses() []*redoubtv1.InstanceStatus
	// Report as of now with ages as of now, nil if there is none yet.
	Report() *redoubtv1.Report
	// Load is the used share of memory, thousandths.
	Load() uint32
	// DiskFull: what is made durable next may not fit.
	DiskFull() bool
	// Warnings: what keeps instances here from what they are promised.
	Warnings() []string
	// Renewed: the leader of term acknowledged a heartbeat that was sent when
	// Clock said sent.
	Renewed(sent time.Duration, term uint64)
	// Clock is the boot clock.
	Clock() time.Duration
}

// ErrGap says that assignments do not follow what is held.
var ErrGap = errors.New("assignments do not follow what is held")

// DefaultExecs is how many execs a node bears at once: 200 MB of waiting
// processes, which is what a small node can spare.
const DefaultExecs = 32

// maxRefusals bounds the streams that are being told that there is no room.
const maxRefusals = 256

// Config of a session. Zero fields take the default in brackets.
type Config struct {
	Node, Site, BootID, Version string
	FeatureLevel                uint32
	GossipAddress               string

	Contact  time.Duration // for a server to answer Hello [10s]
	Interval time.Duration // of heartbeats until Welcome says [5s]
	Retry    time.Duration // of a batch that is not acknowledged [10s]
	MaxDelay time.Duration // between rounds over the servers, at most [15s]
	Streams  int           // of logs and forwards at once [2000]; a server takes 2048 calls of a node
	// Execs at once [32]. Each costs a waiting process of about 6 MB beside
	// what it runs.
	Execs int
}

// Deps of a session. MoveAt and the channels may be nil.
type Deps struct {
	Dial Dialer
	Node Node
	Bulk Bulk
	// MoveAt says, from the context of a stream, when its connection should be
	// left because a certificate nears its end; zero: never.
	MoveAt func(context.Context) time.Time
	// StatusChanged, ReportChanged: a hint that Statuses, Report may answer
	// differently.
	StatusChanged, ReportChanged <-chan struct{}
	// Acknowledged is called with what the leader has taken in of what was first
	// told at sent. May be nil.
	Acknowledged func(told []*redoubtv1.InstanceStatus, sent time.Time)
	// Hints of gossip; they are passed on while there is a session.
	Hints <-chan *redoubtv1.Hint
	// TryNow ends the wait between rounds: something has changed that may let
	// the next one succeed, as a new identity does.
	TryNow <-chan struct{}
	Log    *slog.Logger
}

// Session is the agent's side. Make one with New; Run it once.
type Session struct {
	cfg  Config
	deps Deps
	// resync: the next Hello asks for all assignments.
	resync bool
	good   string // the server that last answered well
	// streams and execs hold a value for each that is served, opens for each that
	// a server has asked for, those too that wait to be told of a limit.
	streams, execs, opens chan struct{}
	pool                  pool
	bulk                  sync.WaitGroup

	// acked is when, by the boot clock, the leader last acknowledged, and
	// horizon how long that counts as being connected; 0: never.
	acked   atomic.Int64
	horizon atomic.Int64
}

// New makes a session; it dials nothing.
func New(cfg Config, deps Deps) *Session {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&cfg.Contact, 10*time.Second)
	def(&cfg.Interval, 5*time.Second)
	def(&cfg.Retry, 10*time.Second)
	def(&cfg.MaxDelay, 15*time.Second)
	if cfg.Streams == 0 {
		cfg.Streams = 2000
	}
	if cfg.Execs == 0 {
		cfg.Execs = DefaultExecs
	}
	return &Session{cfg: cfg, deps: deps, pool: pool{dial: deps.Dial}, streams: make(chan struct{}, cfg.Streams), execs: make(chan struct{}, cfg.Execs),
		opens: make(chan struct{}, cfg.Streams+cfg.Execs+maxRefusals)}
}

// Connected reports whether the leader acknowledged this node lately.
func (s *Session) Connected() bool {
	at := s.acked.Load()
	return at != 0 && int64(s.deps.Node.Clock())-at < s.horizon.Load()
}

// Why a session ended, where that tells what to do next.
var (
	errMove   = errors.New("the connection's certificates near their end")
	errSilent = errors.New("the server fell silent")
	// errStoodStill: this process was stopped, or the host suspended. What was
	// given up meanwhile is learned by a new session before anything is said
	// that would renew a lease.
	errStoodStill = errors.New("this agent stood still for longer than it may be silent")
)

type goodbyeError struct{ reason string }

func (e *goodbyeError) Error() string { return "the server said goodbye: " + e.reason }

// Run keeps a session until ctx ends. It returns nil then.
func (s *Session) Run(ctx context.Context) error {
	defer s.pool.close()
	defer s.bulk.Wait()
	bulk, cancel := context.WithCancel(ctx)
	defer cancel()

	delay := time.Duration(0)
	told := ""
	for ctx.Err() == nil {
		servers := s.order()
		if len(servers) == 0 {
			s.deps.Log.Error("no server is known; give one with --server, or enrol anew")
		}
		again := false // a server was good: start over without waiting
		for _, server := range servers {
			end := s.contact(ctx, bulk, server)
			if ctx.Err() != nil {
				return nil
			}
			if end.acked {
				s.good, delay, told = server, 0, ""
			}
			var bye *goodbyeError
			switch {
			case errors.Is(end.err, errMove):
				s.deps.Log.Debug("session moves to a new connection", "server", server)
				again = true
			case errors.Is(end.err, ErrGap):
				s.deps.Log.Info("assignments do not chain; asking for all of them", "server", server)
				s.resync = true
				again = end.acked
			case errors.As(end.err, &bye):
				s.deps.Log.Info("session ended", "server", server, "err", end.err)
				if s.good == server {
					s.good = ""
				}
				again = end.acked && len(servers) > 1
				if again {
					s.deps.Log.Debug("dialling another server")
				}
			default:
				// The same failure of the same server is told once.
				if line := server + end.err.Error(); line != told {
					told = line
					s.deps.Log.Warn("no session", "server", server, "err", end.err)
				}
				if end.acked && s.good == server {
					// It was good until now: another may be good still.
					s.good = ""
				}
			}
			if again {
				break
			}
		}
		if again {
			// Never in a tight loop, whatever the servers do.
			delay = max(delay, 20*time.Millisecond)
		} else {
			delay = min(max(2*delay, time.Second), s.cfg.MaxDelay)
		}
		t := time.NewTimer(delay/2 + rand.N(delay/2))
		select {
		case <-t.C:
		case <-s.deps.TryNow:
			delay = 0
		case <-ctx.Done():
		}
		t.Stop()
		if again {
			delay = 0
		}
	}
	return nil
}

// order shuffles the servers, the good one first.
func (s *Session) order() []string {
	servers := slices.Clone(s.deps.Node.Servers())
	rand.Shuffle(len(servers), func(i, j int) { servers[i], servers[j] = servers[j], servers[i] })
	if i := slices.Index(servers, s.good); i > 0 {
		servers[0], servers[i] = servers[i], servers[0]
	}
	return servers
}

// ending is how one session ended.
type ending struct {
	err   error
	acked bool // the leader acknowledged something in it
}

// contact holds one session with one server.
func (s *Session) contact(ctx, bulk context.Context, server string) ending {
	conn, err := s.deps.Dial(server, "")
	if err != nil {
		return ending{err: err}
	}
	defer conn.Close()
	// The stream outlives ctx by the moment that a last status takes.
	streamCtx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	// Before there is a stream, the end of ctx ends the attempt.
	stop := context.AfterFunc(ctx, func() { cancel(ctx.Err()) })
	defer stop()
	// Afterwards a server that takes nothing must not hold up the end.
	defer context.AfterFunc(ctx, func() { time.AfterFunc(2*time.Second, func() { cancel(ctx.Err()) }) })()
	watch := time.AfterFunc(s.cfg.Contact, func() { cancel(errSilent) })
	defer watch.Stop()

	stream, err := redoubtv1.NewAgentServiceClient(conn).Session(streamCtx)
	if err != nil {
		return ending{err: cause(streamCtx, err)}
	}
	l := &live{s: s, stream: stream, server: server, watch: watch, bulk: bulk}
	l.silence.Store(int64(3 * s.cfg.Interval))
	if err := l.hello(); err != nil {
		return ending{err: cause(streamCtx, err)}
	}
	in := make(chan *redoubtv1.SessionResponse)
	recvErr := make(chan error, 1)
	var receiver sync.WaitGroup
	defer receiver.Wait()
	defer cancel(nil)
	receiver.Go(func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				recvErr <- err
				return
			}
			watch.Reset(time.Duration(l.silence.Load()))
			select {
			case in <- m:
			case <-streamCtx.Done():
				recvErr <- streamCtx.Err()
				return
			}
		}
	})
	err = l.run(ctx, stop, in, recvErr)
	return ending{err: cause(streamCtx, err), acked: l.acked}
}

// cause prefers what we ended the stream for over what gRPC made of it.
func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil && !errors.Is(c, context.Canceled) {
		return c
	}
	if errors.Is(err, io.EOF) {
		return errors.New("the server closed the session")
	}
	return fmt.Errorf("session: %w", err)
}
