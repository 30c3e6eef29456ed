package cli_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"crypto/x509"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/identity"
	"redoubt.dev/redoubt/identity/attest"
	"redoubt.dev/redoubt/identity/ca"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

var testDomain = spiffeid.RequireTrustDomainFromString("test.redoubt")

// world is a fleet of the test's making: a real authority, real connections,
// and answers that the test sets.
type world struct {
	authority *ca.Authority
	bundle    *x509bundle.Bundle
	userTTL   time.Duration

	mu        sync.Mutex
	workloads map[string]*redoubtv1.StoredWorkload
	explained map[string]*redoubtv1.Explanation
	planned   map[string]*redoubtv1.PlanWorkloadResponse
	nodes     redoubtv1.ListNodesResponse
	sites     redoubtv1.ListSitesResponse
	servers   redoubtv1.ListServersResponse
	events    redoubtv1.ListEventsResponse
	logs      map[string]string // by instance
	addresses []string
	commands  map[string]int // times that a command id was seen
	changed   chan struct{}
	revision  uint64
	renewals  int
	// tarReads, if set, is called at each message to a tar; tarEnds has how its
	// input ended: io.EOF, or the break of the stream.
	tarReads func()
	tarEnds  chan error
	// fail, if set, answers a method's next calls.
	fail func(method string) error
}

func newWorld(t interface {
	Helper()
	Fatal(...any)
}, dir string) *world {
	t.Helper()
	authority, err := ca.Create(filepath.Join(dir, "ca"), testDomain)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{
		authority: authority, bundle: x509bundle.FromX509Authorities(testDomain, []*x509.Certificate{authority.Certificate()}),
		userTTL: time.Hour, workloads: map[string]*redoubtv1.StoredWorkload{}, explained: map[string]*redoubtv1.Explanation{},
		planned: map[string]*redoubtv1.PlanWorkloadResponse{}, logs: map[string]string{}, commands: map[string]int{},
		changed: make(chan struct{}), revision: 10,
	}
	if err := authority.Activate(w.bundle); err != nil {
		t.Fatal(err)
	}
	return w
}

// sign makes an identity of the world.
func (w *world) sign(id identity.ID, ttl time.Duration) (identity.File, error) {
	key, err := identity.NewKey()
	if err != nil {
		return identity.File{}, err
	}
	csr, err := attest.NewCSR(key)
	if err != nil {
		return identity.File{}, err
	}
	chain, err := w.authority.SignSVID(csr, id, ttl)
	if err != nil {
		return identity.File{}, err
	}
	svid, err := identity.NewSVID(key, chain)
	return identity.File{SVID: svid, Bundle: w.bundle}, err
}

// context writes the context file of the user ann.
func (w *world) context(path string, ttl time.Duration, addresses ...string) error {
	id, err := identity.UserID(testDomain, "ann")
	if err != nil {
		return err
	}
	f, err := w.sign(id, ttl)
	if err != nil {
		return err
	}
	f.Addresses = addresses
	return identity.SaveFile(path, f)
}

// serve begins a server called id on a free port of this host.
func (w *world) serve(id string) (address string, stop func(), err error) {
	sid, err := identity.ServerID(testDomain, id)
	if err != nil {
		return "", nil, err
	}
	f, err := w.sign(sid, time.Hour)
	if err != nil {
		return "", nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	srv := grpc.NewServer(
		grpc.Creds(identity.ServerCredentials(f.Source(), identity.AuthorizeKinds(testDomain, identity.KindUser))),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			w.mu.Lock()
			fail := w.fail
			if r, ok := req.(interface{ GetCommandId() string }); ok {
				w.commands[r.GetCommandId()]++
			}
			w.mu.Unlock()
			if fail != nil {
				if err := fail(info.FullMethod[strings.LastIndexByte(info.FullMethod, '/')+1:]); err != nil {
					return nil, err
				}
			}
			return next(ctx, req)
		}))
	redoubtv1.RegisterFleetServiceServer(srv, fakeServer{world: w, id: id})
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	return l.Addr().String(), func() { srv.Stop(); <-done }, nil
}

// change lets f change the world and tells watchers.
func (w *world) change(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
	close(w.changed)
	w.changed = make(chan struct{})
}

