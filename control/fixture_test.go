package control

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"redoubt.dev/redoubt/control/consensus"
	"redoubt.dev/redoubt/control/leader"
	"redoubt.dev/redoubt/identity"
	"redoubt.dev/redoubt/identity/attest"
	"redoubt.dev/redoubt/identity/ca"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

const trustDomain = "test.redoubt"

var td = spiffeid.RequireTrustDomainFromString(trustDomain)

// cluster is a fleet's servers in one process, over real TCP and TLS.
type cluster struct {
	t       *testing.T
	dir     string
	timing  leader.Timing
	servers map[string]*running
	admin   identity.File
}

// raftTiming elects fast.
var raftTiming = consensus.Timing{Heartbeat: 300 * time.Millisecond, Election: 300 * time.Millisecond}

type running struct {
	id        string
	dir       string
	addresses Addresses
	metrics   *prometheus.Registry // of its present life
	log       *tail
	stop      context.CancelFunc
	done      chan error
}

func newCluster(t *testing.T, ids ...string) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: t.TempDir(), servers: map[string]*running{}, timing: leader.Timing{
		Heartbeat: 300 * time.Millisecond, SilentAfter: time.Second, FreshFor: time.Hour, LostMargin: time.Second,
	}}
	t.Cleanup(c.stopAll)
	first := c.newServer(ids[0])
	if err := Init(InitConfig{
		Dir: first.dir, ID: first.id, TrustDomain: trustDomain, Addresses: first.addresses,
		AdminContext: filepath.Join(c.dir, "admin.context"), Log: c.log(),
	}); err != nil {
		t.Fatal(err)
	}
	var err error
	if c.admin, err = identity.LoadFile(filepath.Join(c.dir, "admin.context")); err != nil {
		t.Fatal(err)
	}
	c.start(first)
	for _, id := range ids[1:] {
		c.join(id)
	}
	return c
}

func (c *cluster) log() *slog.Logger {
	if os.Getenv("REDOUBT_TEST_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.DiscardHandler)
}

func (c *cluster) logTo() io.Writer {
	if os.Getenv("REDOUBT_TEST_LOG") != "" {
		return os.Stderr
	}
	return io.Discard
}

// tail keeps all that a server logged.
type tail struct {
	mu   sync.Mutex
	data []byte
}

func (l *tail) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.data = append(l.data, p...)
	return len(p), nil
}

func (l *tail) bytes() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.data)
}

func (c *cluster) newServer(id string) *running {
	s := &running{id: id, dir: filepath.Join(c.dir, id), addresses: Addresses{API: freeAddress(c.t), Raft: freeAddress(c.t), Enroll: freeAddress(c.t)}}
	c.servers[id] = s
	return s
}

// lastPort counts up, so that no two servers of this process get one port.
var lastPort atomic.Int32

// freeAddress is on a loopback address of this process's own. Connections go out
// from 127.0.0.1, so that none takes the port while a server is down.
func freeAddress(t *testing.T) string {
	t.Helper()
	pid := os.Getpid()
	host := net.IPv4(127, 128|byte(pid>>16), byte(pid>>8), byte(pid))
	for {
		port := 10000 + lastPort.Add(1)
		if port > 60000 {
			t.Fatal("there is no free port")
		}
		if l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: host, Port: int(port)}); err == nil {
			defer l.Close()
			return l.Addr().String()
		}
	}
}

func (c *cluster) start(s *running) {
	c.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s.stop, s.done = cancel, make(chan error, 1)
	ready := make(chan struct{})
	s.metrics, s.log = prometheus.NewPedanticRegistry(), &tail{}
	go func() {
		s.done <- Run(ctx, Config{
			Registry: s.metrics, LogTail: s.log.bytes,
			Dir: s.dir, Version: "test", Timing: c.timing, Log: slog.New(slog.NewTextHandler(io.MultiWriter(s.log, c.logTo()), &slog.HandlerOptions{Level: slog.LevelDebug})), Ready: func() { close(ready) },
			Raft: raftTiming,
		})
	}()
	select {
	case <-ready:
	case err := <-s.done:
		c.t.Fatalf("server %s ended: %v", s.id, err)
	case <-time.After(20 * time.Second):
		c.t.Fatalf("server %s is not ready", s.id)
	}
}

