package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/api/types/task"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/agent/image"
	"redoubt.dev/redoubt/proto/tracing"
)

// shimName is the one shim that everything runs behind; see
// docs/decisions/0001-runsc-behind-the-runc-shim.md.
const shimName = "io.containerd.runc.v2"

// Start implements driver.Driver.
func (d *Driver) Start(ctx context.Context, s driver.Spec) (driver.Container, error) {
	if err := checkID(s.ID); err != nil {
		return driver.Container{}, err
	}
	unlock, err := d.busy.lock(ctx, s.ID)
	if err != nil {
		return driver.Container{}, wrap("start", s.ID, err)
	}
	defer unlock()
	c, err := d.start(ctx, s)
	return c, wrap("start", s.ID, err)
}

func (d *Driver) start(ctx context.Context, s driver.Spec) (driver.Container, error) {
	r, err := d.cfg.runtimeOf(s.Runtime, s.Variant)
	if err != nil {
		return driver.Container{}, err
	}
	f, err := d.load(ctx, s.ID)
	switch {
	case errdefs.IsNotFound(err):
	case err != nil:
		return driver.Container{}, err
	case f.silent:
		return driver.Container{}, fmt.Errorf("its shim does not answer; delete it first: %w", driver.ErrUnavailable)
	case f.task != nil && (f.task.Status == task.Status_RUNNING || f.task.Status == task.Status_PAUSED || f.task.Status == task.Status_PAUSING):
		if f.labels[labelSpec] != specDigest(s) {
			return driver.Container{}, driver.ErrConflict
		}
		return d.container(f), nil
	}
	// What is left of an earlier one, living and lost to the daemon or dead,
	// goes before a new one comes.
	if f != nil || len(d.sweep.cg.children(d.sweep.group(string(s.ID)))) > 0 || d.anything(s.ID) {
		if err := d.remove(ctx, s.ID); err != nil {
			return driver.Container{}, fmt.Errorf("remove the earlier one: %w", err)
		}
	}
	started, begun, err := d.create(ctx, s, r)
	if err != nil && begun {
		// The workload has run, or runs: taking it away would hide that from
		// the caller, who would run it again. List tells what became of it.
		return driver.Container{}, err
	}
	if err != nil {
		clean, cancel := d.detached(ctx, createFor)
		defer cancel()
		if e := d.remove(clean, s.ID); e != nil {
			d.log.Warn("a failed start left something behind", "instance", string(s.ID), "cause", e)
		}
		return driver.Container{}, err
	}
	d.log.Info("container started", "instance", string(s.ID), "runtime", string(r.Name), "variant", r.Variant, "pid", started.Pid)
	return started, nil
}

// anything tells whether a control group or a bundle of id is there.
func (d *Driver) anything(id driver.ID) bool {
	paths := []string{d.cfg.bundle(string(id))}
	for _, m := range d.sweep.cg.mounts {
		paths = append(paths, filepath.Join(m, d.sweep.group(string(id))))
	}
	for _, p := range paths {
		if _, err := os.Stat(p); err == nil {
			return true
		}
	}
	return false
}

// create makes a container and starts its workload; begun tells whether the
// workload may have begun.
func (d *Driver) create(ctx context.Context, s driver.Spec, r ociRuntime) (_ driver.Container, begun bool, _ error) {
	var none driver.Container
	handler, err := d.cfg.handler(r)
	if err != nil {
		return none, false, err
	}
	img, config, err := d.unpacked(ctx, s.Image)
	if err != nil {
		return none, false, err
	}
	spec, err := ociSpec(s, config, r, d.sweep.group(string(s.ID)), d.sweep.cg.unified)
	if err != nil {
		return none, false, err
	}
	user := s.User
	if user == "" {
		user = config.User
	}
	if user == "" {
		user = "0:0"
	}
	labels := map[string]string{
		labelRuntime: string(s.Runtime), labelVariant: r.Variant, labelHandler: handler,
		labelSpec: specDigest(s), labelMemory: fmt.Sprint(s.Limits.Memory),
	}
	for k, v := range s.Labels {
		if strings.HasPrefix(k, labelPrefix) {
			return none, false, fmt.Errorf("label %q: the prefix %s is taken", k, labelPrefix)
		}
		labels[k] = v
	}
	snapshotter, err := d.snapshots(ctx)
	if err != nil {
		return none, false, err
	}

	call, cancel := d.bound(ctx, createFor)
	defer cancel()
	began := time.Now()
	c, err := d.client.NewContainer(call, string(s.ID),
		containerd.WithImageName(img.Name()),
		containerd.WithSnapshotter(snapshotter),
		containerd.WithNewSnapshot(string(s.ID), img),
		containerd.WithContainerLabels(labels),
		containerd.WithRuntime(shimName, &options.Options{BinaryName: handler, Root: d.cfg.runtimeRoot()}),
		containerd.WithSpec(spec, oci.WithUser(user)),
	)
	if err != nil {
		return none, false, fmt.Errorf("make the container: %w", err)
	}
	output, err := outputTo(s.LogPath)
	if err != nil {
		return none, false, err
	}
	span := tracing.SpanOf(ctx)
	span.Event(tracing.EventRecorded)
	recorded := time.Now()
	t, err := c.NewTask(call, output)
	if err != nil {
		if fault := commandFault(err); fault != nil {
			return none, false, fault
		}
		return none, false, fmt.Errorf("make the sandbox: %w", err)
	}
	// The sandbox is up, the workload not yet in it.
	sandboxed := time.Now()
	span.Event(tracing.EventSandboxed)
	proc, err := findProcess(int(t.Pid()))
	if err != nil {
		return none, false, fmt.Errorf("the process of the sandbox (pid %d) is gone: %w", t.Pid(), err)
	}
	if err := boundary(r, proc.Pid); err != nil {
		return none, false, err
	}
	f := &found{Container: c, id: s.ID}
	rec := startRecord{process: proc, Boot: bootID(), At: proc.started()}
	if err := d.label(ctx, f, labelStarted, rec); err != nil {
		return none, false, fmt.Errorf("note the start: %w", err)
	}
	run, cancel := d.bound(ctx, startTask)
	defer cancel()
	if err := t.Start(run); err != nil {
		if fault := commandFault(err); fault != nil {
			return none, false, fault
		}
		// Without an answer the workload may run all the same.
		return none, run.Err() != nil, fmt.Errorf("start the workload: %w", err)
	}
	d.log.Debug("container start took", "instance", string(s.ID), "record", recorded.Sub(began), "sandbox", sandboxed.Sub(recorded), "workload", time.Since(sandboxed))
	if err := d.look(ctx, f); err != nil {
		return none, true, err
	}
	if err := d.settle(ctx, f); err != nil { // it may be that fast
		return none, true, err
	}
	return d.container(f), true, nil
}

