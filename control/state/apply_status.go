package state

import (
	"cmp"
	"slices"

	"google.golang.org/grpc/codes"

	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/isolation"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// putStatus takes what one node says of its instances. A node speaks for itself
// only: a status of another's instance refuses the whole operation. A status of
// an instance that is forgotten is skipped, an older one too. Its texts are cut
// where a session takes them in and never refused here for their length: servers
// of other versions apply the same entry. Once the agent
// said that an instance ended, that stays; one that was given up as lost stays
// lost until the agent says how it ended.
func (a *apply) putStatus(op *redoubtv1.PutStatus) (outcome, error) {
	id := isolation.NodeID(op.GetNode())
	if _, ok := a.Node(nil, id); !ok {
		return outcome{}, refuse(codes.NotFound, "node %.40q is not enrolled", op.GetNode())
	}
	statuses := make([]*fleet.Status, 0, len(op.GetStatuses()))
	for _, p := range op.GetStatuses() {
		s, err := StatusFromProto(p)
		if err != nil {
			return outcome{}, refuse(codes.InvalidArgument, "node %s: status of %.40q: %v", id, p.GetUid(), err)
		}
		if s.Phase == fleet.InstanceUnknown || s.Phase == fleet.InstanceLost {
			return outcome{}, refuse(codes.InvalidArgument, "node %s: status of %s: phase %s is not an agent's to say", id, s.UID, s.Phase)
		}
		if i, ok := a.Instance(nil, s.UID); ok {
			if i.Node != id {
				return outcome{}, refuse(codes.PermissionDenied, "node %s says something of %s, which is on %s: a node speaks for itself only", id, i.Instance, i.Node)
			}
			if s.Fence.Index != i.Fence.Index {
				return outcome{}, refuse(codes.InvalidArgument, "node %s: status of %s carries fence %d, the assignment has %d", id, i.Instance, s.Fence.Index, i.Fence.Index)
			}
		}
		statuses = append(statuses, s)
	}
	out := outcome{result: Unchanged}
	for _, s := range statuses {
		if a.takeStatus(s) {
			out = outcome{revision: a.index, result: Changed}
		}
	}
	return out, nil
}

func (a *apply) takeStatus(s *fleet.Status) bool {
	before, ok := a.Instance(nil, s.UID)
	if !ok || !newer(s, &before.Status) || before.Status.Phase.Ended() {
		return false
	}
	if before.Status.Phase == fleet.InstanceLost && !s.Phase.Ended() {
		return false
	}
	i := *before
	i.Status = *s
	a.put(tableInstances, &i)
	a.noteStatus(before, &i)
	a.count(&i)
	return true
}

func newer(s, than *fleet.Status) bool {
	return cmp.Or(s.Fence.Compare(than.Fence), cmp.Compare(s.Sequence, than.Sequence)) > 0
}

// count keeps a job's books. It is called once for each instance that ends. One
// that was told to stop counts for nothing: another does its work, or nobody
// wants it any more.
func (a *apply) count(i *fleet.Instance) {
	if i.Stop || !slices.Contains([]fleet.InstancePhase{fleet.InstanceSucceeded, fleet.InstanceFailed}, i.Status.Phase) {
		return
	}
	before, ok := a.Workload(nil, i.Namespace, i.Workload)
	if !ok || before.Spec.Kind != fleet.KindJob {
		return
	}
	w := *before
	if i.Status.Phase == fleet.InstanceSucceeded {
		w.Completions++
	} else {
		w.Failures++
	}
	a.put(tableWorkloads, &w)
}
