package fleet

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"redoubt.dev/redoubt/isolation"
)

// DefaultNamespace is where a workload lives that names none.
const DefaultNamespace = "default"

// NamespaceOrDefault is ns, or DefaultNamespace for "".
func NamespaceOrDefault(ns string) string {
	if ns == "" {
		return DefaultNamespace
	}
	return ns
}

// WorkloadKind says whether a workload is kept running or runs to completion.
type WorkloadKind string

const (
	KindService WorkloadKind = "Service"
	KindJob     WorkloadKind = "Job"
)

// Replacement is what happens to an instance whose node falls silent.
type Replacement string

const (
	ReplaceEager Replacement = "Eager" // after LostAfter another starts; for a while both may run
	ReplaceSafe  Replacement = "Safe"  // at most one: the agent stops it after StopAfter
	ReplaceNever Replacement = "Never" // it waits for its node
)

// Restart is what the agent does with an instance that ended.
type Restart string

const (
	RestartAlways    Restart = "Always"
	RestartOnFailure Restart = "OnFailure"
	RestartNever     Restart = "Never"
)

// PullPolicy says when an image is fetched.
type PullPolicy string

const (
	PullIfNotPresent PullPolicy = "IfNotPresent"
	PullAlways       PullPolicy = "Always"
	PullNever        PullPolicy = "Never"
)

// Network is what an instance is joined to.
type Network string

const (
	NetworkBridge Network = "bridge"
	NetworkNone   Network = "none" // loopback only
)

// Defaults of what a file leaves out. Memory is always limited, by the limit,
// else the request, else DefaultMemory: what a node has promised is then also
// what its kernel enforces.
const (
	DefaultFloor        = isolation.ClassSandbox
	DefaultLostAfter    = 5 * time.Minute
	DefaultGracePeriod  = 10 * time.Second
	DefaultCPUMillis    = 100
	DefaultMemory       = 128 << 20
	DefaultPids         = 256
	DefaultBackoffLimit = 3
)

// Workload is the desired state that a person applied, checked and with every
// default filled in. It is a value: nobody changes one that another may hold.
// Slices keep the order of the file.
type Workload struct {
	Kind      WorkloadKind
	Namespace string // never empty
	Name      string
	Labels    map[string]string // nil if none

	Isolation  IsolationSpec
	Placement  PlacementSpec
	Disconnect DisconnectSpec

	Containers []Container // exactly one, for now
	Volumes    []Volume

	Restart     Restart
	GracePeriod time.Duration // between the stop signal and the kill; whole seconds
	Job         *JobSpec      // set if and only if Kind is KindJob
	Network     Network
	Rules       NetworkRules // zero unless Network is NetworkBridge
}

// IsolationSpec is the boundary asked for.
type IsolationSpec struct {
	Floor  isolation.Class // never ClassUnknown
	Prefer isolation.Class // ClassUnknown: the strongest
	Pend   bool            // wait where Prefer is unmet; needs a class in Prefer
}

// PlacementSpec says where and how many. A Job has neither count.
type PlacementSpec struct {
	Sites []string // empty: any
	// PerSite, if set, is how many in each site (each of Sites, or each site
	// that is known); Replicas, if set, how many over all. A Service has
	// exactly one of them.
	PerSite, Replicas *int
}

// DisconnectSpec says what silence leads to.
type DisconnectSpec struct {
	LostAfter time.Duration
	StopAfter time.Duration // shorter than LostAfter; 0 unless Replace is ReplaceSafe
	Replace   Replacement
}

// JobSpec says how a Job completes.
type JobSpec struct {
	Completions, Parallelism int // at least 1
	BackoffLimit             int // failures that are borne
}

// Container is the one process tree of an instance.
type Container struct {
	Name       string
	Image      string
	Pull       PullPolicy
	Command    []string // nil: the image's entrypoint
	Args       []string // nil: the image's cmd
	Env        []EnvVar
	WorkingDir string // "": the image's
	Ports      []Port
	Resources  Resources
	Security   Security
	Mounts     []VolumeMount
	// Liveness, Readiness and Startup ask how it is; nil: nobody asks.
	Liveness, Readiness, Startup *Probe
}

// EnvVar is one environment variable.
type EnvVar struct{ Name, Value string }

// Port is a port that the container listens on. Host 0 does not publish it.
type Port struct {
	Name            string
	Container, Host uint16
	HostIP          netip.Addr // zero: every address
	Protocol        string     // "TCP" or "UDP"
}

