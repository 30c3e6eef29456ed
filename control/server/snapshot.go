package server

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"redoubt.dev/redoubt/control/state"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

const (
	// snapshotChunk is how much of a snapshot one message carries, bytes.
	snapshotChunk = 256 << 10
	// snapshotWithin ends the sending of a snapshot to a caller who does not
	// read it: while it lasts, memory holds what has changed since.
	snapshotWithin = 10 * time.Minute
	// maxSnapshots are sent at a time.
	maxSnapshots = 2
)

// SaveSnapshot sends the state as of one moment. It is read twice, once for its
// length and hash, which go first.
func (s *fleetAPI) SaveSnapshot(req *redoubtv1.SaveSnapshotRequest, stream grpc.ServerStreamingServer[redoubtv1.SaveSnapshotResponse]) error {
	select {
	case s.snapshots <- struct{}{}:
		defer func() { <-s.snapshots }()
	default:
		return status.Errorf(codes.ResourceExhausted, "%d snapshots are being sent already: wait until one is done", maxSnapshots)
	}
	ctx, cancel := context.WithTimeoutCause(stream.Context(), snapshotWithin, errors.New("the snapshot was not read in time"))
	defer cancel()
	if !req.GetStale() {
		fresh, done := context.WithTimeout(ctx, leaderWait)
		err := s.catchUp(fresh, 0)
		done()
		if err != nil {
			return status.Errorf(codes.Unavailable, "this server cannot tell what is current: %s; --stale saves what it has", status.Convert(toStatus(err)).Message())
		}
	}
	view := s.store.Snapshot()
	var size counter
	sum := sha256.New()
	if err := view.Write(io.MultiWriter(&size, sum)); err != nil {
		return fmt.Errorf("measure the snapshot of log index %d: %w", view.Index(), err)
	}
	cluster := view.Cluster()
	if err := stream.Send(&redoubtv1.SaveSnapshotResponse{Message: &redoubtv1.SaveSnapshotResponse_Description{Description: &redoubtv1.SnapshotDescription{
		ClusterId: cluster.ID, TrustDomain: cluster.TrustDomain, Index: view.Index(), Term: s.consensus.Term(),
		Server: s.cfg.ID, Version: s.cfg.Version, FeatureLevel: state.FeatureLevel, Created: timestamp(time.Now()),
		Size: uint64(size), Sha256: sum.Sum(nil),
	}}}); err != nil {
		return err
	}
	out := &chunks{ctx: ctx, stream: stream}
	if err := view.Write(out); err != nil {
		return err
	}
	if err := out.flush(); err != nil {
		return err
	}
	s.log.Info("sent a snapshot", "index", view.Index(), "bytes", int64(size), "user", callerFrom(ctx).Name())
	return nil
}

// counter counts what is written to it.
type counter int64

func (c *counter) Write(p []byte) (int, error) { *c += counter(len(p)); return len(p), nil }

// chunks sends what is written to it in messages of snapshotChunk.
type chunks struct {
	ctx    context.Context
	stream grpc.ServerStreamingServer[redoubtv1.SaveSnapshotResponse]
	buf    []byte
}

func (c *chunks) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		take := min(len(p), snapshotChunk-len(c.buf))
		c.buf = append(c.buf, p[:take]...)
		p = p[take:]
		if len(c.buf) == snapshotChunk {
			if err := c.flush(); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

// flush sends what is gathered. A Send that waits for a reader who does not read
// ends with the stream, which the handler's return ends: it is not waited for
// longer than the context lasts.
func (c *chunks) flush() error {
	if len(c.buf) == 0 {
		return context.Cause(c.ctx)
	}
	sent := make(chan error, 1)
	go func(data []byte) {
		sent <- c.stream.Send(&redoubtv1.SaveSnapshotResponse{Message: &redoubtv1.SaveSnapshotResponse_Data{Data: data}})
	}(c.buf)
	c.buf = nil
	select {
	case err := <-sent:
		return err
	case <-c.ctx.Done():
		return status.Error(codes.DeadlineExceeded, context.Cause(c.ctx).Error())
	}
}
