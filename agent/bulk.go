package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/agent/logs"
	"redoubt.dev/redoubt/agent/reconcile"
	"redoubt.dev/redoubt/agent/session"
	"redoubt.dev/redoubt/agent/store"
	"redoubt.dev/redoubt/isolation"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// bulk answers exec, logs and forwards.
type bulk struct {
	driver driver.Driver
	inside func(ctx context.Context, uid string, port uint16) (net.Conn, error)
	egress func(uid string) ([]EgressCount, error) // may be nil
	store  *store.Store
	logs   string // directory
}

func (b *bulk) logPath(uid string) string { return filepath.Join(b.logs, uid+".log") }

func (b *bulk) find(uid string) (store.Facts, bool) {
	for _, f := range b.store.Facts() {
		if f.UID == uid {
			return f, true
		}
	}
	return store.Facts{}, false
}

// running returns the facts of an instance that runs.
func (b *bulk) running(uid string) (store.Facts, error) {
	f, ok := b.find(uid)
	switch {
	case !ok:
		return f, status.Error(codes.NotFound, "the instance is not on this node")
	case f.Phase != store.Running:
		why := f.Message
		if why != "" {
			why = ": " + why
		}
		return f, status.Errorf(codes.FailedPrecondition, "%s is not running, it is %s%s", f.Instance, f.Phase, why)
	}
	return f, nil
}

// Exec implements session.Bulk.
func (b *bulk) Exec(ctx context.Context, uid string, spec driver.ExecSpec, streams driver.Streams, started func(string)) (int, error) {
	f, err := b.running(uid)
	if err != nil {
		return 0, err
	}
	started(f.Instance)
	return b.driver.Exec(ctx, reconcile.ContainerID(uid), spec, streams)
}

// Forward implements session.Bulk.
func (b *bulk) Forward(ctx context.Context, uid string, port uint16) (string, net.Conn, error) {
	f, err := b.running(uid)
	if err != nil {
		return "", nil, err
	}
	if b.inside == nil {
		return "", nil, status.Error(codes.Unimplemented, "this node's driver forwards no ports")
	}
	conn, err := b.inside(ctx, uid, port)
	switch {
	case err == nil:
		return f.Instance, conn, nil
	case errors.Is(err, syscall.ECONNREFUSED):
		return "", nil, status.Errorf(codes.FailedPrecondition, "connection refused: nothing listens on port %d of %s%s", port, f.Instance, unreachable(f))
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return "", nil, status.Errorf(codes.DeadlineExceeded, "port %d of %s did not accept in time", port, f.Instance)
	}
	return "", nil, fmt.Errorf("connect to port %d of %s: %w", port, f.Instance, err)
}

// unreachable says what a listener that is there all the same would have to be.
func unreachable(f store.Facts) string {
	if f.Runtime != string(isolation.RuntimeGVisor) {
		return ""
	}
	if f.Address == "" {
		return " that can be reached: under gVisor, an instance with `network: none` has no port that anything outside of its sandbox reaches"
	}
	return " that can be reached: under gVisor, what listens on 127.0.0.1 only is not reached from outside of the sandbox; let it listen on 0.0.0.0"
}

// EgressCount is how often an instance opened a connection by one of its egress
// rules, or was refused.
type EgressCount struct {
	Rule           string
	Packets, Bytes uint64
	Refused        bool
}

// Egress implements session.Bulk.
func (b *bulk) Egress(_ context.Context, uid string) (*redoubtv1.EgressCounts, error) {
	if _, err := b.running(uid); err != nil {
		return nil, err
	}
	out := &redoubtv1.EgressCounts{}
	if b.egress == nil {
		return out, nil
	}
	counts, err := b.egress(uid)
	for _, c := range counts {
		out.Rules = append(out.Rules, &redoubtv1.EgressCount{Rule: c.Rule, Packets: c.Packets, Bytes: c.Bytes, Refused: c.Refused})
	}
	return out, err
}

// Logs implements session.Bulk. Following ends with the instance.
func (b *bulk) Logs(ctx context.Context, uid string, opts session.LogOptions, hand func(session.LogChunk) error) error {
	f, ok := b.find(uid)
	if !ok {
		return status.Error(codes.NotFound, "the instance is not on this node")
	}
	o := logs.Options{From: opts.From, Tail: opts.Tail, Since: opts.Since, Previous: opts.Previous, Follow: opts.Follow}
	if opts.SinceAgo > 0 {
		o.Since = time.Now().Add(-opts.SinceAgo)
	}
	if o.Follow {
		// Gone is what ends only the following: hand goes by ctx itself.
		gone, cancel := context.WithCancel(ctx)
		defer cancel()
		changed, stop := b.store.Watch()
		defer stop()
		var watching sync.WaitGroup
		defer watching.Wait()
		defer cancel()
		watching.Go(func() {
			for {
				if f, ok := b.find(uid); !ok || f.Phase.Final() {
					cancel()
					return
				}
				select {
				case <-changed:
				case <-gone.Done():
					return
				}
			}
		})
		ctx = gone
	}
	err := logs.Read(ctx, b.logPath(uid), o, func(c logs.Chunk) error { return hand(session.LogChunk(c)) })
	if errors.Is(err, logs.ErrNoPrevious) {
		return status.Errorf(codes.FailedPrecondition, "%s: %v", f.Instance, logs.ErrNoPrevious)
	}
	return err
}
