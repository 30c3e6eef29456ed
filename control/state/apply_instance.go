package state

import (
	"fmt"
	"slices"

	"google.golang.org/grpc/codes"

	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/isolation"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
	"redoubt.dev/redoubt/proto/tracing"
)

// assign binds a new instance. The plan was made on a state that may be old;
// everything that it rests on is looked at again.
func (a *apply) assign(op *redoubtv1.Assign) (outcome, error) {
	as, err := assignmentWithoutSpec(op.GetAssignment())
	if err != nil {
		return outcome{}, refuse(codes.InvalidArgument, "assign: %v", err)
	}
	if err := instanceUID(as.UID); err != nil {
		return outcome{}, err
	}
	if err := texts("why", as.Why); err != nil {
		return outcome{}, err
	}
	if _, ok := a.Instance(nil, as.UID); ok {
		return outcome{}, refuse(codes.AlreadyExists, "assign %s: uid %s is taken", as.Instance, as.UID)
	}
	w, ok := a.Workload(nil, as.Namespace, as.Workload)
	if !ok {
		return outcome{}, refuse(codes.NotFound, "assign %.80q: workload %.80s/%.80s does not exist", as.Instance, as.Namespace, as.Workload)
	}
	stale := func(format string, args ...any) error {
		return refuse(codes.FailedPrecondition, "assign %.80s to %.80s: %s", as.Instance, as.Node, fmt.Sprintf(format, args...))
	}
	switch {
	case as.Instance != fleet.InstanceName(w.Spec.Name, op.GetOrdinal()):
		return outcome{}, refuse(codes.InvalidArgument, "assign %.80q: ordinal %d of %s is named %s", as.Instance, op.GetOrdinal(), w.Spec.Key(), fleet.InstanceName(w.Spec.Name, op.GetOrdinal()))
	case w.Stopping:
		return outcome{}, stale("workload %s is stopping", w.Spec.Key())
	case as.Revision != w.Revision:
		return outcome{}, stale("planned for revision %d of %s, now %d", as.Revision, w.Spec.Key(), w.Revision)
	case op.GetOrdinal() != w.NextOrdinal:
		return outcome{}, stale("ordinal %d, the next is %d", op.GetOrdinal(), w.NextOrdinal)
	case as.Stop:
		return outcome{}, refuse(codes.InvalidArgument, "assign %s: told to stop at once", as.Instance)
	}
	n, ok := a.Node(nil, as.Node)
	switch {
	case !ok || n.Report == nil:
		return outcome{}, refuse(codes.NotFound, "assign %s: node %.80q is not enrolled or has not reported", as.Instance, as.Node)
	case as.NodeGeneration != n.Generation():
		return outcome{}, stale("planned with generation %d of the node, now %d", as.NodeGeneration, n.Generation())
	case n.Cordoned:
		return outcome{}, stale("the node is cordoned")
	case n.Lost:
		return outcome{}, stale("the node is lost")
	case as.Site != n.Site:
		return outcome{}, stale("the node is of site %s, not %q", n.Site, as.Site)
	case len(w.Spec.Placement.Sites) > 0 && !slices.Contains(w.Spec.Placement.Sites, string(n.Site)):
		return outcome{}, stale("%s does not run in site %s", w.Spec.Key(), n.Site)
	}
	f, ok := n.Finding(as.Runtime, as.Variant)
	switch {
	case !ok || f.State != isolation.StateVerified:
		return outcome{}, stale("%s %s is not verified there", as.Runtime, as.Variant)
	case f.Class != as.Class:
		return outcome{}, stale("%s is verified as %s there, not %s", as.Runtime, f.Class, as.Class)
	case as.Floor != w.Spec.Isolation.Floor:
		return outcome{}, stale("the floor of %s is %s, not %s", w.Spec.Key(), w.Spec.Isolation.Floor, as.Floor)
	case f.Class < w.Spec.Isolation.Floor:
		return outcome{}, stale("%s gives %s, below the floor %s", as.Runtime, f.Class, w.Spec.Isolation.Floor)
	case as.CPUMillis < w.Spec.CPUMillis():
		return outcome{}, stale("reserves %dm of cpu, %s needs %dm", as.CPUMillis, w.Spec.Key(), w.Spec.CPUMillis())
	case as.MemoryBytes < w.Spec.MemoryBytes()+f.OverheadMemory:
		return outcome{}, stale("reserves %s of memory, %s needs %s and the sandbox %s", mebibytes(as.MemoryBytes), w.Spec.Key(), mebibytes(w.Spec.MemoryBytes()), mebibytes(f.OverheadMemory))
	}
	if err := a.room(n, as, w.Spec); err != nil {
		return outcome{}, err
	}

	as.Spec = w.Spec
	as.Fence.Index = a.index
	as.Trace = string(tracing.Parse(as.Trace))
	a.put(tableInstances, &fleet.Instance{
		Assignment: *as, Created: a.now, Version: a.index,
		Status: fleet.Status{UID: as.UID, Fence: as.Fence, Phase: fleet.InstanceAssigned, Runtime: as.Runtime},
	})
	next := *w
	next.NextOrdinal++
	a.put(tableWorkloads, &next)
	a.notePlaced(as)
	return outcome{revision: a.index, result: Created}, nil
}