// boundary checks that the process between the workload and the host is the
// one that the runtime promises. It says nothing about how good that is; the
// canary and the receipts do.
func boundary(r ociRuntime, pid int) error {
	if !r.Sandbox {
		return nil
	}
	ok, err := runsFile(pid, r.Path)
	if err != nil {
		return fmt.Errorf("look at the sandbox's process: %w", err)
	}
	if !ok {
		exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		return fmt.Errorf("%s promises a sentry, but pid %d runs %s: %w", r.Name, pid, exe, driver.ErrDowngrade)
	}
	return nil
}

// outputTo appends to a file, which no reader can block and which survives
// agent and daemon. It is made here, since the shim would make it readable for
// all.
//
// The shim is given two spellings of one path. If they were the same, as its
// "file://" scheme makes them, it would open the file once and close it when
// the first of the two streams ends: whatever a container then still writes to
// the other is lost, its last words on standard error above all.
func outputTo(path string) (cio.Creator, error) {
	if path == "" {
		return cio.NullIO, nil
	}
	path = filepath.Clean(path)
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("log %q: the path is not absolute", path)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	f.Close()
	again := filepath.Dir(path) + "/./" + filepath.Base(path)
	return func(string) (cio.IO, error) { return logFile{stdout: path, stderr: again}, nil }, nil
}

// logFile is output that nothing on our side takes part in.
type logFile struct{ stdout, stderr string }

func (l logFile) Config() cio.Config { return cio.Config{Stdout: l.stdout, Stderr: l.stderr} }
func (logFile) Cancel()              {}
func (logFile) Wait()                {}
func (logFile) Close() error         { return nil }

// unpacked returns an image that EnsureImage made startable, and its config.
func (d *Driver) unpacked(ctx context.Context, name string) (containerd.Image, ocispec.ImageConfig, error) {
	var config ocispec.ImageConfig
	ref, err := image.Parse(name)
	if err != nil {
		return nil, config, fmt.Errorf("%w: %w", driver.ErrImage, err)
	}
	call, cancel := d.bound(ctx, createFor)
	defer cancel()
	img, err := d.client.GetImage(call, ref.Name)
	if errdefs.IsNotFound(err) {
		return nil, config, fmt.Errorf("%s is not on this node: %w", ref.Name, driver.ErrImage)
	}
	if err != nil {
		return nil, config, fmt.Errorf("image %s: %w", ref.Name, err)
	}
	if err := d.unpack(call, img); err != nil {
		return nil, config, err
	}
	desc, err := images.Config(call, d.client.ContentStore(), img.Target(), img.Platform())
	if err != nil {
		return nil, config, fmt.Errorf("image %s: find its config: %w", ref.Name, err)
	}
	if desc.Size > image.MaxConfig {
		return nil, config, fmt.Errorf("image %s: a config of %d bytes is larger than the %d that are read: %w", ref.Name, desc.Size, image.MaxConfig, driver.ErrImage)
	}
	data, err := content.ReadBlob(call, d.client.ContentStore(), desc)
	if err != nil {
		return nil, config, fmt.Errorf("image %s: read its config: %w", ref.Name, err)
	}
	var whole ocispec.Image
	if err := json.Unmarshal(data, &whole); err != nil {
		return nil, config, fmt.Errorf("image %s: its config: %w: %w", ref.Name, err, driver.ErrImage)
	}
	// Labels are orders to some; see ociSpec.
	whole.Config.Labels = nil
	return img, whole.Config, nil
}

// snapshots names the snapshotter to use: overlayfs, or, on a file system that
// cannot carry it, full copies.
func (d *Driver) snapshots(ctx context.Context) (string, error) {
	d.mu.Lock()
	name := d.snapshotter
	d.mu.Unlock()
	if name != "" {
		return name, nil
	}
	ctx, cancel := d.bound(ctx, askFor)
	defer cancel()
	r, err := d.client.IntrospectionService().Plugins(ctx, `type==io.containerd.snapshotter.v1`)
	if err != nil {
		return "", fmt.Errorf("ask for snapshotters: %w", err)
	}
	usable := map[string]bool{}
	for _, p := range r.Plugins {
		usable[p.ID] = p.InitErr == nil
	}
	switch {
	case usable["overlayfs"]:
		name = "overlayfs"
	case usable["native"]:
		name = "native"
	default:
		return "", errors.New("containerd has neither overlayfs nor native snapshots here")
	}
	d.mu.Lock()
	d.snapshotter = name
	d.mu.Unlock()
	return name, nil
}

func isGone(err error) bool { return errdefs.IsNotFound(err) || errors.Is(err, fs.ErrNotExist) }
