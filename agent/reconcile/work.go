package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/agent/store"
	"redoubt.dev/redoubt/proto/tracing"
)

// do carries out one action. An error means that it is to be tried again.
func (l *Loop) do(ctx context.Context, a Action, as *Assignment) error {
	switch a.Kind {
	case Record:
		return l.record(a.Facts)
	case Start:
		return l.start(ctx, a, as)
	case Condemn:
		if err := l.record(a.Facts); err != nil {
			return err
		}
		l.d.Log.Info("restarting", "instance", a.Facts.Instance, "uid", a.UID, "why", a.Why)
		return l.stop(ctx, a)
	case Stop:
		l.d.Log.Info("stopping", "instance", l.held(a.UID).Instance, "uid", a.UID, "why", a.Why)
		return l.stop(ctx, a)
	case End:
		return l.end(ctx, a)
	case Remove:
		l.d.Log.Info("removing", "instance", l.held(a.UID).Instance, "uid", a.UID, "why", a.Why)
		return l.remove(ctx, a.UID)
	case Forget:
		if l.d.LogGone != nil {
			l.d.LogGone(a.UID)
		}
		return l.d.Ledger.DropFacts(a.UID)
	}
	return fmt.Errorf("action %d of %s is not known", a.Kind, a.UID)
}

func (l *Loop) stop(ctx context.Context, a Action) error {
	ctx, cancel := context.WithTimeout(ctx, a.Grace+l.limits.Delete)
	defer cancel()
	err := l.d.Driver.Stop(ctx, ContainerID(a.UID), a.Grace)
	if errors.Is(err, driver.ErrNotFound) || errors.Is(err, driver.ErrNotRunning) {
		return nil
	}
	if err == nil || ctx.Err() == nil {
		return err
	}
	// It would not stop in time; what is left of it is ended by every means.
	return errors.Join(err, l.remove(context.WithoutCancel(ctx), a.UID))
}

func (l *Loop) record(f store.Facts) error {
	old := l.held(f.UID)
	f, err := l.d.Ledger.PutFacts(f)
	if err == nil && l.d.Recorded != nil {
		l.d.Recorded(old, f)
	}
	if err == nil && old.Phase != f.Phase {
		l.d.Log.Info("instance is "+string(f.Phase), "instance", f.Instance, "uid", f.UID, "runtime", f.Runtime, "pid", f.Pid, "why", f.Message)
	}
	return err
}

func (l *Loop) held(uid string) store.Facts {
	for _, f := range l.d.Ledger.Facts() {
		if f.UID == uid {
			return f
		}
	}
	return store.Facts{}
}

// end clears an instance away and only then writes its final phase.
func (l *Loop) end(ctx context.Context, a Action) error {
	f, err := l.d.Ledger.PutFacts(a.Facts)
	if err != nil {
		return err
	}
	if err := l.remove(ctx, a.UID); err != nil {
		return err
	}
	f.Phase, f.Ending, f.Pid = f.Ending, "", 0
	return l.record(f)
}

func (l *Loop) remove(ctx context.Context, uid string) error {
	ctx, cancel := context.WithTimeout(ctx, l.limits.Delete)
	defer cancel()
	if err := l.d.Driver.Delete(ctx, ContainerID(uid)); err != nil && !errors.Is(err, driver.ErrNotFound) {
		return fmt.Errorf("delete container of %s: %w", uid, err)
	}
	if err := l.d.Network.Detach(ctx, uid); err != nil {
		return fmt.Errorf("detach %s from the network: %w", uid, err)
	}
	return nil
}

// start brings an instance up. The attempt is on disk before anything is done.
func (l *Loop) start(ctx context.Context, a Action, as *Assignment) error {
	f, err := l.d.Ledger.PutFacts(a.Facts)
	if err != nil {
		return err
	}
	ctx, span := l.traceStart(ctx, f, as)
	f, err = l.bringUp(ctx, f, as)
	endStep(span, err)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		// Cancelled: by the end of the agent or of the assignment. The attempt
		// stays as it is; the next look sees what came of it.
		return ctx.Err()
	case refused(err):
		f.Ending, f.Message = store.Rejected, err.Error()
		return l.end(ctx, Action{UID: f.UID, Facts: f})
	}
	if fault := (*driver.CommandError)(nil); errors.As(err, &fault) {
		next := After(as, f, driver.Exit{Code: fault.Code, At: time.Now(), Reason: fault.Reason}, l.d.Now())
		if next.Ending != "" {
			return l.end(ctx, Action{UID: f.UID, Facts: next})
		}
		return l.record(next)
	}
	l.d.Log.Warn("start failed", "instance", as.Instance, "uid", as.UID, "runtime", as.Runtime, "err", err)
	return l.record(failedStart(f, err.Error(), l.d.Now()))
}

func refused(err error) bool {
	return errors.Is(err, ErrRefused) || errors.Is(err, driver.ErrRuntime) || errors.Is(err, driver.ErrDowngrade)
}