// room checks capacity and host ports against the node's live instances.
func (a *apply) room(n *fleet.Node, as *fleet.Assignment, spec *fleet.Workload) error {
	cpu, memory := a.Allocated(n.ID)
	// Subtract, never add: a reservation near the end of int64 must not wrap.
	if free := n.Report.Host.CPUMillis - cpu; as.CPUMillis > free {
		return refuse(codes.ResourceExhausted, "assign %s to %s: needs %dm of cpu, %dm are free", as.Instance, n.ID, as.CPUMillis, free)
	}
	if free := n.Report.Host.MemoryBytes - memory; as.MemoryBytes > free {
		return refuse(codes.ResourceExhausted, "assign %s to %s: needs %s of memory, %s are free", as.Instance, n.ID, mebibytes(as.MemoryBytes), mebibytes(free))
	}
	ports := spec.HostPorts()
	if len(ports) == 0 {
		return nil
	}
	for _, i := range a.InstancesOf(nil, n.ID) {
		if !i.Live() {
			continue
		}
		for _, taken := range i.Spec.HostPorts() {
			for _, p := range ports {
				if p.Overlaps(taken) {
					return refuse(codes.ResourceExhausted, "assign %s to %s: host port %d/%s is taken by %s/%s", as.Instance, n.ID, p.Port, p.Protocol, i.Namespace, i.Instance)
				}
			}
		}
	}
	return nil
}

// stopAssignment tells an instance to end; lost also gives it up: a replacement
// may be made while it still runs out there, and when its node is back it is
// the older one, told to stop, and stays until the agent says that it is gone.
func (a *apply) stopAssignment(op *redoubtv1.StopAssignment) (outcome, error) {
	before, ok := a.Instance(nil, op.GetUid())
	if !ok {
		return outcome{}, refuse(codes.NotFound, "stop: no instance with uid %.40q", op.GetUid())
	}
	if err := texts("why", op.GetWhy()); err != nil {
		return outcome{}, err
	}
	i := *before
	if !i.Stop && !i.Status.Phase.Ended() {
		i.Stop, i.Version = true, a.index
	}
	if op.GetLost() && i.Live() {
		i.Status.Phase, i.Status.Message = fleet.InstanceLost, op.GetWhy()
	}
	if i == *before {
		return outcome{revision: before.Version, result: Unchanged}, nil
	}
	a.put(tableInstances, &i)
	switch {
	case i.Status.Phase == fleet.InstanceLost && before.Status.Phase != fleet.InstanceLost:
		a.noteInstance(&i, fleet.ByLeader, fleet.ReasonLost, true, op.GetWhy())
	case i.Stop && !before.Stop:
		a.noteInstance(&i, fleet.ByLeader, fleet.ReasonStopping, false, op.GetWhy())
	}
	return outcome{revision: i.Version, result: Changed}, nil
}

// removeAssignment forgets instances that are gone, all of them or none.
func (a *apply) removeAssignment(op *redoubtv1.RemoveAssignment) (outcome, error) {
	var gone []*fleet.Instance
	for _, uid := range op.GetUids() {
		i, ok := a.Instance(nil, uid)
		if !ok {
			continue
		}
		if !i.Gone() {
			return outcome{}, refuse(codes.FailedPrecondition, "remove %s from %s: it is %s and may still run", i.Instance, i.Node, i.Status.Phase)
		}
		gone = append(gone, i)
	}
	out := outcome{result: Unchanged}
	for _, i := range gone {
		a.delete(tableInstances, i)
		a.put(tableTombstones, &tombstone{node: i.Node, uid: i.UID, index: a.index})
		out = outcome{revision: a.index, result: Changed}
	}
	return out, nil
}
