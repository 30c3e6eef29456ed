package leader

import (
	"cmp"
	"context"
	"slices"
	"time"

	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/control/state"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

const (
	// keepEnded instances of a workload are kept for people to look at.
	keepEnded = 10
	// keepLost is how long an instance that was given up stays in the list
	// while its node does not come back to say what became of it.
	keepLost = time.Hour
	// keepRejected: an instance that its node refused keeps placement from
	// trying the same again for so long.
	keepRejected = time.Minute
	// reapEvery is how often time alone is a reason to look.
	reapEvery = 10 * time.Second
)

// reap forgets what is over: instances that ended, workloads that were stopped
// and have none left, tokens that expired.
func (t *term) reap(ctx context.Context) error {
	since := map[string]time.Time{}
	for {
		ws := state.NewWatchSet()
		view := t.store.Snapshot()
		ops := reapOperations(view, ws, since, time.Now())
		if len(ops) > 0 {
			if _, err := t.propose(ctx, ops); err != nil {
				if ctx.Err() != nil {
					return nil
				}
				t.log.Warn("forgetting what is over failed; it is tried again", "err", err)
			}
		}
		wait, cancel := context.WithTimeout(ctx, reapEvery)
		_ = ws.WatchCtx(wait)
		cancel()
		if ctx.Err() != nil {
			return nil
		}
		if !sleep(ctx, settle) {
			return nil
		}
	}
}

// reapOperations says what is over at now. since remembers when this term
// first saw each lost or rejected instance.
func reapOperations(view *state.View, ws state.WatchSet, since map[string]time.Time, now time.Time) []*redoubtv1.Operation {
	var (
		ops  []*redoubtv1.Operation
		uids []string
	)
	known := map[string]bool{}
	for _, w := range view.Workloads(ws, "") {
		known[w.Spec.Key()] = true
		instances := view.InstancesOfWorkload(ws, w.Spec.Namespace, w.Spec.Name)
		left := len(instances)
		var ended []*fleet.Instance
		for _, i := range instances {
			switch phase := i.Status.Phase; {
			case phase == fleet.InstanceLost || phase == fleet.InstanceRejected:
				at, ok := since[i.UID]
				if !ok {
					since[i.UID], at = now, now
				}
				keep := keepLost
				if phase == fleet.InstanceRejected {
					keep = keepRejected
				}
				if w.Stopping || now.Sub(at) > keep {
					uids = append(uids, i.UID)
					left--
				}
			case phase.Ended():
				if w.Stopping || i.Stop && w.Spec.Kind == fleet.KindService {
					uids = append(uids, i.UID)
					left--
				} else {
					ended = append(ended, i)
				}
			case w.Stopping && !i.Stop:
				ops = append(ops, stopOperation(i.UID, false, "the workload was stopped"))
			}
		}
		slices.SortFunc(ended, func(a, b *fleet.Instance) int { return cmp.Compare(a.Fence.Index, b.Fence.Index) })
		for len(ended) > keepEnded {
			uids = append(uids, ended[0].UID)
			ended = ended[1:]
		}
		if w.Stopping && left == 0 {
			ops = append(ops, &redoubtv1.Operation{Operation: &redoubtv1.Operation_RemoveWorkload{RemoveWorkload: &redoubtv1.RemoveWorkload{
				Namespace: w.Spec.Namespace, Name: w.Spec.Name, Uid: w.UID}}})
		}
	}
	var expired []string
	for _, tok := range view.Tokens(ws) {
		// A bound token may be repeated by its key until it expires.
		if now.After(tok.Expires.Add(time.Hour)) {
			expired = append(expired, tok.ID)
		}
	}
	if len(expired) > 0 {
		ops = append(ops, &redoubtv1.Operation{Operation: &redoubtv1.Operation_RemoveTokens{RemoveTokens: &redoubtv1.RemoveTokens{Ids: expired}}})
	}
	for uid := range since {
		if _, ok := view.Instance(nil, uid); !ok {
			delete(since, uid)
		}
	}
	if len(uids) > 0 {
		slices.Sort(uids)
		// First, so that a workload whose last instance this is goes in the
		// same entry.
		ops = slices.Insert(ops, 0, &redoubtv1.Operation{Operation: &redoubtv1.Operation_RemoveAssignment{
			RemoveAssignment: &redoubtv1.RemoveAssignment{Uids: uids}}})
	}
	return ops
}
