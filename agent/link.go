package agent

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"redoubt.dev/redoubt/agent/session"
	"redoubt.dev/redoubt/agent/store"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// link is what the session sees of the node.
type link struct{ *Agent }

func (l *link) Held() (string, uint64) { return l.store.Cluster(), l.store.Version() }

func (l *link) Servers() []string { return l.servers() }

func (l *link) Welcome(clusterID string) error { return l.store.BindCluster(clusterID) }

func (l *link) Fleet(f *redoubtv1.FleetUpdate) error {
	if err := l.store.SetFleet(f); err != nil {
		return err
	}
	if out, ok := l.deps.Identity.(writable); ok && len(f.GetBundle()) > 0 {
		svid, err := l.deps.Identity.GetX509SVID()
		if err != nil {
			return err
		}
		b, err := bundleOf(svid.ID.TrustDomain(), f.GetBundle())
		if err != nil {
			return err
		}
		if err := out.SetBundle(b); err != nil {
			return fmt.Errorf("keep the trust bundle: %w", err)
		}
	}
	if l.pool != nil && len(f.GetGossipKeys()) > 0 {
		if err := l.pool.SetKeys(f.GetGossipKeys()); err != nil {
			// Gossip is a hint: the session goes on without it.
			l.deps.Log.Warn("gossip keys not taken", "err", err)
		}
	}
	return nil
}

func (l *link) Assign(a *redoubtv1.Assignments) error {
	u := store.Update{From: a.GetFromVersion(), Version: a.GetVersion(), Updated: a.GetUpdated(), Removed: a.GetRemoved()}
	switch a.GetKind() {
	case redoubtv1.Assignments_KIND_COMPLETE:
		u.Complete = true
	case redoubtv1.Assignments_KIND_INCREMENTAL:
	default:
		return fmt.Errorf("assignments of kind %d are not known to this version", a.GetKind())
	}
	stored := l.trace.storing(a.GetUpdated())
	err := l.store.SaveAssignments(u)
	stored(err)
	if errors.Is(err, store.ErrGap) {
		return fmt.Errorf("%w: %w", session.ErrGap, err)
	}
	return err
}

// Statuses are told of instances that an assignment speaks of: what is left of
// others is being cleared away, and the control plane has forgotten them.
func (l *link) Statuses() []*redoubtv1.InstanceStatus {
	assigned := map[string]bool{}
	for _, a := range l.store.Assignments() {
		assigned[a.GetUid()] = true
	}
	var out []*redoubtv1.InstanceStatus
	for _, f := range l.store.Facts() {
		if assigned[f.UID] {
			out = append(out, statusProto(f))
		}
	}
	return out
}

func (l *link) Report() *redoubtv1.Report {
	r, ok := l.reporter.Report()
	if !ok {
		return nil
	}
	return reportProto(r)
}

func (l *link) Load() uint32 { return l.load.Load() }

func (l *link) DiskFull() bool { return l.store.DiskFull() }

// mostWarnings bounds what every heartbeat carries, mostWarning each of them.
const mostWarnings, mostWarning = 4, 1000

func (l *link) Warnings() (out []string) {
	if l.deps.Host.Warnings == nil {
		return nil
	}
	for _, w := range l.deps.Host.Warnings() {
		if len(out) == mostWarnings {
			break
		}
		if len(w) > mostWarning {
			w = strings.ToValidUTF8(w[:mostWarning], "") + "…"
		}
		out = append(out, w)
	}
	return out
}

func (l *link) Renewed(sent time.Duration, term uint64) {
	l.lease.renew(store.Moment{Boot: l.deps.BootID, At: sent}, term)
}

func (l *link) Clock() time.Duration { return l.deps.BootClock() }