func (c *cluster) join(id string) *running {
	c.t.Helper()
	token := c.token(&redoubtv1.CreateJoinTokenRequest{Role: "server"})
	s := c.newServer(id)
	if err := Join(c.ctx(), JoinConfig{Dir: s.dir, ID: id, Addresses: s.addresses, Token: token, Version: "test", Log: c.log()}); err != nil {
		c.t.Fatal(err)
	}
	c.start(s)
	c.eventually("server "+id+" votes", func() error {
		r, err := c.fleet().ListServers(c.ctx(), &redoubtv1.ListServersRequest{})
		if err != nil {
			return err
		}
		for _, srv := range r.GetServers() {
			if srv.GetId() == id && srv.GetVoter() {
				return nil
			}
		}
		return fmt.Errorf("servers: %v", r.GetServers())
	})
	return s
}

// kill stops a server as cleanly as its context's end does.
func (c *cluster) halt(id string) {
	c.t.Helper()
	s := c.servers[id]
	if s.stop == nil {
		return
	}
	s.stop()
	select {
	case err := <-s.done:
		if err != nil {
			c.t.Errorf("server %s: %v", id, err)
		}
	case <-time.After(20 * time.Second):
		c.t.Fatalf("server %s does not stop", id)
	}
	s.stop = nil
}

func (c *cluster) stopAll() {
	for id := range c.servers {
		c.halt(id)
	}
}

func (c *cluster) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	c.t.Cleanup(cancel)
	return ctx
}

// conn dials a server's API with an identity.
func (c *cluster) conn(server string, src identity.Source) *identity.Conn {
	c.t.Helper()
	conn, err := identity.NewConn("passthrough:///"+c.servers[server].addresses.API, src, identity.AuthorizeServers(td))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { conn.Close() })
	return conn
}

// fleet is the administrator's API at any server that runs.
func (c *cluster) fleet() redoubtv1.FleetServiceClient {
	for id, s := range c.servers {
		if s.stop != nil {
			return redoubtv1.NewFleetServiceClient(c.conn(id, c.source(c.admin.SVID.ID.String())))
		}
	}
	c.t.Fatal("no server runs")
	return nil
}

// source is the administrator's identity with the bundle of today.
func (c *cluster) source(string) identity.Source {
	return identity.NewMemorySource(c.admin.SVID, c.bundle())
}

// bundle is what the servers' directories trust.
func (c *cluster) bundle() *x509bundle.Bundle {
	b := x509bundle.New(td)
	for _, s := range c.servers {
		a, err := ca.Load(filepath.Join(s.dir, "ca"))
		if err == nil {
			b.AddX509Authority(a.Certificate())
		}
	}
	return b
}

func (c *cluster) token(req *redoubtv1.CreateJoinTokenRequest) string {
	c.t.Helper()
	r, err := c.fleet().CreateJoinToken(c.ctx(), req)
	if err != nil {
		c.t.Fatal(err)
	}
	return r.GetToken()
}

func (c *cluster) eventually(what string, f func() error) {
	c.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(30 * time.Millisecond) // polls a condition that has no event here
	}
}

// signed makes an identity signed by a server's authority, as the test wants it.
func (c *cluster) signed(server string, id identity.ID, ttl time.Duration) identity.Source {
	c.t.Helper()
	a, err := ca.Load(filepath.Join(c.servers[server].dir, "ca"))
	if err != nil {
		c.t.Fatal(err)
	}
	if err := a.Activate(c.bundle()); err != nil {
		c.t.Fatal(err)
	}
	return identity.NewMemorySource(sign(c.t, a, id, ttl), c.bundle())
}