// fakeServer answers from the world.
type fakeServer struct {
	redoubtv1.UnimplementedFleetServiceServer
	*world
	id string
}

func key(ns, name string) string { return fleet.NamespaceOrDefault(ns) + "/" + name }

func (s fakeServer) none(ns, name string) error {
	return status.Errorf(codes.NotFound, "there is no workload or instance %q in namespace %q; `redoubt workload list` shows what there is", name, fleet.NamespaceOrDefault(ns))
}

func (s fakeServer) ApplyWorkload(_ context.Context, req *redoubtv1.ApplyWorkloadRequest) (*redoubtv1.ApplyWorkloadResponse, error) {
	spec, err := fleet.WorkloadFromProto(req.GetWorkload())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	resp := &redoubtv1.ApplyWorkloadResponse{Result: "created"}
	var fails error
	s.change(func() {
		k := key(spec.Namespace, spec.Name)
		old := s.workloads[k]
		if old != nil && req.ExpectedRevision != nil && req.GetExpectedRevision() == 0 {
			fails = status.Errorf(codes.AlreadyExists, "workload %s exists already, at revision %d by ann", spec.Name, old.GetRevision())
			return
		}
		if req.ExpectedRevision != nil && req.GetExpectedRevision() != old.GetRevision() {
			fails = status.Errorf(codes.Aborted, "%s is at revision %d, not %d: somebody changed it; look, then apply again", spec.Name, old.GetRevision(), req.GetExpectedRevision())
			return
		}
		s.revision++
		next := &redoubtv1.StoredWorkload{Spec: spec.Proto(), Revision: s.revision, Created: timestamppb.Now(), Updated: timestamppb.Now(), UpdatedBy: "ann", Status: &redoubtv1.WorkloadStatus{
			Phase: redoubtv1.WorkloadPhase_WORKLOAD_PHASE_STARTING, Desired: 1,
		}}
		if old != nil {
			next.Created, next.Status, resp.Result = old.GetCreated(), old.GetStatus(), "changed"
			if proto.Equal(old.GetSpec(), next.GetSpec()) {
				resp.Result, next = "unchanged", old
			}
		}
		s.workloads[k] = next
		resp.Workload = next
		if resp.Result == "created" {
			go s.perform(k, next)
		}
	})
	return resp, fails
}

