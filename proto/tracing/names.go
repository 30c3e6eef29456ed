package tracing

// The spans of a placement, in the order in which they begin. docs/traces.md
// lists them, and a test holds that list to this one.
const (
	// of the command
	Command = "redoubt" // with the verb: "redoubt apply"

	// of servers
	APIApply      = "api.apply"
	APIForward    = "api.forward"
	RaftPropose   = "raft.propose"
	InstancePlace = "instance.place"

	// of agents, and in between of the leader
	AssignmentStore = "assignment.store"
	InstanceStart   = "instance.start"
	ImageFetch      = "image.fetch"
	NetworkAttach   = "network.attach"
	ContainerStart  = "container.start"
	BoundaryMeasure = "boundary.measure"
	InstanceRunning = "instance.running"
	InstanceReady   = "instance.ready"
	StatusReport    = "status.report"
	InstanceReject  = "instance.reject"
)

// Names are those of all spans.
var Names = []string{
	Command, APIApply, APIForward, RaftPropose, InstancePlace,
	AssignmentStore, InstanceStart, ImageFetch, NetworkAttach, ContainerStart, BoundaryMeasure, InstanceRunning, InstanceReady, StatusReport, InstanceReject,
}

// Keys of attributes. The first five are those of logs.
const (
	KeyNode     = "node"
	KeySite     = "site"
	KeyWorkload = "workload" // NAMESPACE/NAME
	KeyInstance = "instance"
	KeyRuntime  = "runtime"

	KeyServer   = "server"
	KeyUID      = "uid"
	KeyResult   = "result"
	KeyRevision = "revision"
	KeyIndex    = "index"
	KeyImage    = "image"
	KeyAttempt  = "attempt"
	KeyNotReady = "not_ready"
)

// Keys are those of all attributes.
var Keys = []string{
	KeyNode, KeySite, KeyWorkload, KeyInstance, KeyRuntime,
	KeyServer, KeyUID, KeyResult, KeyRevision, KeyIndex, KeyImage, KeyAttempt, KeyNotReady,
}

// Events within spans.
const (
	EventPlanned   = "planned"   // the plan is made, not yet proposed
	EventCommitted = "committed" // a majority has it
	EventRecorded  = "recorded"  // the runtime knows the container
	EventSandboxed = "sandboxed" // its boundary is up, the workload not yet in it
)

// Events are all of them.
var Events = []string{EventPlanned, EventCommitted, EventRecorded, EventSandboxed}
