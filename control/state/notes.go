package state

import (
	"fmt"
	"slices"
	"strings"

	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/isolation"
)

// What operations do is noted where they do it: it costs no entry of the log,
// and every server notes the same.

func (a *apply) noteWorkload(w *fleet.Workload, user, reason, message string) {
	by := fleet.ByLeader
	if user != "" {
		by = fleet.ByUser(user)
	}
	a.note(fleet.Event{Kind: fleet.EventWorkload, Namespace: w.Namespace, Name: w.Name, Workload: w.Name, Reason: reason, Message: message, By: by})
}

func (a *apply) noteInstance(i *fleet.Instance, by, reason string, warning bool, message string) {
	a.note(fleet.Event{
		Kind: fleet.EventInstance, Namespace: i.Namespace, Name: i.Instance, UID: i.UID, Workload: i.Workload, Node: string(i.Node),
		Warning: warning, Reason: reason, Message: message, By: by,
	})
}

func (a *apply) noteNode(n *fleet.Node, by, reason string, warning bool, message string) {
	a.note(fleet.Event{Kind: fleet.EventNode, Name: string(n.ID), Node: string(n.ID), Warning: warning, Reason: reason, Message: message, By: by})
}

func (a *apply) noteServer(id, reason, message string) {
	a.note(fleet.Event{Kind: fleet.EventServer, Name: id, Reason: reason, Message: message, By: fleet.ByLeader})
}

// notePlaced tells where an instance goes, and whether its workload has left a
// node or a class with it: the instance placed before it is over or ending.
func (a *apply) notePlaced(as *fleet.Assignment) {
	i := &fleet.Instance{Assignment: *as}
	a.noteInstance(i, fleet.ByLeader, fleet.ReasonPlaced, false,
		fmt.Sprintf("on %s in %s under %s, class %s; %s", as.Node, as.Site, runtimeWords(as.Runtime, as.Variant), as.Class, as.Why))
	before, ok := a.predecessor(as)
	if !ok {
		return
	}
	if before.Node != as.Node {
		a.noteInstance(i, fleet.ByLeader, fleet.ReasonMoved, false,
			fmt.Sprintf("in place of %s, which is %s on %s", before.Instance, leaving(before), before.Node))
	}
	if before.Class != as.Class {
		a.noteInstance(i, fleet.ByLeader, fleet.ReasonClassChanged, as.Class < before.Class,
			fmt.Sprintf("%s, where %s had %s", as.Class, before.Instance, before.Class))
	}
}

// predecessor is whose place an instance takes, if one leaves: the youngest that
// is lost, rejected or ending and that no younger one has followed yet.
func (a *apply) predecessor(as *fleet.Assignment) (*fleet.Instance, bool) {
	if !a.EventsKept() {
		return nil, false
	}
	others := a.InstancesOfWorkload(nil, as.Namespace, as.Workload)
	var gone []*fleet.Instance
	for _, i := range others {
		if i.UID != as.UID && !i.Live() && i.Status.Phase != fleet.InstanceSucceeded && i.Status.Phase != fleet.InstanceFailed ||
			i.Stop && !i.Status.Phase.Ended() {
			gone = append(gone, i)
		}
	}
	if len(gone) == 0 {
		return nil, false
	}
	slices.SortFunc(gone, func(x, y *fleet.Instance) int { return x.Fence.Compare(y.Fence) })
	last, followers := gone[len(gone)-1], 0
	for _, i := range others {
		if i.UID != as.UID && i.Fence.Index >= last.Version && i.Fence.Index > last.Fence.Index {
			followers++
		}
	}
	if followers >= len(gone) {
		return nil, false
	}
	return gone[len(gone)-1-followers], true
}

func leaving(i *fleet.Instance) string {
	if i.Live() {
		return "stopping"
	}
	return i.Status.Phase.String()
}

func runtimeWords(runtime isolation.Name, variant string) string {
	if variant == "" {
		return string(runtime)
	}
	return fmt.Sprintf("%s (%s)", runtime, variant)
}

