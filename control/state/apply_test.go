package state

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"redoubt.dev/redoubt/control/fleet"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

func TestATokenBindsToOneKey(t *testing.T) {
	m := newMachine(t)
	m.ok(opInit(), Created)
	m.ok(opInit(), Unchanged)
	m.ok(opToken("t1", "", "oslo"), Created)
	m.no(opBind("tx", "n1", "oslo", "k1"), codes.NotFound, "not known here")
	wrong := opBind("t1", "n1", "oslo", "k1")
	wrong.GetBindToken().SecretHash = []byte("other")
	m.no(wrong, codes.PermissionDenied, "secret is wrong")
	m.no(opBind("t1", "n1", "lab", "k1"), codes.PermissionDenied, "for site oslo")
	m.ok(opBind("t1", "n1", "", "k1"), Created)
	m.ok(opBind("t1", "n1", "", "k1"), Unchanged) // the answer was dropped
	m.no(opBind("t1", "n1", "", "k2"), codes.PermissionDenied, "another key")
	m.no(opBind("t1", "n2", "", "k1"), codes.PermissionDenied, "used already, by n1")

	m.ok(opToken("t2", "", ""), Created)
	m.no(opBind("t2", "n1", "oslo", "k2"), codes.PermissionDenied, "make a token that names it")
	m.ok(opReport(report("n1", "oslo", 7, 1000, 1<<30)), Changed)
	m.ok(opToken("t3", "n1", ""), Created)
	m.ok(opBind("t3", "n1", "oslo", "k2"), Changed)
	n, _ := m.Snapshot().Node(nil, "n1")
	if n.KeyHash != "k2" || n.Report != nil {
		t.Fatalf("a machine made anew keeps key %s and report %v", n.KeyHash, n.Report)
	}
	m.ok(opReport(report("n1", "oslo", 1, 1000, 1<<30)), Changed)

	m.ok(opToken("t4", "", ""), Created)
	m.index += 3600
	m.no(opBind("t4", "n4", "oslo", "k4"), codes.PermissionDenied, "expired")
}

func TestServersJoinByTokenAndStayOut(t *testing.T) {
	m := newMachine(t)
	m.ok(opInit(), Created)
	put := func(id string) *redoubtv1.Operation {
		return &redoubtv1.Operation{Operation: &redoubtv1.Operation_PutServer{PutServer: &redoubtv1.PutServer{Server: &redoubtv1.Server{Id: id, FeatureLevel: 1, Version: "2"}}}}
	}
	m.no(put("s2"), codes.NotFound, "no member")
	tok := opToken("t1", "", "")
	tok.GetPutToken().Role = "server"
	m.ok(tok, Created)
	m.no(opBind("t1", "n1", "oslo", "k1"), codes.PermissionDenied, "for a server")
	bind := opBind("t1", "", "", "k1")
	bind.GetBindToken().Server = &redoubtv1.Server{Id: "s2", FeatureLevel: 1}
	bind.GetBindToken().Authority = &redoubtv1.Authority{Server: "s1", Certificate: []byte("forged")}
	m.no(bind, codes.PermissionDenied, "in the name of s2")
	bind.GetBindToken().Authority.Server = "s2"
	m.ok(bind, Created)
	m.ok(bind, Unchanged)
	m.ok(put("s2"), Changed)
	m.ok(&redoubtv1.Operation{Operation: &redoubtv1.Operation_RemoveServer{RemoveServer: &redoubtv1.RemoveServerOp{Id: "s2"}}}, Changed)
	m.no(put("s2"), codes.NotFound, "no member")
	m.no(&redoubtv1.Operation{Operation: &redoubtv1.Operation_PutAuthority{PutAuthority: &redoubtv1.PutAuthority{Authority: &redoubtv1.Authority{Server: "s2", Certificate: []byte("new")}}}}, codes.NotFound, "no member")
	if n := len(m.Snapshot().Authorities(nil)); n != 2 {
		t.Fatalf("%d authorities: what s2 signed is in use, and nothing new may be", n)
	}
}

