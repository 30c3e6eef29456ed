package state

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/isolation"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

func TestACommandIsDoneOnceWithinTheWindow(t *testing.T) {
	m := newMachine(t)
	m.ok(opInit(), Created)
	cmd := &redoubtv1.Command{Id: "x", Operations: []*redoubtv1.Operation{opToken("t1", "", "")}}
	first := m.fsm.ApplyCommand(10, cmd)
	again := m.fsm.ApplyCommand(10+DedupWindow-1, cmd)
	if first.Duplicate || !again.Duplicate || again.Index != 10 || !proto.Equal(first.Results[0], again.Results[0]) {
		t.Fatalf("first %+v, again %+v", first, again)
	}
	late := m.fsm.ApplyCommand(10+DedupWindow, cmd)
	if late.Duplicate || late.Results[0].GetResult() != Unchanged {
		t.Fatalf("after the window: %+v", late)
	}
	if got := m.Index(); got != 10+DedupWindow {
		t.Fatalf("index %d", got)
	}
}

func TestARefusedOperationDoesNotUndoOthers(t *testing.T) {
	m := newMachine(t)
	m.fleet()
	r := m.do(opToken("a", "", ""), opReport(report("nx", "x", 1, 1, 1)), opToken("b", "", ""), &redoubtv1.Operation{})
	if r[0].GetCode() != 0 || r[1].GetCode() == 0 || r[2].GetCode() != 0 || r[3].GetCode() == 0 {
		t.Fatalf("results %v", r)
	}
	if a := m.fsm.Apply(rawLog(m.index+1, []byte{0xff})).(Applied); a.Err == nil || m.Index() != m.index+1 {
		t.Fatalf("an entry that is no command: %+v at %d", a, m.Index())
	}
}

func TestAnUnknownFeatureLevelStopsTheServer(t *testing.T) {
	defer func() {
		if r := recover(); r == nil || !strings.Contains(r.(string), "install the newer version") {
			t.Fatalf("went on: %v", r)
		}
	}()
	m := newMachine(t)
	m.fsm.ApplyCommand(1, &redoubtv1.Command{FeatureLevel: FeatureLevel + 1})
}

func TestWhatANodeHasToLearn(t *testing.T) {
	m := newMachine(t)
	m.fleet()
	m.ok(opWorkload(workload("web", "Service", "sandbox", 0)), Created)
	v0 := m.Snapshot().Assignments(nil, "n1")
	if len(v0.Updated) != 0 || v0.Version != m.index {
		t.Fatalf("%+v", v0)
	}
	ws := NewWatchSet()
	m.Snapshot().Assignments(ws, "n1")
	m.ok(opAssign(m.plan(1, "web", "n1", "gvisor")), Created)
	if !closed(ws) {
		t.Fatal("an assignment does not wake who watches its node")
	}
	m.ok(opAssign(m.plan(2, "web", "n2", "gvisor")), Created)
	ws = NewWatchSet()
	m.Snapshot().Assignments(ws, "n1")
	m.ok(m.opStatus("n2", 2, 1, running), Changed)
	if closed(ws) {
		t.Fatal("another node's instance wakes who watches n1")
	}
	since := func(v uint64) Changes {
		t.Helper()
		c, ok := m.Snapshot().AssignmentsSince(nil, "n1", v)
		if !ok || c.Version != m.index {
			t.Fatalf("since %d: a gap", v)
		}
		return c
	}
	v1 := since(v0.Version)
	if len(v1.Updated) != 1 || v1.Updated[0].UID != uid(1) {
		t.Fatalf("%+v", v1)
	}
	m.ok(m.opStatus("n1", 1, 1, running), Changed)
	if c := since(v1.Version); !c.Empty() {
		t.Fatalf("its own status is news to an agent: %+v", c)
	}
	m.ok(opStop(1, false), Changed)
	if c := since(v1.Version); len(c.Updated) != 1 || !c.Updated[0].MustStop() {
		t.Fatalf("%+v", c)
	}
	v2 := m.index
	m.ok(m.opStatus("n1", 1, 2, stopped), Changed)
	m.ok(opRemove(1), Changed)
	if c := since(v2); len(c.Removed) != 1 || c.Removed[0] != uid(1) || len(c.Updated) != 0 {
		t.Fatalf("%+v", c)
	}
	for _, gap := range []uint64{0, m.index + 1} {
		if _, ok := m.Snapshot().AssignmentsSince(nil, "n1", gap); ok {
			t.Fatalf("since %d is no gap", gap)
		}
	}
	// Who restored a snapshot knows no removals before it, and must not guess.
	data, at := snapshotBytes(m.Store), m.index
	if err := m.restoreFrom(data); err != nil {
		t.Fatal(err)
	}
	if _, ok := m.Snapshot().AssignmentsSince(nil, "n1", at-1); ok {
		t.Fatal("after a restore, older versions must be a gap")
	}
	if _, ok := m.Snapshot().AssignmentsSince(nil, "n1", at); !ok {
		t.Fatal("after a restore, its own version is no gap")
	}
	// The window passes: the removal is forgotten, and with it what came before.
	m.index += TombstoneWindow
	m.do(opToken("late", "", ""))
	if _, ok := m.Snapshot().AssignmentsSince(nil, "n1", m.index); !ok {
		t.Fatal("now is no gap")
	}
}

