package control

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"redoubt.dev/redoubt/control/archive"
	"redoubt.dev/redoubt/control/state"
	"redoubt.dev/redoubt/identity"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// saved is a snapshot file of what a server sends.
func (c *cluster) saved(server string) []byte {
	c.t.Helper()
	stream, err := redoubtv1.NewFleetServiceClient(c.conn(server, c.source(""))).SaveSnapshot(c.ctx(), &redoubtv1.SaveSnapshotRequest{})
	if err != nil {
		c.t.Fatal(err)
	}
	first, err := stream.Recv()
	if err != nil {
		c.t.Fatal(err)
	}
	d := first.GetDescription()
	var data []byte
	for {
		m, err := stream.Recv()
		if err != nil {
			break
		}
		data = append(data, m.GetData()...)
	}
	if got := sha256.Sum256(data); !bytes.Equal(got[:], d.GetSha256()) {
		c.t.Fatalf("%d bytes came, described as %d with another hash", len(data), d.GetSize())
	}
	var file bytes.Buffer
	if err := archive.Write(&file, archive.Meta{
		ClusterID: d.GetClusterId(), TrustDomain: d.GetTrustDomain(), Index: d.GetIndex(), Term: d.GetTerm(),
		Size: int64(d.GetSize()), SHA256: hex.EncodeToString(d.GetSha256()),
	}, bytes.NewReader(data)); err != nil {
		c.t.Fatal(err)
	}
	return file.Bytes()
}

// view reads what a server sends as its snapshot into store.
func (c *cluster) view(server string, store *state.Store) {
	c.t.Helper()
	if _, err := archive.Read(bytes.NewReader(c.saved(server)), state.FeatureLevel, func(r io.Reader) error { return store.FSM().Restore(io.NopCloser(r)) }); err != nil {
		c.t.Fatal(err)
	}
}

