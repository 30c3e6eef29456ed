package containerd

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/api/events"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/grpc"

	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/isolation"
)

// How long each call to the daemon may take, whatever the caller's context
// says. Healthy ones take milliseconds; a host that boots twenty sandboxes on
// two cores takes seconds.
const (
	askFor    = 5 * time.Second  // questions
	createFor = 60 * time.Second // a sandbox, on a busy host
	startTask = 30 * time.Second
	killFor   = 5 * time.Second // until force is used
	deleteFor = 15 * time.Second
)

// Labels of our own. A container's other labels are the caller's.
const (
	labelPrefix  = "redoubt.dev/"
	labelRuntime = labelPrefix + "runtime"
	labelVariant = labelPrefix + "variant"
	labelSpec    = labelPrefix + "spec"    // digest of the driver.Spec
	labelHandler = labelPrefix + "handler" // path of the wrapper
	labelMemory  = labelPrefix + "memory"  // the workload's limit, for messages
	labelStarted = labelPrefix + "started" // JSON of startRecord
	labelExit    = labelPrefix + "exit"    // JSON of driver.Exit
)

// startRecord is noted before a workload's first instruction.
type startRecord struct {
	process
	Boot string
	At   time.Time
}

// Driver implements driver.Driver. Run keeps the exits that happen recorded;
// without it they are recorded when List is next called.
type Driver struct {
	cfg    Config
	log    *slog.Logger
	client *containerd.Client
	sweep  *sweeper

	changed chan struct{}
	room    chan struct{} // a pull found too little of it
	busy    perID
	images  *imageWork
	used    func() (percent int, err error) // of the disk; diskUsed

	mu          sync.Mutex
	snapshotter string // found at first use
}

var _ driver.Driver = (*Driver)(nil)

// NewDriver checks the configuration. It neither starts nor needs a daemon
// yet: calls wait for one until their context ends.
func NewDriver(cfg Config) (*Driver, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	sw, err := newSweeper(cfg)
	if err != nil {
		return nil, err
	}
	if err := cfg.Registries.Check(); err != nil {
		// Not fatal: what needs the file fails then, and says so again.
		cfg.Log.Error("settings for image registries are not usable", "dir", string(cfg.Registries), "err", err)
	}
	quietLibrary()
	client, err := dial(cfg)
	if err != nil {
		return nil, err
	}
	d := &Driver{
		cfg: cfg, log: cfg.Log.With("node", string(cfg.Node)), client: client, sweep: sw,
		changed: make(chan struct{}, 1), room: make(chan struct{}, 1),
		images: newImageWork(cfg.Images.withDefaults().Pulls),
	}
	d.used = d.diskUsed
	return d, nil
}

// containerd's client writes to standard error on its own; what matters of that
// comes back as an error.
var quietLibrary = sync.OnceFunc(func() { _ = log.SetLevel("panic") })

// Close ends the connection. Containers and daemon stay.
func (d *Driver) Close() error { return d.client.Close() }

// dial makes a client whose calls wait, within their own deadline, for a
// daemon that is being restarted.
func dial(cfg Config) (*containerd.Client, error) {
	client, err := containerd.New(cfg.address(),
		containerd.WithDefaultNamespace(cfg.namespace()),
		containerd.WithTimeout(time.Second),
		containerd.WithCallOpts([]grpc.CallOption{grpc.WaitForReady(true)}),
	)
	if err != nil {
		return nil, fmt.Errorf("containerd at %s: %w", cfg.address(), err)
	}
	return client, nil
}

// bound puts the namespace and a deadline on a call.
func (d *Driver) bound(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(namespaces.WithNamespace(ctx, d.cfg.namespace()), limit)
}

// detached is for cleaning up after a caller has gone.
func (d *Driver) detached(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	return d.bound(context.WithoutCancel(ctx), limit)
}

// wrap adds operation and id and the sentinel that the cause stands for.
func wrap(op string, id driver.ID, err error) error {
	if err == nil {
		return nil
	}
	for _, known := range []error{
		driver.ErrNotFound, driver.ErrNotRunning, driver.ErrConflict, driver.ErrRuntime,
		driver.ErrImage, driver.ErrDowngrade, driver.ErrUnavailable,
	} {
		if errors.Is(err, known) {
			return fmt.Errorf("%s container %s: %w", op, id, err)
		}
	}
	var kind error
	switch {
	case errdefs.IsUnavailable(err), errdefs.IsDeadlineExceeded(err), errors.Is(err, context.DeadlineExceeded):
		kind = driver.ErrUnavailable
	case errdefs.IsNotFound(err):
		kind = driver.ErrNotFound
	default:
		return fmt.Errorf("%s container %s: %w", op, id, err)
	}
	return fmt.Errorf("%s container %s: %w: %w", op, id, kind, err)
}