func TestTheWindowOfRemovals(t *testing.T) {
	m := newMachine(t)
	m.fleet()
	m.ok(opWorkload(workload("web", "Service", "sandbox", 0)), Created)
	m.ok(opAssign(m.plan(1, "web", "n1", "gvisor")), Created)
	m.ok(m.opStatus("n1", 1, 1, stopped), Changed)
	known := m.index
	m.ok(opRemove(1), Changed)
	m.index += TombstoneWindow
	m.do(opToken("late", "", ""))
	if _, ok := m.Snapshot().AssignmentsSince(nil, "n1", known); ok {
		t.Fatal("the removal is forgotten, and the answer pretends to know")
	}
	if _, ok := m.Snapshot().AssignmentsSince(nil, "n1", known+1); !ok {
		t.Fatal("nothing was removed since")
	}
}

func closed(ws WatchSet) bool {
	for ch := range ws {
		select {
		case <-ch:
			return true
		default:
		}
	}
	return false
}

func TestWaitAndChanged(t *testing.T) {
	m := newMachine(t)
	changed := m.Changed()
	done := make(chan error, 1)
	go func() { done <- m.Wait(context.Background(), 2) }()
	m.do(opInit())
	<-changed
	m.do(opToken("t", "", ""))
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if err := m.Wait(ctx, 99); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
}

func TestAViewIsOneMomentAndRestoreWakes(t *testing.T) {
	m := newMachine(t)
	m.fleet()
	data := snapshotBytes(m.Store)
	v := m.Snapshot()
	before := len(v.Tokens(nil))
	m.ok(opToken("later", "", ""), Created)
	if len(v.Tokens(nil)) != before || v.Index() != m.index-1 {
		t.Fatal("a view moved")
	}
	ws, changed := NewWatchSet(), m.Changed()
	m.Snapshot().Tokens(ws)
	if err := m.restoreFrom(data); err != nil {
		t.Fatal(err)
	}
	<-changed
	if !closed(ws) {
		t.Fatal("a restore wakes no watcher")
	}
	if _, ok := m.Snapshot().Token("later"); ok {
		t.Fatal("restore left what was not in the snapshot")
	}
}

