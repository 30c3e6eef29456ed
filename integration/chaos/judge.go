package main

import (
	"fmt"
	"slices"
	"time"
)

// promise is what is expected of one workload of one instance, in terms of a
// clock that all share.
type promise struct {
	workload string
	// from: its apply was acknowledged. until: the fleet was asked to stop it;
	// zero: never.
	from, until time.Time
	// within is how soon after from it has to be alive.
	within time.Duration
	// stopped: the stop was acknowledged; it must be silent stopWithin later.
	stopped    time.Time
	stopWithin time.Duration
	// replace is its rule for a lost node. Under Eager two instances may run
	// for a while; else never.
	replace string
}

// loss is a time for which a node was away, or all of it was dead.
type loss struct {
	workload string
	from     time.Time
	// over: the node had come back, and the time that it is given to end what
	// was replaced had passed.
	over time.Time
}

// blow is a fault that may silence a workload for a while.
type blow struct {
	workload string // empty: any of the site
	site     string
	at       time.Time
	within   time.Duration // so long after it all has to be as promised
	over     time.Time     // it was; zero: nobody looked
}

const (
	// every is how often a beacon is heard.
	every = 100 * time.Millisecond
	// pause is how long a beacon that is alive may be silent on a machine that
	// is as busy as these runs make it.
	pause = 1500 * time.Millisecond
	// together is what two clocks of one host may differ by, the sandbox's own
	// included.
	together = 20 * time.Millisecond
)

// judge holds recordings against promises. starts are by workload. end is when
// the recording ended.
func judge(starts map[string][]start, promises []promise, blows []*blow, losses []loss, end time.Time) (verdicts []string) {
	say := func(format string, args ...any) { verdicts = append(verdicts, fmt.Sprintf(format, args...)) }
	for _, p := range promises {
		list := slices.Clone(starts[p.workload])
		slices.SortFunc(list, func(a, b start) int { return a.first().Compare(b.first()) })
		if len(list) == 0 {
			if until := earliest(p.until, end); until.Sub(p.from) > p.within {
				say("%s was acknowledged and never ran", p.workload)
			}
			continue
		}
		for i, s := range list {
			for _, before := range list[:i] {
				if both(p, before, s, losses) {
					continue
				}
				if over := earliest(before.last(), s.last()).Sub(s.first()); over > together {
					say("%s ran twice for %v: %s/%s and %s/%s, from %s", p.workload, over.Round(time.Millisecond),
						before.uid, before.nonce, s.uid, s.nonce, s.first().Format(clock))
				}
				if s.uid != before.uid && s.fence <= before.fence {
					say("%s: the newer instance %s has fence %d, the older %s has %d", p.workload, s.uid, s.fence, before.uid, before.fence)
				}
			}
		}
		if n := instances(list); p.replace == "Never" && n > 1 {
			say("%s is never to be replaced, and %d instances of it were heard", p.workload, n)
		}
		if late := list[0].first().Sub(p.from); late > p.within {
			say("%s ran %v after it was acknowledged, %v is stated", p.workload, late.Round(time.Millisecond), p.within)
		}
		for _, g := range gaps(list, earliest(p.until, end)) {
			if !excused(p.workload, list[0].site, g, blows) {
				say("%s was silent for %v from %s, and no fault explains it", p.workload, g.to.Sub(g.from).Round(time.Millisecond), g.from.Format(clock))
			}
		}
		if last := list[len(list)-1].last(); !p.stopped.IsZero() && last.Sub(p.stopped) > p.stopWithin {
			say("%s ran on for %v after its stop was acknowledged, %v is stated", p.workload, last.Sub(p.stopped).Round(time.Millisecond), p.stopWithin)
		}
	}
	return verdicts
}

// both tells whether two starts may have been alive at once, or the older
// instance have been started again after the newer: by the rules of Eager, while
// the older one's node was lost, and no longer.
func both(p promise, a, b start, losses []loss) bool {
	if p.replace != "Eager" || a.uid == b.uid || a.fence == b.fence {
		return false
	}
	older, newer := a, b
	if a.fence > b.fence {
		older, newer = b, a
	}
	return slices.ContainsFunc(losses, func(l loss) bool {
		return l.workload == p.workload && newer.first().After(l.from) && older.last().Before(l.over)
	})
}

func instances(list []start) int {
	uids := map[string]bool{}
	for _, s := range list {
		uids[s.uid] = true
	}
	return len(uids)
}

// traffic says of what was heard too little for the run to mean anything: each
// of these was to be heard all along, but for its faults.
func traffic(starts map[string][]start, promises []promise, end time.Time) (verdicts []string) {
	for _, p := range promises {
		beats := 0
		for _, s := range starts[p.workload] {
			beats += len(s.beats)
		}
		if want := int(end.Sub(p.from)/every) / 2; beats < want {
			verdicts = append(verdicts, fmt.Sprintf("%s was heard %d times, fewer than the %d that this run needs to mean anything", p.workload, beats, want))
		}
	}
	return verdicts
}

const clock = "15:04:05.000"

type gap struct{ from, to time.Time }

// gaps are the silences between the first beat and until.
func gaps(list []start, until time.Time) (out []gap) {
	var beats []time.Time
	for _, s := range list {
		beats = append(beats, s.beats...)
	}
	slices.SortFunc(beats, time.Time.Compare)
	at := beats[0]
	for _, b := range append(beats[1:], until) {
		if b.After(until) {
			b = until
		}
		if b.Sub(at) > pause {
			out = append(out, gap{at, b})
		}
		at = b
	}
	return out
}

// excused: a fault that touches the workload struck before or in the gap, which
// began before all was seen to be as promised again, and ended in the time that
// is stated for the fault. What lost its shim and its daemon together runs on
// until the next daemon finds it, so a gap may begin some time after the blow.
func excused(workload, site string, g gap, blows []*blow) bool {
	return slices.ContainsFunc(blows, func(b *blow) bool {
		return b.site == site && (b.workload == "" || b.workload == workload) && !b.at.After(g.to) &&
			(b.at.After(g.from.Add(-pause)) || b.over.After(g.from)) && g.to.Sub(b.at) <= b.within
	})
}

// earliest of two; zero is never.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}