var idRe = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,58}[a-z0-9])?$`)

func checkID(id driver.ID) error {
	if !idRe.MatchString(string(id)) || strings.Contains(string(id), "detach") {
		return fmt.Errorf("container id %q: 1 to 60 of a-z, 0-9 and dash, a letter or digit at both ends, without \"detach\"", id)
	}
	return nil
}

// specDigest tells specs apart; empty and absent lists are the same.
func specDigest(s driver.Spec) string {
	v := reflect.ValueOf(&s).Elem()
	for i := range v.NumField() {
		if f := v.Field(i); (f.Kind() == reflect.Slice || f.Kind() == reflect.Map) && f.Len() == 0 {
			f.SetZero()
		}
	}
	data, err := json.Marshal(s) // maps by sorted key
	if err != nil {
		panic(err) // plain values
	}
	return fmt.Sprintf("%x", sha256.Sum256(data))
}

// perID lets one operation at a time at each id.
type perID struct {
	mu   sync.Mutex
	held map[driver.ID]chan struct{}
}

func (k *perID) lock(ctx context.Context, id driver.ID) (func(), error) {
	for {
		k.mu.Lock()
		if k.held == nil {
			k.held = map[driver.ID]chan struct{}{}
		}
		other, ok := k.held[id]
		if !ok {
			mine := make(chan struct{})
			k.held[id] = mine
			k.mu.Unlock()
			return func() {
				k.mu.Lock()
				delete(k.held, id)
				k.mu.Unlock()
				close(mine)
			}, nil
		}
		k.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, fmt.Errorf("another operation is at work: %w", ctx.Err())
		}
	}
}

func (k *perID) isHeld(id driver.ID) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, ok := k.held[id]
	return ok
}

// Changed implements driver.Driver.
func (d *Driver) Changed() <-chan struct{} { return d.changed }

func (d *Driver) notify() {
	select {
	case d.changed <- struct{}{}:
	default:
	}
}

// Run follows the daemon's events: each exit is recorded with its container as
// soon as it is known, and Changed is told. It returns when ctx ends.
func (d *Driver) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := d.follow(ctx); ctx.Err() == nil {
			d.log.Debug("events of containerd are subscribed again", "cause", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond):
		}
	}
	return nil
}

func (d *Driver) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(namespaces.WithNamespace(ctx, d.cfg.namespace()))
	defer cancel()
	feed, fail := d.client.Subscribe(ctx, fmt.Sprintf(`namespace==%q,topic~="^/tasks/"`, d.cfg.namespace()))
	// What happened before is found by looking.
	if _, err := d.List(ctx); err != nil {
		return err
	}
	d.notify()
	for {
		select {
		case err := <-fail:
			// Whatever was missed while there was no feed may have changed
			// anything.
			d.notify()
			return err
		case env := <-feed:
			if env == nil || env.Event == nil {
				continue
			}
			event, err := typeurl.UnmarshalAny(env.Event)
			if err != nil {
				continue
			}
			if e, ok := event.(*events.TaskExit); ok {
				if e.ID != e.ContainerID {
					continue // an exec's
				}
				d.collect(ctx, driver.ID(e.ContainerID))
			}
			d.notify()
		}
	}
}

// collect records the exit of id, if it has exited.
func (d *Driver) collect(ctx context.Context, id driver.ID) {
	ctx, cancel := d.bound(ctx, askFor)
	defer cancel()
	c, err := d.load(ctx, id)
	if err != nil {
		return
	}
	_ = d.settle(ctx, c)
}

// found is what is known about one container: containerd's record and task.
type found struct {
	containerd.Container
	id     driver.ID
	labels map[string]string
	task   *task.Process // nil: there is none
	silent bool          // the daemon or the shim did not answer
}

func (d *Driver) load(ctx context.Context, id driver.ID) (*found, error) {
	ask, cancel := d.bound(ctx, askFor)
	defer cancel()
	c, err := d.client.LoadContainer(ask, string(id))
	if err != nil {
		return nil, err
	}
	f := &found{Container: c, id: id}
	if err := d.look(ctx, f); err != nil {
		return nil, err
	}
	return f, nil
}

// look refreshes labels and task of f.
func (d *Driver) look(ctx context.Context, f *found) error {
	ask, cancel := d.bound(ctx, askFor)
	defer cancel()
	info, err := f.Info(ask, containerd.WithoutRefreshedMetadata)
	if err != nil {
		return err
	}
	f.labels, f.task, f.silent = info.Labels, nil, false
	r, err := d.client.TaskService().Get(ask, &tasksapi.GetRequest{ContainerID: string(f.id)})
	err = errgrpc.ToNative(err)
	switch {
	case err == nil:
		f.task = r.Process
		// The daemon answers for a shim that did not: it knows nothing then.
		f.silent = r.Process.Status == task.Status_UNKNOWN
	case errdefs.IsNotFound(err):
	case ctx.Err() != nil:
		return ctx.Err() // the caller's patience ended, not the shim's life
	case errdefs.IsDeadlineExceeded(err), errdefs.IsUnavailable(err), errors.Is(err, context.DeadlineExceeded):
		f.silent = true
	default:
		return err
	}
	return nil
}

func (f *found) runtime() (isolation.Name, string) {
	return isolation.Name(f.labels[labelRuntime]), f.labels[labelVariant]
}

// started returns what was noted at start; zero if it never was started.
func (f *found) started() startRecord {
	var r startRecord
	_ = json.Unmarshal([]byte(f.labels[labelStarted]), &r)
	return r
}

func (f *found) exit() *driver.Exit {
	text, ok := f.labels[labelExit]
	if !ok {
		return nil
	}
	var e driver.Exit
	if json.Unmarshal([]byte(text), &e) != nil {
		return nil
	}
	return &e
}

func (d *Driver) label(ctx context.Context, f *found, key string, value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	ctx, cancel := d.bound(ctx, askFor)
	defer cancel()
	labels, err := f.SetLabels(ctx, map[string]string{key: string(data)})
	if err != nil {
		return err
	}
	f.labels = labels
	return nil
}

func discard(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}