func TestADamagedSnapshotChangesNothing(t *testing.T) {
	m := newMachine(t)
	m.fleet()
	m.ok(opWorkload(workload("web", "Service", "sandbox", 8080)), Created)
	m.ok(opAssign(m.plan(1, "web", "n1", "gvisor")), Created)
	good := snapshotBytes(m.Store)
	o := newMachine(t)
	o.ok(opInit(), Created)
	before := snapshotBytes(o.Store)
	for n := range len(good) {
		if err := o.restoreFrom(good[:n]); err == nil {
			t.Fatalf("cut after %d of %d bytes, it was taken", n, len(good))
		}
	}
	for name, data := range map[string][]byte{"twice": append(bytes.Clone(good), good...), "more": append(bytes.Clone(good), 0)} {
		if err := o.restoreFrom(data); err == nil {
			t.Fatalf("%s: was taken", name)
		}
	}
	if !bytes.Equal(before, snapshotBytes(o.Store)) {
		t.Fatal("a refused snapshot changed the state")
	}
	if err := o.restoreFrom(good); err != nil || !bytes.Equal(good, snapshotBytes(o.Store)) {
		t.Fatalf("the whole one: %v", err)
	}
}

func TestEnumerationsHaveTheSameNumbers(t *testing.T) {
	for i := range redoubtv1.InstancePhase_name {
		if want := strings.TrimPrefix(redoubtv1.InstancePhase_name[i], "INSTANCE_PHASE_"); i > 0 && !strings.EqualFold(want, fleet.InstancePhase(i).String()) {
			t.Errorf("phase %d is %s and %s", i, want, fleet.InstancePhase(i))
		}
	}
	for i, n := range redoubtv1.IsolationClass_name {
		if want := strings.TrimPrefix(n, "ISOLATION_CLASS_"); i > 0 && !strings.EqualFold(want, isolation.Class(i).String()) {
			t.Errorf("class %d is %s and %s", i, want, isolation.Class(i))
		}
	}
	for i, n := range redoubtv1.FindingState_name {
		if want := strings.TrimPrefix(n, "FINDING_STATE_"); i > 0 && !strings.EqualFold(want, isolation.State(i).String()) {
			t.Errorf("state %d is %s and %s", i, want, isolation.State(i))
		}
	}
	for i, n := range redoubtv1.KvmVerdict_name {
		if want := strings.TrimPrefix(n, "KVM_VERDICT_"); i > 0 && !strings.EqualFold(want, isolation.KVMVerdict(i).String()) {
			t.Errorf("verdict %d is %s and %s", i, want, isolation.KVMVerdict(i))
		}
	}
	for i, n := range redoubtv1.NodeState_name {
		if want := strings.TrimPrefix(n, "NODE_STATE_"); i > 0 && !strings.EqualFold(want, fleet.NodeState(i).String()) {
			t.Errorf("node state %d is %s and %s", i, want, fleet.NodeState(i))
		}
	}
}