// Resources are what a node sets aside (requests) and enforces (limits).
type Resources struct {
	CPURequest, CPULimit       int64 // thousandths of a core; limit 0: none
	MemoryRequest, MemoryLimit int64 // bytes; never 0
	PidsLimit                  int64 // never 0
}

// Security is who the process is and what it may do beyond the hardened
// default. Capabilities are without the prefix "CAP_", sorted.
type Security struct {
	RunAsUser, RunAsGroup *int64 // nil: the image's
	ReadOnlyRoot          bool
	AddCapabilities       []string
	DropCapabilities      []string // "ALL" or names
}

// Volume has exactly one source.
type Volume struct {
	Name     string
	Memory   bool   // a tmpfs
	Size     int64  // of the tmpfs, bytes; 0: half of the memory limit
	HostPath string // "" for a tmpfs
}

// VolumeMount puts a volume at a path.
type VolumeMount struct {
	Name, Path string
	ReadOnly   bool
}

// Key is namespace/name, unique in a fleet.
func (w Workload) Key() string { return w.Namespace + "/" + w.Name }

// CPUMillis is what an instance sets aside on its node, without overhead.
func (w Workload) CPUMillis() (sum int64) {
	for _, c := range w.Containers {
		sum += c.Resources.CPURequest
	}
	return sum
}

// MemoryBytes is what an instance sets aside on its node, without the
// sandbox's own overhead.
func (w Workload) MemoryBytes() (sum int64) {
	for _, c := range w.Containers {
		sum += c.Resources.MemoryRequest
	}
	return sum
}

// HostPort is one published port of a node.
type HostPort struct {
	IP       netip.Addr // zero: every address
	Port     uint16
	Protocol string
}

// Overlaps tells whether both cannot be published on one node.
func (p HostPort) Overlaps(q HostPort) bool {
	every := func(a netip.Addr) bool { return !a.IsValid() || a.IsUnspecified() }
	return p.Port == q.Port && p.Protocol == q.Protocol &&
		(p.IP == q.IP || every(p.IP) || every(q.IP))
}

// HostPorts lists what an instance publishes, in the order of the file.
func (w Workload) HostPorts() (ports []HostPort) {
	for _, c := range w.Containers {
		for _, p := range c.Ports {
			if p.Host != 0 {
				ports = append(ports, HostPort{IP: p.HostIP, Port: p.Host, Protocol: p.Protocol})
			}
		}
	}
	return ports
}

// FailuresBorne is how many of a Job's instances may fail before the Job has
// failed. With OnFailure the node has restarted an instance BackoffLimit times
// before it calls it failed, so none is borne.
func (w Workload) FailuresBorne() int {
	if w.Restart == RestartOnFailure {
		return 0
	}
	return w.Job.BackoffLimit
}

// Requirement is what the workload asks of a runtime.
func (w Workload) Requirement() isolation.Requirement {
	return isolation.Requirement{
		Floor: w.Isolation.Floor, Prefer: w.Isolation.Prefer, Pend: w.Isolation.Pend,
		NeedsOCIImage: true,
	}
}

// WithFloor is w with another floor, for questions of the kind "what if".
func (w Workload) WithFloor(c isolation.Class) Workload {
	w.Isolation.Floor = c
	return w
}

// Clone copies everything that is reached through w.
func (w Workload) Clone() Workload {
	w.Labels = maps.Clone(w.Labels)
	w.Placement.Sites = slices.Clone(w.Placement.Sites)
	w.Placement.PerSite = clonePtr(w.Placement.PerSite)
	w.Placement.Replicas = clonePtr(w.Placement.Replicas)
	w.Job = clonePtr(w.Job)
	w.Rules = w.Rules.clone()
	w.Volumes = slices.Clone(w.Volumes)
	w.Containers = slices.Clone(w.Containers)
	for i := range w.Containers {
		c := &w.Containers[i]
		c.Command, c.Args = slices.Clone(c.Command), slices.Clone(c.Args)
		c.Env, c.Ports, c.Mounts = slices.Clone(c.Env), slices.Clone(c.Ports), slices.Clone(c.Mounts)
		c.Liveness, c.Readiness, c.Startup = c.Liveness.clone(), c.Readiness.clone(), c.Startup.clone()
		c.Security.RunAsUser = clonePtr(c.Security.RunAsUser)
		c.Security.RunAsGroup = clonePtr(c.Security.RunAsGroup)
		c.Security.AddCapabilities = slices.Clone(c.Security.AddCapabilities)
		c.Security.DropCapabilities = slices.Clone(c.Security.DropCapabilities)
	}
	return w
}

func clonePtr[T any](p *T) *T {
	if p == nil {
		return nil
	}
	v := *p
	return &v
}