func sign(t *testing.T, a *ca.Authority, id identity.ID, ttl time.Duration) *svid {
	t.Helper()
	key, csr := newCSR(t)
	chain, err := a.SignSVID(csr, id, ttl)
	if err != nil {
		t.Fatal(err)
	}
	s, err := identity.NewSVID(key, chain)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newCSR(t *testing.T) (crypto.Signer, []byte) {
	t.Helper()
	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := attest.NewCSR(key)
	if err != nil {
		t.Fatal(err)
	}
	return key, csr
}

// enroll sends an EnrollNode to a server's enrolment port.
func (c *cluster) enroll(server string, req *redoubtv1.EnrollNodeRequest) (*redoubtv1.EnrollNodeResponse, error) {
	c.t.Helper()
	token, err := attest.ParseToken(req.GetToken())
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("passthrough:///"+c.servers[server].addresses.Enroll, grpc.WithTransportCredentials(attest.PinnedCredentials(token.TrustDomain, token.Pins)))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return redoubtv1.NewEnrollmentServiceClient(conn).EnrollNode(c.ctx(), req)
}

// testNode is an enrolled node without an agent.
type testNode struct {
	c    *cluster
	id   string
	site string
	src  identity.Source
}

func (c *cluster) node(server, id, site string) *testNode {
	c.t.Helper()
	key, csr := newCSR(c.t)
	r, err := c.enroll(server, &redoubtv1.EnrollNodeRequest{Token: c.token(&redoubtv1.CreateJoinTokenRequest{}), Csr: csr, Node: id, Site: site})
	if err != nil {
		c.t.Fatal(err)
	}
	return &testNode{c, id, site, identity.NewMemorySource(svidOf(c.t, key, r.GetCertificates()), c.bundle())}
}

func svidOf(t *testing.T, key crypto.Signer, der [][]byte) *svid {
	t.Helper()
	var chain []*x509.Certificate
	for _, d := range der {
		cert, err := x509.ParseCertificate(d)
		if err != nil {
			t.Fatal(err)
		}
		chain = append(chain, cert)
	}
	s, err := identity.NewSVID(key, chain)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// agentSession is a session driven by hand.
type agentSession struct {
	redoubtv1.AgentService_SessionClient
	n      *testNode
	cancel context.CancelFunc
}

func (n *testNode) session(server string, hello *redoubtv1.Hello) (*agentSession, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	n.c.t.Cleanup(cancel)
	st, err := redoubtv1.NewAgentServiceClient(n.c.conn(server, n.src)).Session(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	if hello == nil {
		hello = &redoubtv1.Hello{Node: n.id, Site: n.site, BootId: "boot", AgentVersion: "test", GossipAddress: "127.0.0.1:1"}
	}
	if err := st.Send(&redoubtv1.SessionRequest{Message: &redoubtv1.SessionRequest_Hello{Hello: hello}}); err != nil {
		cancel()
		return nil, err
	}
	return &agentSession{st, n, cancel}, nil
}

// until reads messages until one satisfies f.
func (s *agentSession) until(what string, f func(*redoubtv1.SessionResponse) bool) *redoubtv1.SessionResponse {
	s.n.c.t.Helper()
	for {
		m, err := s.Recv()
		if err != nil {
			s.n.c.t.Fatalf("%s: %s: %v", s.n.id, what, err)
		}
		if f(m) {
			return m
		}
	}
}

func (s *agentSession) report(r *redoubtv1.Report) error {
	return s.Send(&redoubtv1.SessionRequest{Message: &redoubtv1.SessionRequest_Report{Report: &redoubtv1.ReportUpdate{Report: r}}})
}

func (s *agentSession) status(seq uint64, st ...*redoubtv1.InstanceStatus) error {
	return s.Send(&redoubtv1.SessionRequest{Message: &redoubtv1.SessionRequest_Status{Status: &redoubtv1.StatusBatch{Sequence: seq, Statuses: st}}})
}

// beat keeps the node heard until its session ends.
func (s *agentSession) beat() {
	go func() {
		for seq := uint64(1); ; seq++ {
			if s.Send(&redoubtv1.SessionRequest{Message: &redoubtv1.SessionRequest_Heartbeat{Heartbeat: &redoubtv1.Heartbeat{Sequence: seq}}}) != nil {
				return
			}
			time.Sleep(100 * time.Millisecond) // the agent's rhythm
		}
	}()
}

// reportOf is a node that verifies gVisor and runc and no VM.
func (n *testNode) reportOf(generation uint64) *redoubtv1.Report {
	verified := func(name string, class redoubtv1.IsolationClass, variant string, syscalls uint32) *redoubtv1.Finding {
		return &redoubtv1.Finding{
			Runtime: name, Class: class, Variant: variant, State: redoubtv1.FindingState_FINDING_STATE_VERIFIED,
			Terms: &redoubtv1.Terms{Sandbox: 0.5, Surface: &redoubtv1.Surface{Syscalls: syscalls, SyscallsTotal: 362}}, Age: durationpb.New(time.Second),
		}
	}
	return &redoubtv1.Report{
		Node: n.id, Site: n.site, Generation: generation,
		Host: &redoubtv1.HostFacts{Arch: "amd64", BootId: "boot", CpuMillis: 2000, MemoryBytes: 4 << 30, Kvm: &redoubtv1.Kvm{Verdict: redoubtv1.KvmVerdict_KVM_VERDICT_PARAVIRTUAL}},
		Findings: []*redoubtv1.Finding{
			verified("gvisor", redoubtv1.IsolationClass_ISOLATION_CLASS_SANDBOX, "systrap", 80),
			{Runtime: "kata-qemu", Class: redoubtv1.IsolationClass_ISOLATION_CLASS_VM, State: redoubtv1.FindingState_FINDING_STATE_UNUSABLE, Reason: "KVM is paravirtual", Fix: "a host with hardware virtualisation"},
			verified("runc", redoubtv1.IsolationClass_ISOLATION_CLASS_CONTAINER, "", 250),
		},
	}
}
