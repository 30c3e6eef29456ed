package fleet

import "time"

// EventKind is what an event is about.
type EventKind string

const (
	EventWorkload EventKind = "Workload"
	EventInstance EventKind = "Instance"
	EventNode     EventKind = "Node"
	EventServer   EventKind = "Server"
)

// Reasons of events: one word each, stable, for programs. docs/events.md says
// what each means; a test demands it.
const (
	ReasonApplied      = "Applied"
	ReasonChanged      = "Changed"
	ReasonStopRequest  = "StopRequested"
	ReasonRemoved      = "Removed"
	ReasonPending      = "Pending"
	ReasonClassChanged = "ClassChanged"

	ReasonPlaced      = "Placed"
	ReasonMoved       = "Moved"
	ReasonStopping    = "Stopping"
	ReasonLost        = "Lost"
	ReasonStarted     = "Started"
	ReasonReady       = "Ready"
	ReasonNotReady    = "NotReady"
	ReasonRestarted   = "Restarted"
	ReasonStartFailed = "StartFailed"
	ReasonSucceeded   = "Succeeded"
	ReasonFailed      = "Failed"
	ReasonStopped     = "Stopped"
	ReasonRejected    = "Rejected"

	ReasonJoined       = "Joined"
	ReasonReported     = "Reported"
	ReasonRebooted     = "Rebooted"
	ReasonUpgraded     = "Upgraded"
	ReasonSuspect      = "Suspect"
	ReasonSilent       = "Silent"
	ReasonDisconnected = "Disconnected"
	ReasonBack         = "Back"
	ReasonCordoned     = "Cordoned"
	ReasonUncordoned   = "Uncordoned"
	ReasonLeads        = "LeaderElected"
)

// EventReasons are all of them.
var EventReasons = []string{
	ReasonApplied, ReasonChanged, ReasonStopRequest, ReasonRemoved, ReasonPending, ReasonClassChanged,
	ReasonPlaced, ReasonMoved, ReasonStopping, ReasonLost, ReasonStarted, ReasonReady, ReasonNotReady, ReasonRestarted,
	ReasonStartFailed, ReasonSucceeded, ReasonFailed, ReasonStopped, ReasonRejected,
	ReasonJoined, ReasonReported, ReasonRebooted, ReasonUpgraded, ReasonSuspect, ReasonSilent, ReasonDisconnected,
	ReasonBack, ReasonCordoned, ReasonUncordoned, ReasonLeads,
}

// Event is something that was decided or found. Equal ones are one, counted.
type Event struct {
	// Sequence grows with every event of the fleet; a repeated one gets a new one.
	Sequence  uint64
	Kind      EventKind
	Namespace string // "" for nodes and servers
	Name, UID string
	// Workload and Node that it is about, as far as it is about one.
	Workload, Node string
	Warning        bool
	Reason         string
	Message        string
	By             string // ByLeader, ByAgent or ByUser
	Count          uint32
	First, Last    time.Time // by the leader's clock
}

// Who says so.
const (
	ByLeader = "leader"
	ByAgent  = "agent"
)

// ByUser is a person.
func ByUser(name string) string { return "user/" + name }
