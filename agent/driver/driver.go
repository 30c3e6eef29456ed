// Package driver says what an agent needs of a container runtime, in plain
// values. agent/containerd implements it on the real thing, driver/fake in
// memory; driver/conformance is the one suite that both must pass.
//
// Everything that takes a context honours its deadline, whatever the runtime
// underneath does: a call that outlives it has failed, and the caller may call
// again. Start, Stop and Delete may be repeated after any failure or crash:
// the ID is chosen by the caller and is the same for the same instance, which
// is what keeps one instance from ever running twice on a node.
//
// Methods may be called concurrently; calls for one ID are serialised by the
// implementation.
package driver

import (
	"context"
	"errors"
	"io"
	"time"

	"redoubt.dev/redoubt/isolation"
)

// ID names a container on its node. It is 1 to 60 characters of [a-z0-9-],
// starts and ends with a letter or digit and never contains "detach", which
// runsc's exec takes for a flag.
type ID string

// Sentinels to branch on. Implementations wrap them with operation and ID.
var (
	ErrNotFound    = errors.New("no such container")
	ErrNotRunning  = errors.New("container is not running")
	ErrConflict    = errors.New("a container of that id exists with another spec")
	ErrRuntime     = errors.New("runtime is not available here")
	ErrImage       = errors.New("image is not available")
	ErrDowngrade   = errors.New("the sandbox is weaker than its runtime promises")
	ErrUnavailable = errors.New("container runtime does not answer")
)

// CommandError says that the sandbox came up and the workload's own program
// cannot be run in it. It is the workload's fault, so it counts like an exit
// with Code: 127 where the program is not there, 126 where it cannot be run, as
// shells have it.
type CommandError struct {
	Code   int
	Reason string // one line for people
}

func (e *CommandError) Error() string { return e.Reason }

// Spec is everything that is needed to start one container. Zero values mean
// "none" or "the image's own" unless said otherwise.
type Spec struct {
	ID      ID
	Labels  map[string]string // kept with the container, returned by List
	Runtime isolation.Name
	Variant string // see isolation.Finding

	Image      string   // as it was given to EnsureImage
	Command    []string // replaces the image's entrypoint
	Args       []string // replaces the image's cmd
	Env        []string // KEY=VALUE, over the image's own
	WorkingDir string
	User       string // uid[:gid] or a name that the image knows

	ReadOnlyRoot    bool
	AddCapabilities []string // beyond the hardened default, "CAP_…"
	// DropCapabilities are taken from the default before any is added: "ALL" or
	// "CAP_…".
	DropCapabilities []string
	Tmpfs            []Tmpfs
	Mounts           []Mount // host paths; the caller has checked the allow list
	Limits           Limits

	Netns      string // path of a pinned network namespace; empty: a new one with lo only
	Hostname   string
	ResolvConf string // host path mounted read-only at /etc/resolv.conf
	Hosts      string // host path mounted read-only at /etc/hosts

	LogPath string // stdout and stderr are appended to it; empty: discarded
}

// Tmpfs is a memory file system at Path, Size bytes at most (0: half the
// memory limit).
type Tmpfs struct {
	Path string
	Size int64
}

// Mount binds HostPath at Path.
type Mount struct {
	HostPath, Path string
	ReadOnly       bool
}

// Limits bound a container; zero is unlimited. Memory is the workload's own:
// the implementation adds the sandbox's overhead to what the host enforces.
type Limits struct {
	CPUMillis int64 // thousandths of a core
	Memory    int64 // bytes
	Pids      int64
}

// State is where a container stands.
type State uint8

const (
	StateUnknown State = iota // the runtime did not say within its deadline
	StateCreated
	StateRunning
	StatePaused
	StateExited
)

var stateNames = [...]string{"unknown", "created", "running", "paused", "exited"}

func (s State) String() string { return stateNames[min(int(s), len(stateNames)-1)] }

// Exit says how a container ended.
type Exit struct {
	Code int // as waited for; 128+n after signal n
	At   time.Time
	// OOM: the memory limit was reached. Lost: the code is not known, because
	// the shim died with its container or the exit came while nobody watched.
	OOM, Lost bool
	Reason    string // one line for people, "" for an ordinary exit
}

// Container is what is known about one container on the node.
type Container struct {
	ID      ID
	Labels  map[string]string
	Runtime isolation.Name
	Variant string
	State   State
	// Pid is the host pid of the boundary process: the container's init for
	// runc, the sentry for gVisor. 0 unless running or paused.
	Pid       int
	StartedAt time.Time // of the boundary process, from the kernel's own record
	Exit      *Exit     // set when State is StateExited
	// Orphan: a living container that the runtime has lost (found by cgroup or
	// command line). Only Delete can be done with it.
	Orphan bool
}

// ExecSpec is a process to run inside a running container.
type ExecSpec struct {
	Command    []string
	Env        []string
	WorkingDir string
	User       string
	Terminal   bool
	Width      uint16
	Height     uint16
}

// Streams connect an exec to its caller. Stdin nil is an empty input; Stderr is
// unused with a terminal. Resize and Signals may be nil.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Resize         <-chan [2]uint16 // width, height
	Signals        <-chan string    // "SIGTERM", …
}

// Stats are a container's use of the host, the sandbox's own included.
type Stats struct {
	CPU    time.Duration // since start
	Memory int64         // bytes now
	Pids   int64         // on the host
}

// Progress reports an image being fetched: bytes done of total (0: unknown).
// The stage is what is being done to it, "pull", and may have a remark after
// "; ": "pull; 2 of 5 parts".
type Progress func(stage string, done, total int64)

// Pull policies, as in a Kubernetes PodSpec.
const (
	PullIfNotPresent = "IfNotPresent"
	PullAlways       = "Always"
	PullNever        = "Never"
)

// Driver runs containers.
type Driver interface {
	// EnsureImage makes ref startable: fetched, verified and unpacked. A ref is
	// a registry reference, or "oci:/absolute/dir[:tag]" for an OCI layout. It
	// returns the digest of the manifest.
	EnsureImage(ctx context.Context, ref, policy string, progress Progress) (digest string, err error)

	// Start creates and starts a container and returns once it runs. If one of
	// that ID already runs, it is returned untouched. One that exited or was
	// only created is removed first.
	Start(ctx context.Context, spec Spec) (Container, error)
	// Stop sends SIGTERM, waits up to grace, then SIGKILL; it returns when the
	// container has exited. The container stays known, with its Exit.
	Stop(ctx context.Context, id ID, grace time.Duration) error
	// Delete ends whatever of id lives, by every means, and removes all that
	// it left on the host. Deleting what is not there succeeds.
	Delete(ctx context.Context, id ID) error

	Signal(ctx context.Context, id ID, signal string) error
	Pause(ctx context.Context, id ID) error
	Resume(ctx context.Context, id ID) error
	Stats(ctx context.Context, id ID) (Stats, error)
	// Exec runs a process to its end and returns its exit code.
	Exec(ctx context.Context, id ID, spec ExecSpec, streams Streams) (code int, err error)

	// List returns every container of this node, orphans included, sorted by
	// ID. It never returns another node's.
	List(ctx context.Context) ([]Container, error)
	// Changed delivers a value soon after any container changed state; values
	// may be merged. It is a hint: List tells the truth.
	Changed() <-chan struct{}
}
