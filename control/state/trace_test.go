package state

import (
	"bytes"
	"strings"
	"testing"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// TestATraceDecidesNothing: with a trace, with one that is none, and without,
// every operation ends alike; what is none is not kept, and what is survives a
// snapshot.
func TestATraceDecidesNothing(t *testing.T) {
	const good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	run := func(trace string) *machine {
		m := newMachine(t)
		m.fleet()
		put := func(w *redoubtv1.Workload) *redoubtv1.Operation {
			op := opWorkload(w)
			op.GetPutWorkload().Trace = trace
			return op
		}
		m.ok(put(workload("web", "Service", "sandbox", 0)), Created)
		m.ok(put(workload("web", "Service", "sandbox", 0)), Unchanged)
		a := m.plan(1, "web", "n1", "gvisor")
		a.Assignment.Trace = trace
		m.ok(opAssign(a), Created)
		m.ok(put(workload("web", "Service", "sandbox", 8080)), Changed)
		return m
	}
	kept := func(s *Store) (workload, instance string) {
		w, _ := s.Snapshot().Workload(nil, "default", "web")
		i, _ := s.Snapshot().Instance(nil, uid(1))
		return w.Trace, i.Trace
	}
	none := run("")
	for _, hostile := range []string{strings.Repeat("a", 1<<16), "01" + good[2:], good + "\n", strings.ToUpper(good)} {
		m := run(hostile)
		if w, i := kept(m.Store); w != "" || i != "" {
			t.Errorf("of %.60q %q and %q are kept", hostile, w, i)
		}
		if !bytes.Equal(bytesWithoutApplied(m.Store), bytesWithoutApplied(none.Store)) {
			t.Errorf("%.60q leaves another state than none", hostile)
		}
	}
	m := run(good)
	if w, i := kept(m.Store); w != good || i != good {
		t.Errorf("%q and %q are kept", w, i)
	}
	restored := newMachine(t)
	if err := restored.restoreFrom(snapshotBytes(m.Store)); err != nil {
		t.Fatal(err)
	}
	if w, i := kept(restored.Store); w != good || i != good {
		t.Errorf("after a snapshot there are %q and %q", w, i)
	}
}
