package agent

import (
	"context"
	"io"
	"path/filepath"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/agent/logs"
	"redoubt.dev/redoubt/agent/reconcile"
	"redoubt.dev/redoubt/agent/store"
)

// bulk answers exec and logs.
type bulk struct {
	driver driver.Driver
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

// Exec implements session.Bulk.
func (b *bulk) Exec(ctx context.Context, uid string, spec driver.ExecSpec, streams driver.Streams, started func(string)) (int, error) {
	f, ok := b.find(uid)
	switch {
	case !ok:
		return 0, status.Error(codes.NotFound, "the instance is not on this node")
	case f.Phase != store.Running:
		why := f.Message
		if why != "" {
			why = ": " + why
		}
		return 0, status.Errorf(codes.FailedPrecondition, "%s is not running, it is %s%s", f.Instance, f.Phase, why)
	}
	started(f.Instance)
	return b.driver.Exec(ctx, reconcile.ContainerID(uid), spec, streams)
}

// Logs implements session.Bulk.
func (b *bulk) Logs(ctx context.Context, uid string, tail int, follow bool, w io.Writer) error {
	if _, ok := b.find(uid); !ok {
		return status.Error(codes.NotFound, "the instance is not on this node")
	}
	at, err := logs.Tail(b.logPath(uid), tail, w)
	if err != nil || !follow {
		return err
	}
	// Following ends with the instance.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changed, stop := b.store.Watch()
	defer stop()
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		for {
			if f, ok := b.find(uid); !ok || f.Phase.Final() {
				cancel()
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	_, err = logs.Follow(ctx, b.logPath(uid), at, w)
	cancel()
	<-watching
	return err
}