func TestReports(t *testing.T) {
	m := newMachine(t)
	m.fleet()
	m.no(opReport(report("nx", "oslo", 1, 1, 1)), codes.NotFound, "not enrolled")
	m.no(opReport(report("n1", "lab", 2, 1000, 256<<20)), codes.FailedPrecondition, "enrolled in site oslo")
	m.ok(opReport(report("n1", "oslo", 1, 1000, 256<<20)), Unchanged)
	m.no(opReport(report("n1", "oslo", 1, 2000, 256<<20)), codes.FailedPrecondition, "under generation 1")
	m.ok(opReport(report("n1", "oslo", 5, 2000, 256<<20)), Changed)
	m.no(opReport(report("n1", "oslo", 4, 2000, 256<<20)), codes.FailedPrecondition, "never moves back")
	m.ok(opMark("n1", nil, proto.Bool(true)), Changed)
	m.ok(opReport(report("n1", "oslo", 5, 2000, 256<<20)), Changed) // it is back
	if n, _ := m.Snapshot().Node(nil, "n1"); n.Lost {
		t.Fatal("its report does not clear lost")
	}
	twice := report("n1", "oslo", 6, 1, 1)
	twice.Findings = append(twice.Findings, twice.Findings[0])
	m.no(opReport(twice), codes.InvalidArgument, "two findings of runc")
}

func TestAStalePlanLoses(t *testing.T) {
	m := newMachine(t)
	m.fleet()
	m.ok(opWorkload(workload("web", "Service", "sandbox", 8080)), Created)
	for name, c := range map[string]struct {
		edit  func(*redoubtv1.Assign)
		code  codes.Code
		words string
	}{
		"generation": {func(a *redoubtv1.Assign) { a.Assignment.NodeGeneration = 0 }, codes.FailedPrecondition, "generation 0"},
		"revision":   {func(a *redoubtv1.Assign) { a.Assignment.Revision-- }, codes.FailedPrecondition, "revision"},
		"ordinal":    {func(a *redoubtv1.Assign) { a.Ordinal = 9; a.Assignment.Instance = "web-9" }, codes.FailedPrecondition, "the next is 1"},
		"name":       {func(a *redoubtv1.Assign) { a.Assignment.Instance = "web-2" }, codes.InvalidArgument, "is named web-1"},
		"site":       {func(a *redoubtv1.Assign) { a.Assignment.Site = "lab" }, codes.FailedPrecondition, "of site oslo"},
		"node":       {func(a *redoubtv1.Assign) { a.Assignment.Node = "nx" }, codes.NotFound, "nx"},
		"workload":   {func(a *redoubtv1.Assign) { a.Assignment.Workload = "%s" }, codes.NotFound, "does not exist"},
		"class":      {func(a *redoubtv1.Assign) { a.Assignment.Class = redoubtv1.IsolationClass_ISOLATION_CLASS_VM }, codes.FailedPrecondition, "verified as sandbox"},
		"below the floor": {func(a *redoubtv1.Assign) {
			a.Assignment.Runtime, a.Assignment.Variant, a.Assignment.Class = "runc", "", redoubtv1.IsolationClass_ISOLATION_CLASS_CONTAINER
		}, codes.FailedPrecondition, "below the floor"},
		"a lower floor": {func(a *redoubtv1.Assign) {
			a.Assignment.Runtime, a.Assignment.Variant, a.Assignment.Class = "runc", "", redoubtv1.IsolationClass_ISOLATION_CLASS_CONTAINER
			a.Assignment.Floor = redoubtv1.IsolationClass_ISOLATION_CLASS_CONTAINER
		}, codes.FailedPrecondition, "the floor of default/web is sandbox"},
		"not verified": {func(a *redoubtv1.Assign) {
			a.Assignment.Runtime, a.Assignment.Variant, a.Assignment.Class = "kata-qemu", "", redoubtv1.IsolationClass_ISOLATION_CLASS_VM
		}, codes.FailedPrecondition, "not verified"},
		"variant":        {func(a *redoubtv1.Assign) { a.Assignment.Variant = "kvm" }, codes.FailedPrecondition, "not verified"},
		"under-reserved": {func(a *redoubtv1.Assign) { a.Assignment.MemoryBytes -= 16 << 20 }, codes.FailedPrecondition, "reserves"},
		"no room":        {func(a *redoubtv1.Assign) { a.Assignment.CpuMillis = 1 << 62 }, codes.ResourceExhausted, "are free"},
		"uid":            {func(a *redoubtv1.Assign) { a.Assignment.Uid = "xxxxxxxdetachxxxxxxx" }, codes.InvalidArgument, "uid"},
	} {
		a := m.plan(1, "web", "n1", "gvisor")
		c.edit(a)
		t.Run(name, func(t *testing.T) { m.t = t; m.no(opAssign(a), c.code, c.words) })
	}
	m.t = t
	old := m.plan(1, "web", "n1", "gvisor")
	m.ok(opMark("n1", proto.Bool(true), nil), Changed)
	m.no(opAssign(old), codes.FailedPrecondition, "cordoned")
	m.ok(opMark("n1", proto.Bool(false), proto.Bool(true)), Changed)
	m.no(opAssign(old), codes.FailedPrecondition, "lost")
	m.ok(opMark("n1", nil, proto.Bool(false)), Changed)
	at := m.ok(opAssign(old), Created)
	i, _ := m.Snapshot().Instance(nil, uid(1))
	if i.Fence.Index != at || i.Version != at || i.Spec == nil || i.Status.Phase != fleet.InstanceAssigned {
		t.Fatalf("assigned at %d as %+v", at, i)
	}
	m.no(opAssign(old), codes.AlreadyExists, "taken")
	m.no(opAssign(m.plan(2, "web", "n1", "gvisor")), codes.ResourceExhausted, "host port 8080/TCP is taken by default/web-1")
	m.ok(opAssign(m.plan(2, "web", "n2", "gvisor")), Created)
}