// random draws an operation, mostly a sensible one.
func (m *machine) random(t *rapid.T, n int) *redoubtv1.Operation {
	node := rapid.SampledFrom([]string{"n1", "n2"}).Draw(t, "node")
	site := map[string]string{"n1": "oslo", "n2": "lab"}[node]
	name := rapid.SampledFrom([]string{"web", "api", "batch"}).Draw(t, "workload")
	some := rapid.IntRange(1, n).Draw(t, "instance")
	truth := rapid.Bool().Draw(t, "bool")
	v := m.Snapshot()
	switch rapid.IntRange(0, 14).Draw(t, "kind") {
	case 14:
		return opEvents(rapid.SampledFrom([]*redoubtv1.Event{nil, pendingEvent(name, "why"), nodeEvent(node, "Silent")}).Draw(t, "event"))
	case 0:
		g := uint64(rapid.IntRange(1, 6).Draw(t, "generation"))
		return opReport(report(node, site, g, rapid.Int64Range(100, 1000).Draw(t, "cpu"), rapid.Int64Range(64, 512).Draw(t, "MiB")<<20))
	case 1:
		if rapid.Bool().Draw(t, "which") {
			return opMark(node, &truth, nil)
		}
		return opMark(node, nil, &truth)
	case 2, 3:
		kind := "Service"
		if name == "batch" {
			kind = "Job"
		}
		port := rapid.SampledFrom([]uint32{0, 8080, 8081}).Draw(t, "port")
		return opWorkload(workload(name, kind, rapid.SampledFrom([]string{"container", "sandbox"}).Draw(t, "floor"), port))
	case 4:
		return opStopWorkload(name)
	case 5:
		return opRemoveWorkload(name)
	case 6:
		return opStop(some, truth)
	case 7:
		return opRemove(some)
	case 8, 9:
		phase := redoubtv1.InstancePhase(rapid.IntRange(0, 9).Draw(t, "phase"))
		return m.opStatus(node, some, uint64(rapid.IntRange(1, 5).Draw(t, "sequence")), phase)
	case 10:
		return opToken(fmt.Sprintf("r%d", some), "", "")
	}
	if _, ok := v.Workload(nil, "default", name); !ok {
		return opWorkload(workload(name, map[bool]string{true: "Job", false: "Service"}[name == "batch"], "container", 0))
	}
	a := m.plan(n, name, node, rapid.SampledFrom([]string{"runc", "gvisor"}).Draw(t, "runtime"))
	a.Assignment.MemoryBytes += rapid.Int64Range(0, 64).Draw(t, "more") << 20
	if rapid.IntRange(0, 9).Draw(t, "spoil") == 0 {
		a.Assignment.NodeGeneration++
	}
	return opAssign(a)
}

func TestNoSequenceOfCommandsBreaksAnInvariant(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMachine(t)
		m.fleet()
		twin := newMachine(t)
		twin.fleet()
		taken := 0
		ordinals := map[string]bool{}
		for n := 1; n <= rapid.IntRange(1, 60).Draw(t, "length"); n++ {
			op := m.random(t, n)
			r := m.do(op)
			for i, s := range twin.do(op) {
				if !proto.Equal(r[i], s) {
					t.Fatalf("two machines answer %v and %v", r[i], s)
				}
			}
			if a := op.GetAssign(); a != nil && r[0].GetCode() == 0 {
				taken++
				m.checkAssigned(t, a)
				w, _ := m.Snapshot().Workload(nil, "default", a.Assignment.Workload)
				// While a workload is known, a name is given once. (Its creation tells
				// it from an earlier one: the test's uids do not.)
				k := fmt.Sprintf("%s/%s@%d", w.UID, a.Assignment.Instance, w.Created.Unix())
				if ordinals[k] {
					t.Fatalf("the name %s was given twice", a.Assignment.Instance)
				}
				ordinals[k] = true
			}
			m.checkPorts(t)
		}
		data := snapshotBytes(m.Store)
		if !bytes.Equal(data, snapshotBytes(twin.Store)) {
			t.Fatal("the same commands gave other bytes")
		}
		fresh := newMachine(t)
		if err := fresh.restoreFrom(data); err != nil {
			t.Fatalf("its own snapshot: %v", err)
		}
		if !bytes.Equal(data, snapshotBytes(fresh.Store)) {
			t.Fatal("restored and written again, the bytes differ")
		}
		// And it goes on alike.
		fresh.index = m.index
		for n := 61; n < 70; n++ {
			op := m.random(t, n)
			a, b := m.do(op), fresh.do(op)
			if !proto.Equal(a[0], b[0]) {
				t.Fatalf("after a restore %v is answered %v, not %v", op, b[0], a[0])
			}
		}
		if !bytes.Equal(snapshotBytes(m.Store), snapshotBytes(fresh.Store)) {
			t.Fatal("after a restore the machines drift apart")
		}
	})
}

