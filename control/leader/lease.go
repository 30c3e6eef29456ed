package leader

import (
	"context"
	"fmt"
	"time"

	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/control/state"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// lease watches silence and gives up instances whose node was silent for
// longer than their workload bears. It never does so for a site that is
// disconnected as a whole, nor on gossip's word.
func (t *term) lease(ctx context.Context) error {
	every := min(t.timing.SilentAfter/4, time.Second)
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if err := t.giveUp(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			t.log.Warn("giving up lost instances failed; it is tried again", "err", err)
		}
	}
}

// giveUp looks once at who is silent.
func (t *term) giveUp(ctx context.Context) error {
	t.giving.Lock()
	defer t.giving.Unlock()
	now := time.Now()
	t.observed.Tick(now)
	ops := leaseOperations(t.store.Snapshot(), t.observed, t.timing, now)
	if len(ops) == 0 {
		return nil
	}
	_, err := t.propose(ctx, ops)
	return err
}

// leaseOperations says what is lost at now.
func leaseOperations(view *state.View, observed *Observed, timing Timing, now time.Time) []*redoubtv1.Operation {
	var ops []*redoubtv1.Operation
	for _, n := range view.Nodes(nil) {
		v := observed.View(n.ID, n.Site, n.Report != nil, n.Lost, now)
		if v.Accountable < timing.SilentAfter {
			continue
		}
		lost := false
		for _, i := range view.InstancesOf(nil, n.ID) {
			if !i.Live() || !replaceable(i.Spec.Disconnect, v.Accountable, timing) {
				continue
			}
			lost = true
			ops = append(ops, stopOperation(i.UID, true, fmt.Sprintf("node %s was silent for %s", n.ID, v.Accountable.Round(time.Second))))
		}
		if lost && !n.Lost {
			yes := true
			ops = append(ops, &redoubtv1.Operation{Operation: &redoubtv1.Operation_SetNodeMark{
				SetNodeMark: &redoubtv1.SetNodeMark{Node: string(n.ID), Lost: &yes}}})
		}
	}
	return ops
}

// replaceable tells whether an instance whose node was accountably silent for
// so long may be given up.
func replaceable(d fleet.DisconnectSpec, silent time.Duration, timing Timing) bool {
	switch d.Replace {
	case fleet.ReplaceNever:
		return false
	case fleet.ReplaceSafe:
		// The agent has surely stopped it by then, on its own clock.
		return silent >= d.LostAfter && silent >= d.StopAfter+timing.LostMargin
	}
	return silent >= d.LostAfter
}

func stopOperation(uid string, lost bool, why string) *redoubtv1.Operation {
	return &redoubtv1.Operation{Operation: &redoubtv1.Operation_StopAssignment{
		StopAssignment: &redoubtv1.StopAssignment{Uid: uid, Lost: lost, Why: why}}}
}
