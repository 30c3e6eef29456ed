package containerd

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"redoubt.dev/redoubt/agent/registry"
	"redoubt.dev/redoubt/isolation"
)

// Binaries are absolute paths. Runsc may be empty (gVisor is then not
// available), as may Runc; Containerd and Shim are not needed with HostAddress
// (the host's daemon finds its shim by itself).
type Binaries struct {
	Containerd, Shim, Runc, Runsc, Wrapper string
}

// Config says where a node's containerd lives and what it runs.
type Config struct {
	Node     isolation.NodeID
	Dir      string // durable state: images, snapshots, the daemon's database
	Binaries Binaries
	// HostAddress is the socket of a containerd that is there already; no
	// daemon is started then. Empty: a private one.
	HostAddress string
	// Carried maps references that never touch a network to image archives
	// (OCI layouts in a tar): "carried.redoubt/toolbox:1" → path.
	Carried map[string]string
	// Insecure lists registry hosts (host[:port]) that are spoken to in plain
	// HTTP. Loopback always may be.
	Insecure []string
	// Registries is where the node's credentials, mirrors and roots lie; see
	// package registry. It may be empty.
	Registries registry.Dir
	// Traffic bounds each pull; zero fields have their defaults.
	Traffic registry.Limits
	// Images bounds what images take.
	Images ImageLimits
	Log    *slog.Logger
}

// ImageLimits bounds what images take of a node; zero fields take the default
// in brackets.
type ImageLimits struct {
	// MaxSize is what one image may take, before and after it is unpacked
	// [16 GiB].
	MaxSize int64
	// Pulls is how many images are fetched at once [3].
	Pulls int
	// High and Low are percentages of the file system that images lie on: when
	// more than High is in use, unused images are removed until no more than
	// Low is [85, 80]. A High of 100 turns that off.
	High, Low int
	// MinAge is how long after its last use an image is never removed [2m].
	MinAge time.Duration
}

func (l ImageLimits) withDefaults() ImageLimits {
	if l.MaxSize == 0 {
		l.MaxSize = 16 << 30
	}
	if l.Pulls == 0 {
		l.Pulls = 3
	}
	if l.High == 0 && l.Low == 0 {
		l.High, l.Low = 85, 80
	}
	if l.MinAge == 0 {
		l.MinAge = 2 * time.Minute
	}
	return l
}

// Validate names the first limit that makes no sense.
func (l ImageLimits) Validate() error {
	l = l.withDefaults()
	switch {
	case l.MaxSize < 1<<20:
		return fmt.Errorf("the largest image allowed, %d bytes, is below 1 MiB", l.MaxSize)
	case l.Pulls < 1 || l.Pulls > 64:
		return fmt.Errorf("%d images pulled at once: 1 to 64", l.Pulls)
	case l.Low < 1 || l.High > 100 || l.Low >= l.High:
		return fmt.Errorf("images are removed from %d %% down to %d %%: both are 1 to 100, and the second is the smaller", l.High, l.Low)
	case l.MinAge < 0:
		return fmt.Errorf("the age %s, below which images are kept, is negative", l.MinAge)
	}
	return nil
}

func (c Config) maxImage() int64 { return c.Images.withDefaults().MaxSize }

// A node id becomes part of paths, of a containerd namespace and of command
// lines.
var nodeID = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,38}[a-z0-9])?$`)

func (c Config) validate() error {
	if !nodeID.MatchString(string(c.Node)) {
		return fmt.Errorf("containerd: node id %q is not 1 to 40 characters of a-z, 0-9, dot and dash, with a letter or digit at both ends", c.Node)
	}
	if !filepath.IsAbs(c.Dir) {
		return fmt.Errorf("containerd: directory %q is not absolute", c.Dir)
	}
	if c.Log == nil {
		return errors.New("containerd: no logger")
	}
	need := map[string]string{"the wrapper": c.Binaries.Wrapper}
	if c.HostAddress == "" {
		need["containerd"], need["its shim"] = c.Binaries.Containerd, c.Binaries.Shim
	}
	if err := c.Images.Validate(); err != nil {
		return fmt.Errorf("containerd: %w", err)
	}
	for name, path := range need {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("containerd: the path of %s, %q, is not absolute", name, path)
		}
	}
	return nil
}

// namespace is the containerd namespace of this node.
func (c Config) namespace() string { return "redoubt-" + string(c.Node) }

// runDir holds sockets and what a reboot may clear. Its path is short, since a
// unix socket's may have 107 bytes, and free of "detach", which runsc's exec
// would take for a flag.
func (c Config) runDir() string {
	sum := sha256.Sum256([]byte(string(c.Node) + "\x00" + filepath.Clean(c.Dir)))
	return fmt.Sprintf("%s/%x", runRoot, sum[:4])
}

const runRoot = "/run/redoubt"

func (c Config) address() string {
	if c.HostAddress != "" {
		return strings.TrimPrefix(c.HostAddress, "unix://")
	}
	return c.runDir() + "/c.sock"
}

// runtimeRoot is where runc and runsc keep their state; the shim appends the
// namespace.
func (c Config) runtimeRoot() string { return c.runDir() + "/r" }

// stateDir holds the bundles: <stateDir>/io.containerd.runtime.v2.task/NS/ID.
func (c Config) stateDir() string {
	if c.HostAddress != "" {
		return filepath.Dir(c.address()) // by containerd's own default
	}
	return c.runDir() + "/state"
}

func (c Config) bundle(id string) string {
	return filepath.Join(c.stateDir(), "io.containerd.runtime.v2.task", c.namespace(), id)
}

func (c Config) socketDir() string {
	if c.HostAddress != "" {
		return "/run/containerd/s"
	}
	return c.runDir() + "/s"
}

// shimSocket is the address that the runc shim derives for a container.
func (c Config) shimSocket(id string) string {
	sum := sha256.Sum256([]byte(filepath.Join(c.address(), c.namespace(), id)))
	return fmt.Sprintf("%s/%x", c.socketDir(), sum)
}

// cgroupParent is the control group above all containers of the node.
func (c Config) cgroupParent() string { return "/redoubt/" + string(c.Node) }