// placed is a fleet with a workload that a node was told of and runs, and what
// its agent knows.
func placed(t *testing.T, ids ...string) (*cluster, *testNode, *redoubtv1.Assignments) {
	c := newCluster(t, ids...)
	n := c.node(ids[0], "oslo-1", "oslo")
	s, err := n.session(ids[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	s.beat()
	if err := s.report(n.reportOf(1)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.fleet().ApplyWorkload(c.ctx(), &redoubtv1.ApplyWorkloadRequest{Workload: service("web", 1)}); err != nil {
		t.Fatal(err)
	}
	a := s.until("assignment", assigned).GetAssignments()
	s.cancel()
	return c, n, a
}

// again opens a session that knows version, and returns what it is told first.
func (n *testNode) again(server string, version uint64) *redoubtv1.Assignments {
	n.c.t.Helper()
	var s *agentSession
	n.c.eventually("a session at "+server, func() (err error) {
		s, err = n.session(server, &redoubtv1.Hello{Node: n.id, Site: n.site, BootId: "boot", GossipAddress: "127.0.0.1:1", AssignmentVersion: version})
		if err == nil {
			_, err = s.Recv() // the welcome
		}
		return err
	})
	m := s.until("assignments", func(m *redoubtv1.SessionResponse) bool { return m.GetAssignments() != nil })
	return m.GetAssignments()
}

// TestALostMajorityIsRecoveredOnTheSurvivor: nothing that the survivor knew is
// lost, and its agents take what comes now for newer.
func TestALostMajorityIsRecoveredOnTheSurvivor(t *testing.T) {
	t.Parallel()
	c, n, known := placed(t, "s1", "s2", "s3")
	survivor := c.servers["s3"]
	c.eventually("the survivor has everything", func() error {
		r, err := c.fleet().ListServers(c.ctx(), &redoubtv1.ListServersRequest{})
		if err != nil {
			return err
		}
		for _, srv := range r.GetServers() {
			if srv.GetAppliedIndex() < known.GetVersion() {
				return fmt.Errorf("%s is at %d", srv.GetId(), srv.GetAppliedIndex())
			}
		}
		return nil
	})
	cfg := RecoverConfig{Dir: survivor.dir, Version: "test", Log: c.log()}
	if _, err := Recover(context.Background(), cfg); err == nil || !strings.Contains(err.Error(), "must not run") {
		t.Fatalf("recovering a running server: %v", err)
	}
	c.halt("s3")
	if _, err := Recover(context.Background(), cfg); !errors.Is(err, ErrStillAnswers) || !strings.Contains(err.Error(), "s1 at ") {
		t.Fatalf("recovering beside living servers: %v", err)
	}
	health := func(want healthpb.HealthCheckResponse_ServingStatus) {
		t.Helper()
		client := healthpb.NewHealthClient(c.conn("s1", c.source("")))
		c.eventually("health of s1 is "+want.String(), func() error {
			r, err := client.Check(c.ctx(), &healthpb.HealthCheckRequest{Service: "redoubt.v1.FleetService"})
			if err == nil && r.GetStatus() != want {
				err = fmt.Errorf("it is %s", r.GetStatus())
			}
			return err
		})
	}
	health(healthpb.HealthCheckResponse_SERVING)
	c.halt("s2")
	health(healthpb.HealthCheckResponse_NOT_SERVING)
	c.halt("s1")
	dry := cfg
	dry.DryRun = true
	if r, err := Recover(context.Background(), dry); err != nil || r.Kept != "" {
		t.Fatalf("dry run: %+v, %v", r, err)
	}
	r, err := Recover(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(r.Forgotten) != "[s1 s2]" || r.Nodes != 1 || r.Workloads != 1 || r.To < known.GetVersion()+indexLeap {
		t.Errorf("recovered %+v", r)
	}
	if _, err := os.Stat(filepath.Join(r.Kept, "raft.db")); err != nil {
		t.Errorf("the former log is not kept: %v", err)
	}
	bundle := c.bundle() // the admin knows all authorities still
	c.start(survivor)
	a := n.again("s3", known.GetVersion())
	if a.GetKind() != redoubtv1.Assignments_KIND_COMPLETE || a.GetVersion() <= known.GetVersion() || len(a.GetUpdated()) != 1 || a.GetUpdated()[0].GetUid() != known.GetUpdated()[0].GetUid() {
		t.Errorf("the agent is told %v, it knew %v", a, known)
	}
	servers, err := redoubtv1.NewFleetServiceClient(c.conn("s3", identity.NewMemorySource(c.admin.SVID, bundle))).ListServers(c.ctx(), &redoubtv1.ListServersRequest{})
	if err != nil || len(servers.GetServers()) != 1 || !servers.GetServers()[0].GetLeader() {
		t.Fatalf("servers %v, %v", servers, err)
	}
	// A forgotten one joins anew; and what is given out now is behind what was.
	if err := os.RemoveAll(c.servers["s1"].dir); err != nil {
		t.Fatal(err)
	}
	c.join("s1")
	w, err := c.fleet().ApplyWorkload(c.ctx(), &redoubtv1.ApplyWorkloadRequest{Workload: service("more", 1)})
	if err != nil || w.GetWorkload().GetRevision() < indexLeap {
		t.Errorf("after it: %v, %v", w, err)
	}
}

// TestASnapshotBringsTheFleetBack: on its own server, to which the state of the
// snapshot comes back, and on no other fleet's.
func TestASnapshotBringsTheFleetBack(t *testing.T) {
	t.Parallel()
	c, n, known := placed(t, "s1")
	file := c.saved("s1")
	for _, secret := range []string{"PRIVATE KEY"} {
		if bytes.Contains(file, []byte(secret)) {
			t.Errorf("the snapshot holds %q", secret)
		}
	}
	if _, err := c.fleet().ApplyWorkload(c.ctx(), &redoubtv1.ApplyWorkloadRequest{Workload: service("later", 1)}); err != nil {
		t.Fatal(err)
	}
	c.halt("s1")
	ctx := context.Background()
	cfg := RecoverConfig{Dir: c.servers["s1"].dir, Version: "test", Log: c.log()}
	other := RecoverConfig{Dir: filepath.Join(c.dir, "other"), Version: "test", Log: c.log()}
	if err := Init(InitConfig{Dir: other.Dir, ID: "x1", TrustDomain: trustDomain, Addresses: AddressesAt("127.0.0.1"), Log: c.log()}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Restore(ctx, other, bytes.NewReader(file)); err == nil || !strings.Contains(err.Error(), "--new-fleet") {
		t.Errorf("restored on another fleet's server: %v", err)
	}
	for at := 100; at < len(file); at += len(file)/7 + 1 {
		bad := bytes.Clone(file)
		bad[at] ^= 1
		if _, _, err := Restore(ctx, cfg, bytes.NewReader(bad)); !errors.Is(err, archive.ErrDamaged) {
			t.Errorf("restored with byte %d changed: %v", at, err)
		}
	}
	// The log is lost as well: only who the server is was kept.
	if err := os.RemoveAll(filepath.Join(cfg.Dir, "raft")); err != nil {
		t.Fatal(err)
	}
	for range 2 { // it may be repeated
		if _, _, err := Restore(ctx, cfg, bytes.NewReader(file)); err != nil {
			t.Fatal(err)
		}
	}
	c.start(c.servers["s1"])
	c.eventually("the snapshot's workload and no other", func() error {
		list, err := c.fleet().ListWorkloads(c.ctx(), &redoubtv1.ListWorkloadsRequest{})
		if err == nil && (len(list.GetWorkloads()) != 1 || list.GetWorkloads()[0].GetSpec().GetName() != "web") {
			err = fmt.Errorf("workloads: %v", list)
		}
		return err
	})
	a := n.again("s1", known.GetVersion()+100) // which knew more than the snapshot
	if a.GetKind() != redoubtv1.Assignments_KIND_COMPLETE || a.GetVersion() <= known.GetVersion()+100 || len(a.GetUpdated()) != 1 {
		t.Errorf("the agent is told %v", a)
	}
	c.halt("s1")

	other.NewFleet = true
	r, _, err := Restore(ctx, other, bytes.NewReader(file))
	if err != nil || r.Nodes != 0 || r.Workloads != 1 {
		t.Fatalf("into a new fleet: %+v, %v", r, err)
	}
}

// TestAnAgentThatKnowsMoreThanTheFleetIsToldEverything: a single server's
// directory may be put back from a copy.
func TestAnAgentThatKnowsMoreThanTheFleetIsToldEverything(t *testing.T) {
	t.Parallel()
	_, n, known := placed(t, "s1")
	begun := time.Now()
	a := n.again("s1", known.GetVersion()+1000)
	if a.GetKind() != redoubtv1.Assignments_KIND_COMPLETE || len(a.GetUpdated()) != 1 {
		t.Errorf("the agent is told %v", a)
	}
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
}