// perform plays what the image's arguments say.
func (s fakeServer) perform(k string, w *redoubtv1.StoredWorkload) {
	spec := w.GetSpec()
	name := spec.GetName() + "-1"
	args := spec.GetContainers()[0].GetArgs()
	verb, rest := "", ""
	if len(args) > 0 {
		verb, rest = args[0], strings.Join(args[1:], " ")
	}
	set := func(phase redoubtv1.InstancePhase, code int32) {
		s.change(func() {
			cur := s.workloads[k]
			if cur == nil {
				return
			}
			cur = proto.CloneOf(cur)
			i := &redoubtv1.Instance{
				Assignment: &redoubtv1.Assignment{
					Uid: "u-" + name, Namespace: spec.GetNamespace(), Workload: spec.GetName(), Instance: name, Node: "oslo-1", Site: "oslo",
					Runtime: "gvisor", Variant: "systrap", Class: redoubtv1.IsolationClass_ISOLATION_CLASS_SANDBOX,
					Why: "gvisor (systrap) gives sandbox; no vm: KVM here is paravirtual",
				},
				Status: &redoubtv1.InstanceStatus{Phase: phase, ExitCode: code, Message: map[bool]string{true: "error finding executable"}[verb == "nosuch"]},
			}
			cur.Status = &redoubtv1.WorkloadStatus{Desired: 1, Instances: []*redoubtv1.Instance{i}, Phase: redoubtv1.WorkloadPhase_WORKLOAD_PHASE_RUNNING, Running: 1}
			if phase == redoubtv1.InstancePhase_INSTANCE_PHASE_SUCCEEDED {
				cur.Status.Phase, cur.Status.Running, cur.Status.Succeeded = redoubtv1.WorkloadPhase_WORKLOAD_PHASE_COMPLETED, 0, 1
			}
			if phase == redoubtv1.InstancePhase_INSTANCE_PHASE_FAILED {
				cur.Status.Phase, cur.Status.Running, cur.Failures = redoubtv1.WorkloadPhase_WORKLOAD_PHASE_FAILED, 0, 1
			}
			s.workloads[k] = cur
			s.explained[k] = &redoubtv1.Explanation{Workload: spec.GetName(), Summary: spec.GetName() + " has 1 of 1 placed.", Placed: []*redoubtv1.Placed{{Action: "keep"}}}
		})
	}
	if verb == "pend" {
		s.change(func() {
			cur := proto.CloneOf(s.workloads[k])
			cur.Status.Phase, cur.Status.Pending, cur.Status.Why = redoubtv1.WorkloadPhase_WORKLOAD_PHASE_PENDING, 1, spec.GetName()+" is pending: its floor is vm, and no node verifies one."
			s.workloads[k] = cur
			s.explained[k] = &redoubtv1.Explanation{Workload: spec.GetName(), Summary: cur.Status.Why, Pending: 1}
		})
		return
	}
	if verb == "nosuch" {
		set(redoubtv1.InstancePhase_INSTANCE_PHASE_BACKOFF, 0)
		return
	}
	set(redoubtv1.InstancePhase_INSTANCE_PHASE_RUNNING, 0)
	s.change(func() {
		switch verb {
		case "echo":
			s.logs[name] = rest + "\n"
		case "env":
			for _, e := range spec.GetContainers()[0].GetEnv() {
				s.logs[name] += e.GetName() + "=" + e.GetValue() + "\n"
			}
		}
	})
	if spec.GetKind() != "Job" || verb == "sleep" {
		return
	}
	if verb == "exit" {
		code, _ := strconv.Atoi(rest)
		set(redoubtv1.InstancePhase_INSTANCE_PHASE_FAILED, int32(code))
		return
	}
	set(redoubtv1.InstancePhase_INSTANCE_PHASE_SUCCEEDED, 0)
}

func (s fakeServer) PlanWorkload(_ context.Context, req *redoubtv1.PlanWorkloadRequest) (*redoubtv1.PlanWorkloadResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p, ok := s.planned[key(req.GetWorkload().GetNamespace(), req.GetWorkload().GetName())]; ok {
		return p, nil
	}
	return nil, status.Error(codes.Internal, "the test planned nothing")
}

func (s fakeServer) GetWorkload(_ context.Context, req *redoubtv1.GetWorkloadRequest) (*redoubtv1.GetWorkloadResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w, ok := s.workloads[key(req.GetNamespace(), req.GetName())]
	if !ok {
		return nil, s.none(req.GetNamespace(), req.GetName())
	}
	return &redoubtv1.GetWorkloadResponse{Workload: w}, nil
}

func (s fakeServer) ListWorkloads(_ context.Context, req *redoubtv1.ListWorkloadsRequest) (*redoubtv1.ListWorkloadsResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	resp := &redoubtv1.ListWorkloadsResponse{}
	for _, w := range s.workloads {
		if req.GetNamespace() == "" || w.GetSpec().GetNamespace() == req.GetNamespace() {
			resp.Workloads = append(resp.Workloads, w)
		}
	}
	slices.SortFunc(resp.Workloads, func(a, b *redoubtv1.StoredWorkload) int {
		return strings.Compare(key(a.GetSpec().GetNamespace(), a.GetSpec().GetName()), key(b.GetSpec().GetNamespace(), b.GetSpec().GetName()))
	})
	return resp, nil
}

func (s fakeServer) selected(f *redoubtv1.EventFilter, after uint64) (out []*redoubtv1.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.events.GetEvents() {
		if e.GetSequence() > after && (f.GetNamespace() == "" || f.GetNamespace() == e.GetNamespace()) && (f.GetWorkload() == "" || f.GetWorkload() == e.GetWorkload()) &&
			(f.GetNode() == "" || f.GetNode() == e.GetNode()) && (f.GetSince() == nil || !e.GetLast().AsTime().Before(f.GetSince().AsTime())) {
			out = append(out, e)
		}
	}
	return out
}

