package reconcile

import (
	"net/netip"
	"time"

	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/agent/health"
	"redoubt.dev/redoubt/agent/store"
	"redoubt.dev/redoubt/isolation"
	"redoubt.dev/redoubt/proto/tracing"
)

// Restart says when an ended instance starts again in place.
type Restart uint8

const (
	Always Restart = iota
	OnFailure
	Never
)

// Port publishes a container's port on the node.
type Port struct {
	Container, Host uint16
	HostIP          string
	Protocol        string // tcp or udp
}

// NetworkRules say whom an instance may talk to beyond published ports.
type NetworkRules struct {
	AllowFrom []string // NAMESPACE/NAME of workloads on this node
	Limited   bool     // connections only to what Egress names
	Egress    []EgressRule
}

// EgressRule is somewhere that an instance may open connections to.
type EgressRule struct {
	CIDR     netip.Prefix
	Ports    []PortRange // empty: all
	Protocol string      // tcp or udp; empty: every one
}

// PortRange is First to Last, both included.
type PortRange struct{ First, Last uint16 }

// Assignment is one instance that this node is to run, in plain values.
type Assignment struct {
	UID       string
	Namespace string
	Workload  string
	Instance  string // the name that people see
	Fence     store.Fence
	Runtime   isolation.Name
	Variant   string
	Class     isolation.Class // promised at placement
	Floor     isolation.Class // never crossed
	Stop      bool            // must end
	// Invalid says why the spec cannot be run here at all; empty if it can.
	Invalid string

	Job          bool
	Restart      Restart
	BackoffLimit uint32        // of a job: restarts in place that are borne
	Grace        time.Duration // between SIGTERM and SIGKILL
	// StopAfter, if not zero, is how long the instance may live without a
	// renewed lease.
	StopAfter time.Duration

	PullPolicy string
	// Container is what to start, without what is only known then: ID, Labels,
	// Netns, ResolvConf, Hosts, LogPath.
	Container driver.Spec
	Ports     []Port
	NoNetwork bool
	// NetworkRules are empty with NoNetwork.
	NetworkRules NetworkRules
	Probes       health.Probes
	// Trace is the context of its placement.
	Trace tracing.Parent
}

// ContainerID is the container's id of the instance uid; the same for ever.
func ContainerID(uid string) driver.ID { return driver.ID(idPrefix + uid) }

// InstanceUID is the uid of a container made by this package.
func InstanceUID(id driver.ID) (uid string, ok bool) {
	if len(id) <= len(idPrefix) || string(id[:len(idPrefix)]) != idPrefix {
		return "", false
	}
	return string(id[len(idPrefix):]), true
}

const idPrefix = "rd-"

// Labels on containers.
const (
	LabelUID       = "redoubt.uid"
	LabelAttempt   = "redoubt.attempt"
	LabelNamespace = "redoubt.namespace"
	LabelWorkload  = "redoubt.workload"
	LabelInstance  = "redoubt.instance"
	LabelGrace     = "redoubt.grace"
)
