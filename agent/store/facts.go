package store

import "time"

// Fence orders owners of the same work: of two, the older stops.
type Fence struct {
	Index uint64 `json:"index"`
	Epoch uint64 `json:"epoch,omitempty"`
}

// Less reports whether f is older than o.
func (f Fence) Less(o Fence) bool {
	if f.Epoch != o.Epoch {
		return f.Epoch < o.Epoch
	}
	return f.Index < o.Index
}

// Phase is where an instance stands on this node.
type Phase string

const (
	Assigned  Phase = "assigned"  // nothing was done yet
	Starting  Phase = "starting"  // image, network or sandbox is being prepared
	Running   Phase = "running"   //
	BackOff   Phase = "backoff"   // ended or failed to start; starts again at NotBefore
	Succeeded Phase = "succeeded" // a job's instance that ended with 0
	Failed    Phase = "failed"    // ended, never started again
	Stopped   Phase = "stopped"   // ended because it was told to, or its lease did
	Rejected  Phase = "rejected"  // refused, Message says why
)

// Final reports whether an instance in this phase never runs again here.
func (p Phase) Final() bool {
	switch p {
	case Succeeded, Failed, Stopped, Rejected:
		return true
	}
	return false
}

// Moment is a time of the boot clock (CLOCK_BOOTTIME), which a wrong wall
// clock cannot disturb; it means nothing in another boot.
type Moment struct {
	Boot string        `json:"boot"`
	At   time.Duration `json:"at"`
}

// Facts are what became of one instance. The reconciler is their only writer.
type Facts struct {
	UID string `json:"uid"`
	// Instance is the name that people see.
	Instance string `json:"instance,omitempty"`
	Fence    Fence  `json:"fence"`
	// Sequence grows with every change, over restarts of the agent too; PutFacts
	// sets it.
	Sequence uint64 `json:"sequence"`
	Phase    Phase  `json:"phase"`
	Message  string `json:"message,omitempty"`
	// Ending is the final phase that is decided on while container and network
	// are still being cleared away; Phase takes it once they are gone.
	Ending Phase `json:"ending,omitempty"`

	// Attempt numbers the container's starts from 1 and is written before the
	// start, so that an exit is counted once for the attempt that its
	// container is labelled with.
	Attempt uint64 `json:"attempt,omitempty"`
	// Restarts counts ends that were followed by another start; Failures those
	// of them that count against a job's backoffLimit.
	Restarts uint32 `json:"restarts,omitempty"`
	Failures uint32 `json:"failures,omitempty"`
	// Delay is the last back-off; NotBefore when the next start may be.
	Delay     time.Duration `json:"delay,omitempty"`
	NotBefore Moment        `json:"not_before,omitzero"`
	// LastEnd says why the attempt before ended, or did not come to run.
	LastEnd string `json:"last_end,omitempty"`
	// Up: the running attempt's startup probe has succeeded. NotReady says why
	// it is not ready; empty: it is. Condemned says why it must be restarted,
	// and is on disk before it is.
	Up        bool   `json:"up,omitempty"`
	NotReady  string `json:"not_ready,omitempty"`
	Condemned string `json:"condemned,omitempty"`
	// Ran is when the running attempt began, by the boot clock.
	Ran Moment `json:"ran,omitzero"`

	Pid         int       `json:"pid,omitempty"`
	Runtime     string    `json:"runtime,omitempty"`
	Started     time.Time `json:"started,omitzero"`
	Finished    time.Time `json:"finished,omitzero"`
	ExitCode    int       `json:"exit_code,omitempty"`
	Address     string    `json:"address,omitempty"`
	ImageDigest string    `json:"image_digest,omitempty"`
	Measured    *Measured `json:"measured,omitempty"`
	Kernel      string    `json:"kernel,omitempty"`
}

// Measured are the isolation terms read off the live boundary process.
type Measured struct {
	VM            float64 `json:"vm"`
	Sandbox       float64 `json:"sandbox"`
	Syscalls      int     `json:"syscalls"`
	SyscallsTotal int     `json:"syscalls_total"`
	Devices       int     `json:"devices"`
	Measured      bool    `json:"measured"`
	Source        string  `json:"source,omitempty"`
}

// Lease is when the control plane last acknowledged this node.
type Lease struct {
	Renewed Moment `json:"renewed"`
	Term    uint64 `json:"term"`
}