// noteStatus tells what became of an instance on its node. Statuses in between
// may never have arrived, so restarts are told by their count.
func (a *apply) noteStatus(before, now *fleet.Instance) {
	was, is := &before.Status, &now.Status
	say := func(reason string, warning bool, message string) {
		a.noteInstance(now, fleet.ByAgent, reason, warning, message)
	}
	if is.Restarts > was.Restarts {
		say(fleet.ReasonRestarted, true, restartWords(is))
	} else if is.Phase == fleet.InstanceBackoff && was.Phase != fleet.InstanceBackoff {
		say(fleet.ReasonStartFailed, true, restartWords(is))
	}
	if is.Phase == was.Phase {
		switch {
		case is.Phase != fleet.InstanceRunning || is.NotReady == was.NotReady:
		case is.NotReady == "":
			say(fleet.ReasonReady, false, "its probes succeed")
		case was.NotReady != "" && strings.HasSuffix(is.NotReady, notYet):
			// It comes up, one probe after the other.
		default:
			say(fleet.ReasonNotReady, true, is.NotReady)
		}
		return
	}
	switch is.Phase {
	case fleet.InstanceRunning:
		say(fleet.ReasonStarted, false, fmt.Sprintf("under %s, pid %d", is.Runtime, is.PID))
	case fleet.InstanceSucceeded:
		say(fleet.ReasonSucceeded, false, is.Message)
	case fleet.InstanceFailed:
		say(fleet.ReasonFailed, true, is.Message)
	case fleet.InstanceStopped:
		say(fleet.ReasonStopped, false, is.Message)
	case fleet.InstanceRejected:
		say(fleet.ReasonRejected, true, is.Message)
	}
}

// notYet ends an agent's words on a probe that has neither succeeded nor failed.
const notYet = "has not succeeded yet"

func restartWords(s *fleet.Status) string {
	why := s.LastEnd
	if why == "" {
		why = s.Message
	}
	if s.BackOff > 0 {
		return fmt.Sprintf("%s; back-off %s, restart %d", why, s.BackOff, s.Restarts)
	}
	return fmt.Sprintf("%s; restart %d", why, s.Restarts)
}

// noteReport tells what changed of what a node says of itself.
func (a *apply) noteReport(before, now *fleet.Node) {
	say := func(reason string, warning bool, message string) {
		a.noteNode(now, fleet.ByAgent, reason, warning, message)
	}
	if before.Lost && !now.Lost {
		say(fleet.ReasonBack, false, "it was given up as lost and is heard again")
	}
	if before.Report == nil {
		say(fleet.ReasonReported, false, provenWords(now.Report))
		return
	}
	if before.Report.Host.BootID != now.Report.Host.BootID {
		say(fleet.ReasonRebooted, false, "it was booted anew, and proves its runtimes again")
	}
	if before.AgentVersion != now.AgentVersion {
		say(fleet.ReasonUpgraded, false, fmt.Sprintf("agent from version %s to %s", before.AgentVersion, now.AgentVersion))
	}
	if was, is := strongest(before.Report), strongest(now.Report); was != is {
		say(fleet.ReasonClassChanged, is < was, fmt.Sprintf("strongest proven class: %s, was %s; %s", is, was, provenWords(now.Report)))
	}
}

func strongest(r *isolation.Report) (c isolation.Class) {
	for _, f := range r.Findings {
		if f.State == isolation.StateVerified {
			c = max(c, f.Class)
		}
	}
	return c
}

// provenWords lists what is verified, in the order of the report.
func provenWords(r *isolation.Report) string {
	var proven []string
	for _, f := range r.Findings {
		if f.State == isolation.StateVerified {
			proven = append(proven, fmt.Sprintf("%s is %s", runtimeWords(f.Runtime, f.Variant), f.Class))
		}
	}
	if len(proven) == 0 {
		return "nothing is verified on it"
	}
	return "verified: " + strings.Join(proven, ", ")
}
