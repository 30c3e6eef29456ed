package fleet

import (
	"cmp"
	"fmt"
	"time"

	"redoubt.dev/redoubt/isolation"
)

// Fence orders owners of the same work: of two, the older stops.
type Fence struct {
	// Index is the log index at which the assignment was applied.
	Index uint64
	// SiteEpoch is 0 until a site may act alone.
	SiteEpoch uint64
}

// Compare is negative where f is older than o.
func (f Fence) Compare(o Fence) int {
	return cmp.Or(cmp.Compare(f.Index, o.Index), cmp.Compare(f.SiteEpoch, o.SiteEpoch))
}

// Assignment is one instance bound to a node and a runtime.
type Assignment struct {
	// UID is unique for ever.
	UID string
	// Namespace and Workload name the workload that it is a copy of; Instance
	// is the name that people see, "web-1".
	Namespace, Workload, Instance string
	Fence                         Fence
	Node                          isolation.NodeID
	Site                          isolation.SiteID
	Runtime                       isolation.Name
	Variant                       string
	// Class is what the runtime was verified as when this was placed; Floor
	// what the workload demanded then.
	Class, Floor isolation.Class
	// Spec is the workload at Revision. It is shared: never change it.
	Spec *Workload
	// Revision is the workload's.
	Revision uint64
	// Stop: it must end, and is kept until the agent says that it has.
	Stop bool
	// NodeGeneration that the plan was made with.
	NodeGeneration uint64
	// Why is one line: why this runtime and nothing stronger.
	Why string
	// CPUMillis and MemoryBytes are reserved on the node, the sandbox's
	// overhead included.
	CPUMillis, MemoryBytes int64
	// Trace is the traceparent of its placement, "" if none.
	Trace string
}

// InstancePhase is where an instance is in its life.
type InstancePhase uint8

const (
	InstanceUnknown InstancePhase = iota
	// InstanceAssigned: not yet acted on by the agent.
	InstanceAssigned
	// InstanceStarting: image, network or sandbox is being prepared.
	InstanceStarting
	InstanceRunning
	// InstanceBackoff: ended, and to be started again after a while.
	InstanceBackoff
	// InstanceSucceeded: a job's instance that ended with 0.
	InstanceSucceeded
	// InstanceFailed: ended, and not to be started again.
	InstanceFailed
	// InstanceStopped: ended because it was told to.
	InstanceStopped
	// InstanceLost: its node was silent for too long; it may still run there.
	InstanceLost
	// InstanceRejected: the agent refuses it; it is placed elsewhere or pends.
	InstanceRejected
)

var instancePhaseNames = [...]string{"unknown", "assigned", "starting", "running", "backoff", "succeeded", "failed", "stopped", "lost", "rejected"}

func (p InstancePhase) String() string {
	if int(p) < len(instancePhaseNames) {
		return instancePhaseNames[p]
	}
	return fmt.Sprintf("instance-phase(%d)", uint8(p))
}

// Ended tells whether the agent said that nothing of the instance is left. An
// ended instance never lives again, and its assignment can be removed. A lost
// one has not ended: nobody knows.
func (p InstancePhase) Ended() bool {
	switch p {
	case InstanceSucceeded, InstanceFailed, InstanceStopped, InstanceRejected:
		return true
	}
	return false
}

// Status is what the agent last said of an instance.
type Status struct {
	UID   string
	Fence Fence
	// Sequence grows with every change on the node; (Fence, Sequence) orders.
	Sequence uint64
	Phase    InstancePhase
	Message  string
	// PID on the host of the boundary process, 0 if none.
	PID     int32
	Runtime isolation.Name
	// Started and Finished are by the node's clock; zero: not yet.
	Started, Finished time.Time
	ExitCode          int32
	Restarts          uint32
	Address           string
	ImageDigest       string
	// Measured on the live boundary process; nil: unmeasured.
	Measured *isolation.Terms
	// Kernel that a process inside sees; empty: unmeasured.
	Kernel string
	// NotReady says why a running instance is not ready; empty: it is.
	NotReady string
	// BackOff, in InstanceBackoff, is the pause before the next start.
	BackOff time.Duration
	// LastEnd says why the attempt before ended.
	LastEnd string
}

// Ready tells whether it runs and its probes say that it can be used.
func (s *Status) Ready() bool { return s.Phase == InstanceRunning && s.NotReady == "" }

// Instance is an assignment with its latest status.
type Instance struct {
	Assignment
	Status Status
	// Created is when the leader assigned it.
	Created time.Time
	// Version is the log index of the last change that the agent must learn of:
	// assigned, or told to stop. A status does not move it.
	Version uint64
}

// Live tells whether the instance holds its reservation and host ports: it was
// assigned and neither the agent said that it ended nor the leader gave it up.
func (i *Instance) Live() bool {
	return !i.Status.Phase.Ended() && i.Status.Phase != InstanceLost
}

// Gone tells whether the assignment can be removed: it has ended, or was given
// up as lost and is told to stop should its node return.
func (i *Instance) Gone() bool {
	return i.Status.Phase.Ended() || i.Status.Phase == InstanceLost && i.Stop
}

// MustStop tells what an agent is told: that nothing of the instance may run.
// An agent that forgot everything must not start again what has ended.
func (i *Instance) MustStop() bool { return i.Stop || i.Status.Phase.Ended() }
