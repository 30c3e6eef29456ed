package state

import (
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"

	"redoubt.dev/redoubt/control/fleet"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
	"redoubt.dev/redoubt/proto/tracing"
)

// putWorkload takes desired state. One that is being stopped comes back as a
// new workload under its name: what is left of the old one still ends, ordinals
// go on.
func (a *apply) putWorkload(op *redoubtv1.PutWorkload) (outcome, error) {
	spec, err := fleet.WorkloadFromProto(op.GetWorkload())
	if err != nil {
		return outcome{}, refuse(codes.InvalidArgument, "%v", err)
	}
	if err := texts("user", op.GetUser()); err != nil {
		return outcome{}, err
	}
	// What is no trace is none: a server that knows nothing of traces applies the
	// same entry, and must come to the same.
	trace := string(tracing.Parse(op.GetTrace()))
	before, ok := a.Workload(nil, spec.Namespace, spec.Name)
	if err := expected(op.ExpectedRevision, before, spec.Key()); err != nil {
		return outcome{}, err
	}
	if !ok {
		if err := segment("workload uid", op.GetUid()); err != nil {
			return outcome{}, err
		}
		a.put(tableWorkloads, &fleet.StoredWorkload{
			Spec: &spec, UID: op.GetUid(), Revision: a.index, NextOrdinal: 1,
			Created: a.now, Updated: a.now, UpdatedBy: op.GetUser(), Trace: trace,
		})
		a.noteWorkload(&spec, op.GetUser(), fleet.ReasonApplied, fmt.Sprintf("a new %s, revision %d", spec.Kind, a.index))
		return outcome{revision: a.index, result: Created}, nil
	}
	if before.Stopping {
		if err := segment("workload uid", op.GetUid()); err != nil {
			return outcome{}, err
		}
		a.put(tableWorkloads, &fleet.StoredWorkload{
			Spec: &spec, UID: op.GetUid(), Revision: a.index, NextOrdinal: before.NextOrdinal,
			Created: a.now, Updated: a.now, UpdatedBy: op.GetUser(), Trace: trace,
		})
		a.noteWorkload(&spec, op.GetUser(), fleet.ReasonApplied, fmt.Sprintf("a new %s while the one before still stops, revision %d", spec.Kind, a.index))
		return outcome{revision: a.index, result: Created}, nil
	}
	if spec.Kind != before.Spec.Kind {
		return outcome{}, refuse(codes.FailedPrecondition, "workload %s is a %s and cannot become a %s; stop it first, or choose another name", spec.Key(), before.Spec.Kind, spec.Kind)
	}
	diff := fleet.Diff(*before.Spec, spec)
	if len(diff) == 0 {
		return outcome{revision: before.Revision, result: Unchanged}, nil
	}
	w := *before
	w.Spec, w.Revision, w.Updated, w.UpdatedBy, w.Trace = &spec, a.index, a.now, op.GetUser(), trace
	if spec.Kind == fleet.KindJob && changesRun(diff) {
		// What runs or has run did another job. It ends, and counts for nothing.
		w.Failures, w.Completions = 0, 0
		a.stopInstances(spec.Namespace, spec.Name)
	}
	a.put(tableWorkloads, &w)
	a.noteWorkload(&spec, op.GetUser(), fleet.ReasonChanged, fmt.Sprintf("%s; revision %d", strings.Join(diff, ", "), a.index))
	return outcome{revision: a.index, result: Changed}, nil
}

// changesRun tells whether a Job's run begins anew: what its instances do has
// changed, not only how many there are or where.
func changesRun(paths []string) bool {
	for _, p := range paths {
		field, _, _ := strings.Cut(p, ".")
		field, _, _ = strings.Cut(field, "[")
		switch field {
		case "job", "placement", "disconnect", "labels":
		default:
			return true
		}
	}
	return false
}

// expected compares the revision that a writer has seen, so that two people do
// not overwrite each other. Seen 0 means: it did not exist.
func expected(revision *uint64, stored *fleet.StoredWorkload, name string) error {
	switch {
	case revision == nil:
		return nil
	case stored == nil && *revision != 0:
		return refuse(codes.Aborted, "workload %s has revision %d no longer: it was stopped and forgotten", name, *revision)
	case stored != nil && *revision == 0:
		return refuse(codes.AlreadyExists, "workload %s exists already, at revision %d by %s", name, stored.Revision, stored.UpdatedBy)
	case stored != nil && *revision != stored.Revision:
		return refuse(codes.Aborted, "workload %s is at revision %d by %s, not %d: read it and try again", name, stored.Revision, stored.UpdatedBy, *revision)
	}
	return nil
}

// stopInstances tells every instance of a workload that may still run to end.
func (a *apply) stopInstances(namespace, name string) {
	for _, i := range a.InstancesOfWorkload(nil, namespace, name) {
		if i.Stop || i.Status.Phase.Ended() {
			continue
		}
		stopped := *i
		stopped.Stop, stopped.Version = true, a.index
		a.put(tableInstances, &stopped)
	}
}

func (a *apply) stopWorkload(op *redoubtv1.StopWorkloadOp) (outcome, error) {
	name := op.GetNamespace() + "/" + op.GetName()
	before, ok := a.Workload(nil, op.GetNamespace(), op.GetName())
	if !ok {
		return outcome{}, refuse(codes.NotFound, "workload %.80s does not exist", name)
	}
	if before.Stopping {
		return outcome{revision: before.Revision, result: Unchanged}, nil
	}
	if err := expected(op.ExpectedRevision, before, name); err != nil {
		return outcome{}, err
	}
	if err := texts("user", op.GetUser()); err != nil {
		return outcome{}, err
	}
	w := *before
	w.Stopping, w.Revision, w.Updated, w.UpdatedBy = true, a.index, a.now, op.GetUser()
	a.put(tableWorkloads, &w)
	a.stopInstances(op.GetNamespace(), op.GetName())
	a.noteWorkload(w.Spec, op.GetUser(), fleet.ReasonStopRequest, "its instances end, then it is forgotten")
	return outcome{revision: a.index, result: Changed}, nil
}

func (a *apply) removeWorkload(op *redoubtv1.RemoveWorkload) (outcome, error) {
	w, ok := a.Workload(nil, op.GetNamespace(), op.GetName())
	if !ok || w.UID != op.GetUid() {
		return outcome{result: Unchanged}, nil
	}
	if !w.Stopping {
		return outcome{}, refuse(codes.FailedPrecondition, "workload %s is not stopping", w.Spec.Key())
	}
	if left := a.InstancesOfWorkload(nil, op.GetNamespace(), op.GetName()); len(left) > 0 {
		return outcome{}, refuse(codes.FailedPrecondition, "workload %s still has %d instances (%s on %s)", w.Spec.Key(), len(left), left[0].Instance, left[0].Node)
	}
	a.delete(tableWorkloads, w)
	a.noteWorkload(w.Spec, "", fleet.ReasonRemoved, "nothing is left of it")
	return outcome{revision: a.index, result: Changed}, nil
}
