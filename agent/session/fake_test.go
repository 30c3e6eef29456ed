package session

import (
	"context"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/durationpb"

	"redoubt.dev/redoubt/agent/driver"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// server is a control server with function fields; nil ones do nothing.
type server struct {
	redoubtv1.UnimplementedAgentServiceServer
	session func(s redoubtv1.AgentService_SessionServer, hello *redoubtv1.Hello) error
	attach  func(s redoubtv1.AgentService_AttachServer) error
}

func (s *server) Session(stream redoubtv1.AgentService_SessionServer) error {
	m, err := stream.Recv()
	if err != nil {
		return err
	}
	return s.session(stream, m.GetHello())
}

func (s *server) Attach(stream redoubtv1.AgentService_AttachServer) error { return s.attach(stream) }

// world guards what servers and nodes record and tests look at. A test holds it
// from start to end except while it lets time pass; everyone else takes it to
// record. A bubble's sleeps order the two, but the race detector cannot know.
var world sync.Mutex

// record is how a server writes down what it saw.
func record(f func()) {
	world.Lock()
	defer world.Unlock()
	f()
}

// fleet of servers by address.
type fleet struct {
	t         *testing.T
	listeners map[string]*bufconn.Listener
	dialled   []string
}

func (f *fleet) add(address string, s *server) (stop func()) {
	l := bufconn.Listen(1 << 20)
	g := grpc.NewServer()
	redoubtv1.RegisterAgentServiceServer(g, s)
	go func() { _ = g.Serve(l) }()
	if f.listeners == nil {
		f.listeners = map[string]*bufconn.Listener{}
	}
	f.listeners[address] = l
	return g.Stop
}

func (f *fleet) dial(address, _ string) (Conn, error) {
	world.Lock()
	f.dialled = append(f.dialled, address)
	l := f.listeners[address]
	world.Unlock()
	return grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			if l == nil {
				return nil, io.ErrClosedPipe
			}
			return l.DialContext(ctx)
		}))
}

// node is what the session speaks for, in memory.
type node struct {
	cluster  string
	version  uint64
	servers  []string
	stored   []*redoubtv1.Assignments
	statuses []*redoubtv1.InstanceStatus
	report   *redoubtv1.Report
	renewed  []time.Duration
	fleets   int
	assign   func(*redoubtv1.Assignments) error
	// suspended is what the boot clock counts and timers do not.
	suspended atomic.Int64 /* nanoseconds */
}

var began = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

func (n *node) Held() (string, uint64) {
	world.Lock()
	defer world.Unlock()
	return n.cluster, n.version
}
func (n *node) Servers() []string {
	world.Lock()
	defer world.Unlock()
	return n.servers
}
func (n *node) Welcome(c string) error             { record(func() { n.cluster = c }); return nil }
func (n *node) Fleet(*redoubtv1.FleetUpdate) error { record(func() { n.fleets++ }); return nil }
func (n *node) Assign(a *redoubtv1.Assignments) error {
	world.Lock()
	defer world.Unlock()
	if n.assign != nil {
		if err := n.assign(a); err != nil {
			return err
		}
	}
	n.stored, n.version = append(n.stored, a), a.GetVersion()
	return nil
}
func (n *node) Statuses() []*redoubtv1.InstanceStatus {
	world.Lock()
	defer world.Unlock()
	return append([]*redoubtv1.InstanceStatus{}, n.statuses...)
}
func (n *node) Report() *redoubtv1.Report {
	world.Lock()
	defer world.Unlock()
	return n.report
}
func (n *node) Load() uint32         { return 7 }
func (n *node) DiskFull() bool       { return false }
func (n *node) Warnings() []string   { return nil }
func (n *node) Clock() time.Duration { return time.Since(began) + time.Duration(n.suspended.Load()) }
func (n *node) Renewed(sent time.Duration, _ uint64) {
	world.Lock()
	defer world.Unlock()
	n.renewed = append(n.renewed, sent)
}

// set is the test's own, which holds world already.
func (n *node) set(f func()) { f() }

func put(n *node, uid string, seq uint64) {
	n.set(func() {
		for _, s := range n.statuses {
			if s.Uid == uid {
				*s = redoubtv1.InstanceStatus{Uid: uid, Sequence: seq}
				return
			}
		}
		n.statuses = append(n.statuses, &redoubtv1.InstanceStatus{Uid: uid, Sequence: seq})
	})
}

// welcome is how most servers begin.
func welcome(s redoubtv1.AgentService_SessionServer) error {
	return s.Send(&redoubtv1.SessionResponse{Message: &redoubtv1.SessionResponse_Welcome{Welcome: &redoubtv1.Welcome{
		ClusterId: "c1", Server: "s", HeartbeatInterval: durationpb.New(5 * time.Second),
		Fleet: &redoubtv1.FleetUpdate{Servers: []string{"s1"}},
	}}})
}

