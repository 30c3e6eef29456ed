package reconcile

import (
	"time"

	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/agent/health"
	"redoubt.dev/redoubt/agent/store"
)

// Targets are the attempts whose probes are to be put now: those that run, are
// recorded as running, and are to go on.
func Targets(d Desired, o Observed) []health.Target {
	p := newPlan(d, o)
	var out []health.Target
	for _, uid := range p.uids {
		a, c, f := p.assignments[uid], p.containers[uid], p.facts[uid]
		switch {
		case a == nil || !a.Probes.Any() || c == nil || c.Orphan || c.State != driver.StateRunning:
		case f.Phase != store.Running || f.Ending != "" || f.Condemned != "" || attempt(c) != f.Attempt || p.mustEnd(a, f) != "":
		default:
			out = append(out, health.Target{
				UID: uid, Instance: a.Instance, Attempt: f.Attempt, ID: c.ID, Address: p.networks[uid], Probes: a.Probes,
				Age: p.age(f), Before: health.Verdict{Up: f.Up, NotReady: f.NotReady},
			})
		}
	}
	return out
}

// age of the running attempt; of one that began in another boot nothing is known.
func (p *plan) age(f store.Facts) (d time.Duration) {
	if f.Ran.Boot == p.o.Now.Boot {
		d = max(p.o.Now.At-f.Ran.At, 0)
	}
	return d
}