// checkAssigned looks at the node's books the slow way.
func (m *machine) checkAssigned(t *rapid.T, a *redoubtv1.Assign) {
	v := m.Snapshot()
	n, _ := v.Node(nil, isolation.NodeID(a.Assignment.Node))
	var cpu, memory int64
	for _, i := range v.Instances(nil) {
		if i.Node != n.ID {
			continue
		}
		switch i.Status.Phase {
		case fleet.InstanceSucceeded, fleet.InstanceFailed, fleet.InstanceStopped, fleet.InstanceRejected, fleet.InstanceLost:
			continue
		}
		cpu, memory = cpu+i.CPUMillis, memory+i.MemoryBytes
	}
	if cpu > n.Report.Host.CPUMillis || memory > n.Report.Host.MemoryBytes {
		t.Fatalf("node %s has %dm and %d bytes, %dm and %d are given away", n.ID, n.Report.Host.CPUMillis, n.Report.Host.MemoryBytes, cpu, memory)
	}
	i, _ := v.Instance(nil, a.Assignment.Uid)
	if i.Class < i.Spec.Isolation.Floor {
		t.Fatalf("%s is %s, its floor %s", i.Instance, i.Class, i.Spec.Isolation.Floor)
	}
	if n.Cordoned || n.Lost {
		t.Fatalf("%s was given to a node that is cordoned or lost", i.Instance)
	}
}

func (m *machine) checkPorts(t *rapid.T) {
	held := map[string]string{}
	for _, i := range m.Snapshot().Instances(nil) {
		if !i.Live() {
			continue
		}
		for _, p := range i.Spec.HostPorts() {
			k := fmt.Sprintf("%s:%d/%s", i.Node, p.Port, p.Protocol)
			if other, ok := held[k]; ok {
				t.Fatalf("%s is held by %s and %s", k, other, i.Instance)
			}
			held[k] = i.Instance
		}
	}
}

func FuzzRestore(f *testing.F) {
	m := newMachine(f)
	m.fleet()
	m.ok(opWorkload(workload("web", "Service", "sandbox", 8080)), Created)
	m.ok(opAssign(m.plan(1, "web", "n1", "gvisor")), Created)
	f.Add(snapshotBytes(m.Store))
	m.ok(opEvents(pendingEvent("web", "why")), Created)
	f.Add(snapshotBytes(m.Store))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		s := NewStore()
		if err := s.FSM().Restore(io.NopCloser(bytes.NewReader(data))); err != nil {
			return
		}
		first := snapshotBytes(s)
		o := NewStore()
		if err := o.FSM().Restore(io.NopCloser(bytes.NewReader(first))); err != nil {
			t.Fatalf("what was taken and written again is refused: %v", err)
		}
		if !bytes.Equal(first, snapshotBytes(o)) {
			t.Fatal("written again, it differs")
		}
	})
}

func FuzzApply(f *testing.F) {
	for _, op := range []*redoubtv1.Operation{opInit(), opToken("t", "", ""), opBind("t1", "n1", "oslo", "k1"), opReport(report("n1", "oslo", 2, 1, 1)), opWorkload(workload("web", "Job", "vm", 1)), opStopWorkload("web"), opStop(1, true), opEvents(nodeEvent("n1", "Silent"))} {
		b, _ := proto.Marshal(&redoubtv1.Command{Id: "x", Operations: []*redoubtv1.Operation{op}})
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var cmd redoubtv1.Command
		if proto.Unmarshal(data, &cmd) == nil && cmd.GetFeatureLevel() > FeatureLevel {
			t.Skip("needs a feature level that this version has: another stops the server, on purpose")
		}
		m := newMachine(t)
		m.fleet()
		m.fsm.Apply(rawLog(m.index+1, data))
		bytesOf := snapshotBytes(m.Store)
		o := newMachine(t)
		if err := o.restoreFrom(bytesOf); err != nil {
			t.Fatalf("a command made a state that cannot be restored: %v", err)
		}
		if !bytes.Equal(bytesOf, snapshotBytes(o.Store)) {
			t.Fatal("restored and written again, the bytes differ")
		}
	})
}