func complete(s redoubtv1.AgentService_SessionServer, version uint64) error {
	return s.Send(&redoubtv1.SessionResponse{Message: &redoubtv1.SessionResponse_Assignments{Assignments: &redoubtv1.Assignments{
		Kind: redoubtv1.Assignments_KIND_COMPLETE, Version: version,
	}}})
}

func beatAck(s redoubtv1.AgentService_SessionServer, seq, term uint64) error {
	return s.Send(&redoubtv1.SessionResponse{Message: &redoubtv1.SessionResponse_HeartbeatAck{HeartbeatAck: &redoubtv1.HeartbeatAck{Sequence: seq, Term: term}}})
}

func statusAck(s redoubtv1.AgentService_SessionServer, seq uint64) error {
	return s.Send(&redoubtv1.SessionResponse{Message: &redoubtv1.SessionResponse_StatusAck{StatusAck: &redoubtv1.StatusAck{Sequence: seq}}})
}

// answering serves a session: acknowledges what answers says, and passes every
// message to seen.
func answering(version uint64, beats, status bool, seen func(*redoubtv1.SessionRequest)) func(redoubtv1.AgentService_SessionServer, *redoubtv1.Hello) error {
	return func(s redoubtv1.AgentService_SessionServer, _ *redoubtv1.Hello) error {
		if err := welcome(s); err != nil {
			return err
		}
		if err := complete(s, version); err != nil {
			return err
		}
		for {
			m, err := s.Recv()
			if err != nil {
				return err
			}
			if seen != nil {
				record(func() { seen(m) })
			}
			if h := m.GetHeartbeat(); h != nil && beats {
				err = beatAck(s, h.GetSequence(), 1)
			}
			if b := m.GetStatus(); b != nil && status {
				err = statusAck(s, b.GetSequence())
			}
			if err != nil {
				return err
			}
		}
	}
}

type rig struct {
	*fleet
	n             *node
	s             *Session
	statusChanged chan struct{}
	reportChanged chan struct{}
	tryNow        chan struct{}
	hints         chan *redoubtv1.Hint
	log           *strings.Builder
}

// start runs a session until the test's end.
func start(t *testing.T, f *fleet, n *node, bulk Bulk, moveAt func(context.Context) time.Time) (*rig, func()) {
	r := &rig{fleet: f, n: n, statusChanged: make(chan struct{}, 1), reportChanged: make(chan struct{}, 1), hints: make(chan *redoubtv1.Hint, 100), tryNow: make(chan struct{}, 1), log: &strings.Builder{}}
	r.s = New(Config{Node: "n1", Site: "oslo", BootID: "b", Version: "test"}, Deps{
		Dial: f.dial, Node: n, Bulk: bulk, MoveAt: moveAt,
		StatusChanged: r.statusChanged, ReportChanged: r.reportChanged, Hints: r.hints, TryNow: r.tryNow,
		Log: slog.New(slog.NewTextHandler(r.log, nil)),
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := r.s.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	}()
	world.Lock()
	return r, func() {
		world.Unlock()
		cancel()
		<-done
		synctest.Wait()
	}
}

func pass(d time.Duration) {
	world.Unlock()
	time.Sleep(d)
	synctest.Wait()
	world.Lock()
}

// bulk runs things with function fields.
type bulk struct {
	exec    func(ctx context.Context, uid string, spec driver.ExecSpec, streams driver.Streams, started func(string)) (int, error)
	logs    func(ctx context.Context, uid string, opts LogOptions, hand func(LogChunk) error) error
	forward func(ctx context.Context, uid string, port uint16) (string, net.Conn, error)
}

func (b *bulk) Exec(ctx context.Context, uid string, spec driver.ExecSpec, streams driver.Streams, started func(string)) (int, error) {
	return b.exec(ctx, uid, spec, streams, started)
}

func (b *bulk) Logs(ctx context.Context, uid string, opts LogOptions, hand func(LogChunk) error) error {
	return b.logs(ctx, uid, opts, hand)
}

func (b *bulk) Egress(context.Context, string) (*redoubtv1.EgressCounts, error) {
	return &redoubtv1.EgressCounts{Rules: []*redoubtv1.EgressCount{{Rule: "anything else", Packets: 3, Refused: true}}}, nil
}

func (b *bulk) Forward(ctx context.Context, uid string, port uint16) (string, net.Conn, error) {
	return b.forward(ctx, uid, port)
}
