package placement

import "redoubt.dev/redoubt/control/fleet"

// Desired is how many copies of a workload are wanted now: all sites' together
// for a service, what may run at once and is still needed for a job.
func Desired(in Input, w *fleet.StoredWorkload) uint32 {
	if w.Stopping {
		return 0
	}
	t := newTurn(newLedger(Input{Nodes: in.Nodes}), Workload{StoredWorkload: w}, Policy{})
	switch {
	case w.Spec.Kind == fleet.KindJob:
		return uint32(t.jobGroup().desired)
	case w.Spec.Placement.PerSite != nil:
		return uint32(*w.Spec.Placement.PerSite * len(t.sitesWanted()))
	case w.Spec.Placement.Replicas != nil:
		return uint32(*w.Spec.Placement.Replicas)
	}
	return 1
}