func TestRevisionsKeepPeopleApart(t *testing.T) {
	m := newMachine(t)
	m.fleet()
	w := workload("web", "Service", "sandbox", 0)
	put := func(expected uint64, name string) *redoubtv1.Operation {
		op := opWorkload(workload("web", "Service", name, 0))
		op.GetPutWorkload().ExpectedRevision = proto.Uint64(expected)
		return op
	}
	first := m.ok(put(0, "sandbox"), Created)
	m.no(put(0, "vm"), codes.AlreadyExists, "exists already")
	if again := m.ok(opWorkload(w), Unchanged); again != first {
		t.Fatalf("unchanged moved the revision from %d to %d", first, again)
	}
	second := m.ok(put(first, "vm"), Changed)
	m.no(put(first, "container"), codes.Aborted, "by ann")
	m.no(opWorkload(workload("web", "Job", "vm", 0)), codes.FailedPrecondition, "cannot become")
	m.no(opWorkload(&redoubtv1.Workload{Kind: "Service", Name: "no"}), codes.InvalidArgument, "containers")
	stop := opStopWorkload("web")
	stop.GetStopWorkload().ExpectedRevision = proto.Uint64(first)
	m.no(stop, codes.Aborted, "read it and try again")
	stop.GetStopWorkload().ExpectedRevision = proto.Uint64(second)
	m.ok(stop, Changed)
}

func TestStoppingEndsInForgetting(t *testing.T) {
	m := newMachine(t)
	m.fleet()
	m.ok(opWorkload(workload("web", "Service", "sandbox", 0)), Created)
	m.ok(opAssign(m.plan(1, "web", "n1", "gvisor")), Created)
	m.no(opRemoveWorkload("web"), codes.FailedPrecondition, "not stopping")
	m.no(opRemove(1), codes.FailedPrecondition, "may still run")
	m.ok(opStopWorkload("web"), Changed)
	if i, _ := m.Snapshot().Instance(nil, uid(1)); !i.Stop || !i.Live() {
		t.Fatalf("instance %+v: want told to stop, its room still held", i)
	}
	m.no(opRemoveWorkload("web"), codes.FailedPrecondition, "still has 1")
	m.ok(m.opStatus("n1", 1, 1, stopped), Changed)
	m.ok(opRemove(1), Changed)
	m.ok(opRemoveWorkload("web"), Changed)

	// Applied again while the old one is still ending: new uid, ordinals go on.
	m.ok(opWorkload(workload("api", "Service", "sandbox", 0)), Created)
	m.ok(opAssign(m.plan(2, "api", "n1", "gvisor")), Created)
	m.ok(opStopWorkload("api"), Changed)
	again := opWorkload(workload("api", "Service", "sandbox", 0))
	again.GetPutWorkload().Uid = "w-api-2"
	m.ok(again, Created)
	w, _ := m.Snapshot().Workload(nil, "default", "api")
	if w.Stopping || w.UID != "w-api-2" || w.NextOrdinal != 2 {
		t.Fatalf("came back as %+v", w)
	}
	m.ok(opRemoveWorkload("api"), Unchanged) // meant the old one
}