func (l *Loop) bringUp(ctx context.Context, f store.Facts, as *Assignment) (store.Facts, error) {
	spec := as.Container
	spec.ID, spec.Runtime, spec.Variant = ContainerID(as.UID), as.Runtime, as.Variant
	spec.Mounts = nil
	for _, m := range as.Container.Mounts {
		path, err := CheckHostPath(m.HostPath, l.d.AllowHostPaths)
		if err != nil {
			return f, fmt.Errorf("%w: %w", ErrRefused, err)
		}
		m.HostPath = path
		spec.Mounts = append(spec.Mounts, m)
	}
	var err error
	if f, err = l.fetch(ctx, f, as); err != nil {
		return f, err
	}

	select {
	case l.starts <- struct{}{}:
		defer func() { <-l.starts }()
	case <-ctx.Done():
		return f, ctx.Err()
	}
	attachCtx, cancel := context.WithTimeout(ctx, l.limits.Attach)
	attachCtx, span := l.d.Tracer.Start(attachCtx, tracing.NetworkAttach, tracing.Start{})
	at, err := l.d.Network.Attach(attachCtx, as.UID, NetworkSpec{
		Hostname: as.Instance, Workload: as.Namespace + "/" + as.Workload, Ports: as.Ports, None: as.NoNetwork, Rules: as.NetworkRules,
	})
	cancel()
	endStep(span, err)
	if err != nil {
		return f, fmt.Errorf("attach %s to the network: %w", as.Instance, err)
	}
	spec.Netns, spec.ResolvConf, spec.Hosts = at.Netns, at.ResolvConf, at.Hosts
	spec.Hostname = as.Instance
	spec.Env = append(slices.Clone(as.Container.Env), l.whoami(as)...)
	spec.LogPath = l.d.LogPath(as.UID)
	if l.d.LogStarts != nil {
		l.d.LogStarts(as.UID, f.Attempt)
	}
	spec.Labels = map[string]string{
		LabelUID: as.UID, LabelAttempt: strconv.FormatUint(f.Attempt, 10),
		LabelNamespace: as.Namespace, LabelWorkload: as.Workload, LabelInstance: as.Instance,
		LabelGrace: as.Grace.String(),
	}
	startCtx, cancel := context.WithTimeout(ctx, l.limits.Start)
	startCtx, span = l.d.Tracer.Start(startCtx, tracing.ContainerStart, tracing.Start{})
	c, err := l.d.Driver.Start(startCtx, spec)
	cancel()
	endStep(span, err)
	if err != nil {
		return f, fmt.Errorf("start %s under %s: %w", as.Instance, as.Runtime, err)
	}
	f = adopt(f, &c, l.d.Now())
	f.Ran, f.Address = l.d.Now(), at.Address
	if err := l.record(f); err != nil {
		return f, err
	}
	l.measure(ctx, f, c)
	return f, nil
}

// whoami tells a workload who it is. What it is told so cannot be set by its
// file.
func (l *Loop) whoami(as *Assignment) []string {
	return []string{
		"REDOUBT_NAMESPACE=" + as.Namespace, "REDOUBT_WORKLOAD=" + as.Workload, "REDOUBT_INSTANCE=" + as.Instance,
		"REDOUBT_INSTANCE_UID=" + as.UID, "REDOUBT_FENCE=" + strconv.FormatUint(as.Fence.Index, 10),
	}
}

// measure adds what the live boundary process shows. What could not be
// measured stays unmeasured; the instance runs all the same.
func (l *Loop) measure(ctx context.Context, f store.Facts, c driver.Container) {
	if l.d.Measure == nil || c.Pid == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, l.limits.Measure)
	defer cancel()
	ctx, span := l.d.Tracer.Start(ctx, tracing.BoundaryMeasure, tracing.Start{})
	m, err := l.d.Measure(ctx, c)
	endStep(span, err)
	if err != nil {
		l.d.Log.Debug("boundary process not measured", "instance", f.Instance, "pid", c.Pid, "err", err)
		return
	}
	f.Measured, f.Kernel = &m.Terms, m.Kernel
	if err := l.record(f); err != nil {
		l.d.Log.Warn("cannot record a measurement", "instance", f.Instance, "err", err)
	}
}

// fetch makes the image startable and tells, now and then, how far it is.
func (l *Loop) fetch(ctx context.Context, f store.Facts, as *Assignment) (store.Facts, error) {
	ctx, cancel := context.WithTimeout(ctx, l.limits.Pull)
	defer cancel()
	const every = 3 * time.Second
	var mu sync.Mutex // a late call of progress must not undo later facts
	told, over := time.Now(), false
	defer func() {
		mu.Lock()
		over = true
		mu.Unlock()
	}()
	progress := func(stage string, done, total int64) {
		mu.Lock()
		defer mu.Unlock()
		if over || time.Since(told) < every {
			return
		}
		told = time.Now()
		tell := f
		tell.Message = fetching(stage, as.Container.Image, done, total)
		if _, err := l.d.Ledger.PutFacts(tell); err != nil {
			l.d.Log.Warn("cannot record progress", "instance", f.UID, "err", err)
		}
	}
	ctx, span := l.d.Tracer.Start(ctx, tracing.ImageFetch, tracing.Start{})
	span.Set(tracing.KeyImage, as.Container.Image)
	digest, err := l.d.Driver.EnsureImage(ctx, as.Container.Image, as.PullPolicy, progress)
	endStep(span, err)
	if err != nil {
		return f, err // it names the image
	}
	f.ImageDigest = digest
	return f, nil
}

// fetching says how far an image is: "pull web:1: 12.0 of 36.5 MiB (32 %), 2 of
// 5 parts".
func fetching(stage, image string, done, total int64) string {
	stage, remark, _ := strings.Cut(stage, "; ")
	msg := stage + " " + image
	if total > 0 {
		const mebi = 1 << 20
		msg += fmt.Sprintf(": %.1f of %.1f MiB (%d %%)", float64(done)/mebi, float64(total)/mebi, int64(100*float64(done)/float64(total)))
	}
	if remark != "" {
		msg += ", " + remark
	}
	return msg
}