func (s fakeServer) ListEvents(_ context.Context, req *redoubtv1.ListEventsRequest) (*redoubtv1.ListEventsResponse, error) {
	events := s.selected(req.GetFilter(), 0)
	if n := int(req.GetLast()); n > 0 && len(events) > n {
		events = events[len(events)-n:]
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return &redoubtv1.ListEventsResponse{Events: events, Sequence: s.events.GetSequence()}, nil
}

// WatchEvents sends what is newer than the list's sequence, one at a time, and
// breaks after each.
func (s fakeServer) WatchEvents(req *redoubtv1.WatchEventsRequest, stream redoubtv1.FleetService_WatchEventsServer) error {
	events := s.selected(req.GetFilter(), req.GetAfter())
	if len(events) == 0 {
		return status.Error(codes.InvalidArgument, "the test has no more events; it is over")
	}
	if err := stream.Send(&redoubtv1.WatchEventsResponse{Events: events[:1], Sequence: events[0].GetSequence(), Gap: events[0].GetSequence() > req.GetAfter()+1}); err != nil {
		return err
	}
	return status.Error(codes.Unavailable, "this server goes away")
}

func (s fakeServer) StopWorkload(_ context.Context, req *redoubtv1.StopWorkloadRequest) (*redoubtv1.StopWorkloadResponse, error) {
	k := key(req.GetNamespace(), req.GetName())
	resp, err := &redoubtv1.StopWorkloadResponse{}, error(nil)
	s.change(func() {
		w, ok := s.workloads[k]
		switch {
		case !ok:
			err = status.Errorf(codes.NotFound, "workload %s does not exist", k) // as the state machine says it
		case len(w.GetStatus().GetInstances()) == 0:
			delete(s.workloads, k)
		default:
			w = proto.CloneOf(w)
			w.Stopping, w.Status.Phase = true, redoubtv1.WorkloadPhase_WORKLOAD_PHASE_STOPPING
			s.workloads[k] = w
			resp.Workload = w
			go func() {
				time.Sleep(50 * time.Millisecond)
				s.change(func() { delete(s.workloads, k) })
			}()
		}
	})
	return resp, err
}

func (s fakeServer) ExplainWorkload(_ context.Context, req *redoubtv1.ExplainWorkloadRequest) (*redoubtv1.ExplainWorkloadResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := key(req.GetNamespace(), req.GetName())
	e, ok := s.explained[k]
	if !ok {
		if s.workloads[k] == nil {
			return nil, s.none(req.GetNamespace(), req.GetName())
		}
		e = &redoubtv1.Explanation{Workload: req.GetName(), Summary: "not placed yet", Pending: 1}
	}
	return &redoubtv1.ExplainWorkloadResponse{Explanation: e, Workload: s.workloads[k]}, nil
}

func (s fakeServer) ListNodes(_ context.Context, req *redoubtv1.ListNodesRequest) (*redoubtv1.ListNodesResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	resp := proto.CloneOf(&s.nodes)
	resp.Nodes = slices.DeleteFunc(resp.Nodes, func(n *redoubtv1.Node) bool { return req.GetSite() != "" && n.GetSite() != req.GetSite() })
	return resp, nil
}

func (s fakeServer) GetNode(_ context.Context, req *redoubtv1.GetNodeRequest) (*redoubtv1.GetNodeResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.nodes.GetNodes() {
		if n.GetId() == req.GetId() {
			resp := &redoubtv1.GetNodeResponse{Node: n}
			for _, name := range slices.Sorted(maps.Keys(s.workloads)) {
				for _, i := range s.workloads[name].GetStatus().GetInstances() {
					if i.GetAssignment().GetNode() == n.GetId() {
						resp.Instances = append(resp.Instances, i)
					}
				}
			}
			return resp, nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "there is no node %q; `redoubt node list` shows what there is", req.GetId())
}

func (s fakeServer) ListSites(context.Context, *redoubtv1.ListSitesRequest) (*redoubtv1.ListSitesResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return proto.CloneOf(&s.sites), nil
}

func (s fakeServer) CreateJoinToken(_ context.Context, req *redoubtv1.CreateJoinTokenRequest) (*redoubtv1.CreateJoinTokenResponse, error) {
	if ttl := req.GetTtl().AsDuration(); ttl < time.Minute {
		return nil, status.Errorf(codes.InvalidArgument, "ttl %s: a join token lives between 1m and 720h", ttl)
	}
	return &redoubtv1.CreateJoinTokenResponse{
		Token:   fmt.Sprintf("token-for-%s-%s-%s", req.GetRole(), req.GetNode(), req.GetSite()),
		Expires: timestamppb.New(time.Now().Add(req.GetTtl().AsDuration())),
	}, nil
}

func (s fakeServer) ListServers(context.Context, *redoubtv1.ListServersRequest) (*redoubtv1.ListServersResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return proto.CloneOf(&s.servers), nil
}

func (s fakeServer) RemoveServer(_ context.Context, req *redoubtv1.RemoveServerRequest) (*redoubtv1.RemoveServerResponse, error) {
	var err error
	s.change(func() {
		before := len(s.servers.GetServers())
		s.servers.Servers = slices.DeleteFunc(s.servers.Servers, func(x *redoubtv1.Server) bool { return x.GetId() == req.GetId() })
		if len(s.servers.Servers) == before {
			err = status.Errorf(codes.NotFound, "there is no server %q; `redoubt operator raft list` shows what there is", req.GetId())
		}
	})
	return &redoubtv1.RemoveServerResponse{}, err
}

func (s fakeServer) RenewIdentity(ctx context.Context, req *redoubtv1.RenewIdentityRequest) (*redoubtv1.RenewIdentityResponse, error) {
	caller, err := identity.PeerID(ctx)
	if err != nil {
		return nil, err
	}
	chain, err := s.authority.SignSVID(req.GetCsr(), caller, s.userTTL)
	if err != nil {
		return nil, err
	}
	resp := &redoubtv1.RenewIdentityResponse{Bundle: [][]byte{s.authority.Certificate().Raw}}
	for _, c := range chain {
		resp.Certificates = append(resp.Certificates, c.Raw)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.renewals++
	resp.Servers = slices.Clone(s.addresses)
	return resp, nil
}

func (s fakeServer) Watch(_ *redoubtv1.WatchRequest, stream redoubtv1.FleetService_WatchServer) error {
	for {
		s.mu.Lock()
		changed, index := s.changed, s.revision
		s.mu.Unlock()
		if err := stream.Send(&redoubtv1.WatchResponse{Index: index}); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return nil
		}
	}
}

func (s fakeServer) GetEgress(_ context.Context, req *redoubtv1.GetEgressRequest) (*redoubtv1.GetEgressResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	resp := &redoubtv1.GetEgressResponse{}
	for n, i := range s.workloads[key(req.GetNamespace(), req.GetName())].GetStatus().GetInstances() {
		e := &redoubtv1.InstanceEgress{Instance: i.GetAssignment().GetInstance(), Node: i.GetAssignment().GetNode()}
		switch n {
		case 0:
			e.Rules = []*redoubtv1.EgressCount{
				{Rule: "to 10.20.0.0/16 tcp 443", Packets: 12, Bytes: 720}, {Rule: "anything else", Packets: 7, Bytes: 420, Refused: true},
			}
		default:
			e.Error = "node oslo-2 has no session with any server now"
		}
		resp.Instances = append(resp.Instances, e)
	}
	return resp, nil
}

func (s fakeServer) Logs(req *redoubtv1.LogsRequest, stream grpc.ServerStreamingServer[redoubtv1.LogsResponse]) error {
	for {
		s.mu.Lock()
		w := s.workloads[key(req.GetNamespace(), req.GetName())]
		var from []string
		for _, i := range w.GetStatus().GetInstances() {
			from = append(from, i.GetAssignment().GetInstance())
		}
		if _, ok := s.logs[req.GetName()]; ok || strings.HasSuffix(req.GetName(), "-1") {
			from = []string{req.GetName()}
		}
		texts := map[string]string{}
		for _, i := range from {
			texts[i] = s.logs[i]
		}
		running := slices.ContainsFunc(s.workloads[key(req.GetNamespace(), strings.TrimSuffix(req.GetName(), "-1"))].GetStatus().GetInstances(), func(i *redoubtv1.Instance) bool {
			return i.GetStatus().GetPhase() == redoubtv1.InstancePhase_INSTANCE_PHASE_RUNNING
		})
		changed := s.changed
		s.mu.Unlock()
		if len(from) == 0 {
			return s.none(req.GetNamespace(), req.GetName())
		}
		if req.GetFollow() && running {
			select {
			case <-changed:
				continue
			case <-stream.Context().Done():
				return nil
			}
		}
		for _, i := range from {
			text := texts[i]
			if broken, ok := strings.CutPrefix(text, "!"); ok {
				if err := stream.Send(&redoubtv1.LogsResponse{Instance: i, Error: strings.TrimSpace(broken)}); err != nil {
					return err
				}
				continue
			}
			if n := int(req.GetTail()); n >= 0 {
				lines := strings.SplitAfter(strings.TrimSuffix(text, "\n"), "\n")
				text = strings.Join(lines[max(len(lines)-n, 0):], "") + "\n"
			}
			for len(text) > 0 { // in pieces that respect no line
				n := min(7, len(text))
				if err := stream.Send(&redoubtv1.LogsResponse{Instance: i, Data: []byte(text[:n])}); err != nil {
					return err
				}
				text = text[n:]
			}
		}
		return nil
	}
}

// Exec plays a few commands.
func (s fakeServer) Exec(stream grpc.BidiStreamingServer[redoubtv1.ExecRequest, redoubtv1.ExecResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	start := first.GetStart()
	s.mu.Lock()
	_, ok := s.workloads[key(start.GetNamespace(), start.GetName())]
	s.mu.Unlock()
	if !ok {
		return s.none(start.GetNamespace(), start.GetName())
	}
	out := func(text string) error {
		return stream.Send(&redoubtv1.ExecResponse{Message: &redoubtv1.ExecResponse_Stdout{Stdout: []byte(text)}})
	}
	for range 2 { // by the server and by the agent
		if err := stream.Send(&redoubtv1.ExecResponse{Message: &redoubtv1.ExecResponse_Started{Started: start.GetName() + "-1"}}); err != nil {
			return err
		}
	}
	code := 0
	switch start.GetCommand()[0] {
	case "exit":
		code, _ = strconv.Atoi(start.GetCommand()[1])
	case "describe":
		err = out(fmt.Sprintf("%v user=%q dir=%q tty=%v size=%dx%d", start.GetCommand()[1:], start.GetUser(), start.GetWorkingDir(), start.GetTerminal(), start.GetSize().GetWidth(), start.GetSize().GetHeight()))
		for _, e := range start.GetEnv() {
			err = errors.Join(err, out(" "+e.GetName()+"="+e.GetValue()))
		}
		err = errors.Join(err, out("\n"))
	case "complain":
		err = stream.Send(&redoubtv1.ExecResponse{Message: &redoubtv1.ExecResponse_Stderr{Stderr: []byte("complaint\n")}})
	case "hang-up":
		return status.Error(codes.Unavailable, "the stream to node oslo-1 broke: it ended early; `redoubt node status oslo-1` shows how the node is")
	case "signal":
		if err := out("ready\n"); err != nil {
			return err
		}
		for err == nil {
			var m *redoubtv1.ExecRequest
			if m, err = stream.Recv(); err == nil && m.GetSignal() != "" {
				code = 7
				err = out("got " + m.GetSignal() + "\n")
				if strings.Contains(start.GetCommand()[len(start.GetCommand())-1], m.GetSignal()) {
					err = errors.Join(err, io.EOF)
				}
			}
		}
	case "tar":
		for err == nil {
			var m *redoubtv1.ExecRequest
			if m, err = stream.Recv(); err == nil && m.GetCloseStdin() {
				err = io.EOF
			}
			if err == nil && s.tarReads != nil {
				s.tarReads()
			}
		}
		s.tarEnds <- err
	case "cat":
		for err == nil {
			var m *redoubtv1.ExecRequest
			if m, err = stream.Recv(); err != nil {
				break
			}
			if m.GetCloseStdin() || strings.Contains(string(m.GetStdin()), "\x04") {
				break
			}
			err = out(string(m.GetStdin()))
		}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return stream.Send(&redoubtv1.ExecResponse{Message: &redoubtv1.ExecResponse_ExitCode{ExitCode: int32(code)}})
}