func TestANodeSpeaksForItselfOnly(t *testing.T) {
	m := newMachine(t)
	m.fleet()
	m.ok(opWorkload(workload("web", "Service", "sandbox", 0)), Created)
	m.ok(opAssign(m.plan(1, "web", "n1", "gvisor")), Created)
	m.no(m.opStatus("n2", 1, 9, running), codes.PermissionDenied, "speaks for itself only")
	m.no(m.opStatus("n1", 1, 9, redoubtv1.InstancePhase_INSTANCE_PHASE_LOST), codes.InvalidArgument, "not an agent's to say")
	m.ok(m.opStatus("n1", 1, 5, running), Changed)
	m.ok(m.opStatus("n1", 1, 4, stopped), Unchanged) // an older word
	m.ok(m.opStatus("n1", 7, 1, running), Unchanged) // forgotten here
	if i, _ := m.Snapshot().Instance(nil, uid(1)); i.Status.Phase != fleet.InstanceRunning || i.Status.Sequence != 5 {
		t.Fatalf("status %+v", i.Status)
	}
	bad := m.opStatus("n1", 1, 6, running)
	bad.GetPutStatus().Statuses[0].Fence = nil
	m.no(bad, codes.InvalidArgument, "carries fence 0")
	// Servers of other versions take it, whatever its length.
	long := m.opStatus("n1", 1, 7, running)
	long.GetPutStatus().Statuses[0].Message = strings.Repeat("x", 2*maxText)
	long.GetPutStatus().Statuses[0].LastEnd = strings.Repeat("x", 2*maxText)
	m.ok(long, Changed)
}

func TestALostInstanceFreesItsRoomAndStaysUntilItsNodeSays(t *testing.T) {
	m := newMachine(t)
	m.fleet()
	m.ok(opWorkload(workload("web", "Service", "sandbox", 8080)), Created)
	m.ok(opAssign(m.plan(1, "web", "n1", "gvisor")), Created)
	m.ok(m.opStatus("n1", 1, 1, running), Changed)
	m.ok(opStop(1, true), Changed)
	m.ok(opStop(1, true), Unchanged)
	if cpu, memory := m.Snapshot().Allocated("n1"); cpu != 0 || memory != 0 {
		t.Fatalf("still holds %dm and %d bytes", cpu, memory)
	}
	m.ok(opAssign(m.plan(2, "web", "n2", "gvisor")), Created)
	m.ok(m.opStatus("n1", 1, 2, running), Unchanged) // back, and still running
	i, _ := m.Snapshot().Instance(nil, uid(1))
	if i.Status.Phase != fleet.InstanceLost || !i.Stop {
		t.Fatalf("the older of two is %s, stop %v", i.Status.Phase, i.Stop)
	}
	m.ok(m.opStatus("n1", 1, 3, stopped), Changed)
	m.ok(opRemove(1), Changed)
}

func TestAJobCountsEachInstanceOnce(t *testing.T) {
	m := newMachine(t)
	m.fleet()
	m.ok(opWorkload(workload("batch", "Job", "container", 0)), Created)
	counts := func(completions, failures uint32) {
		t.Helper()
		w, _ := m.Snapshot().Workload(nil, "default", "batch")
		if w.Completions != completions || w.Failures != failures {
			t.Fatalf("%d completions and %d failures, want %d and %d", w.Completions, w.Failures, completions, failures)
		}
	}
	m.ok(opAssign(m.plan(1, "batch", "n1", "runc")), Created)
	m.ok(m.opStatus("n1", 1, 1, failed), Changed)
	m.ok(m.opStatus("n1", 1, 2, failed), Unchanged)
	m.ok(m.opStatus("n1", 1, 3, running), Unchanged)
	counts(0, 1)
	m.ok(opAssign(m.plan(2, "batch", "n1", "runc")), Created)
	m.ok(m.opStatus("n1", 2, 1, succeeded), Changed)
	m.ok(m.opStatus("n1", 2, 2, succeeded), Unchanged)
	counts(1, 1)
	m.ok(opAssign(m.plan(3, "batch", "n1", "runc")), Created)
	m.ok(opStop(3, false), Changed)
	m.ok(m.opStatus("n1", 3, 1, failed), Changed)
	counts(1, 1)

	// More of the same goes on; another image is another run.
	m.ok(opAssign(m.plan(4, "batch", "n1", "runc")), Created)
	more := workload("batch", "Job", "container", 0)
	more.Job = &redoubtv1.Job{Completions: proto.Uint32(3)}
	m.ok(opWorkload(more), Changed)
	counts(1, 1)
	other := proto.Clone(more).(*redoubtv1.Workload)
	other.Containers[0].Image = "registry.test/x:2"
	m.ok(opWorkload(other), Changed)
	counts(0, 0)
	m.ok(m.opStatus("n1", 4, 1, succeeded), Changed)
	counts(0, 0)
}
