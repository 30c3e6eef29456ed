package consensus

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"redoubt.dev/redoubt/control/state"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

const (
	// MaxCommand is the size of the largest command, in bytes.
	MaxCommand = 1 << 20
	// enqueueTimeout bounds how long a proposal waits before Raft has taken it,
	// where its context does not.
	enqueueTimeout = 10 * time.Second
)

// Result is what a command did.
type Result struct {
	// Index of its log entry: of the first one, if Duplicate.
	Index uint64
	// Results of its operations, in order. Shared: never change them.
	Results []*redoubtv1.OperationResult
	// Duplicate: an earlier command of that id had done it.
	Duplicate bool
}

// Propose has cmd applied by every server, and returns when it is applied here.
// An operation that was refused is no error of Propose: see Results. A command
// without an id gets one, and cannot be recognised when proposed again. The
// time is always stamped here; cmd itself is not changed.
func (n *Node) Propose(ctx context.Context, cmd *redoubtv1.Command) (Result, error) {
	begun := time.Now()
	r, err := n.propose(ctx, cmd)
	if n.cfg.Meter != nil {
		n.cfg.Meter.Proposed(time.Since(begun), err)
	}
	return r, err
}

func (n *Node) propose(ctx context.Context, cmd *redoubtv1.Command) (Result, error) {
	r, release, err := n.running()
	if err != nil {
		return Result{}, err
	}
	defer release()
	stamped := &redoubtv1.Command{
		Id: cmd.GetId(), Time: timestamppb.Now(), FeatureLevel: state.RequiredLevel(cmd), Operations: cmd.GetOperations(),
	}
	if stamped.Id == "" {
		stamped.Id = strings.ToLower(rand.Text())
	}
	data, err := proto.Marshal(stamped)
	if err != nil {
		return Result{}, fmt.Errorf("propose command %s: %w", stamped.Id, err)
	}
	if len(data) > MaxCommand {
		return Result{}, fmt.Errorf("propose command %s of %d bytes: %w: at most %d; split it", stamped.Id, len(data), ErrTooLarge, MaxCommand)
	}
	if r.State() != raft.Leader {
		return Result{}, notLeader(r)
	}
	if err := gate(stamped.FeatureLevel, voters(r), n.store.Snapshot()); err != nil {
		return Result{}, fmt.Errorf("propose command %s: %w", stamped.Id, err)
	}
	select {
	case n.inFlight <- struct{}{}:
	case <-ctx.Done():
		return Result{}, fmt.Errorf("propose command %s: %w: %w", stamped.Id, ErrBusy, ctx.Err())
	}
	f := r.Apply(data, enqueueFor(ctx))
	// The slot is held until Raft has answered, not until the caller has gone.
	future := slotFuture{f, n.inFlight}
	switch err := n.await(ctx, future); {
	case err == nil:
	case errors.Is(err, raft.ErrNotLeader):
		return Result{}, notLeader(r)
	case errors.Is(err, raft.ErrEnqueueTimeout), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return Result{}, fmt.Errorf("propose command %s: %w: %w", stamped.Id, ErrBusy, err)
	default:
		return Result{}, fmt.Errorf("propose command %s: %w: %w", stamped.Id, ErrOutcomeUnknown, err)
	}
	applied, ok := f.Response().(state.Applied)
	if !ok {
		return Result{}, fmt.Errorf("propose command %s: %w: the state machine answered %T", stamped.Id, ErrOutcomeUnknown, f.Response())
	}
	if applied.Err != nil {
		return Result{}, fmt.Errorf("propose command %s: %w", stamped.Id, applied.Err)
	}
	if !applied.Duplicate {
		n.committed(applied.Index)
	}
	return Result{Index: applied.Index, Results: applied.Results, Duplicate: applied.Duplicate}, nil
}

// slotFuture frees a place among the proposals under way when Raft has answered.
type slotFuture struct {
	raft.Future
	slots <-chan struct{}
}

func (f slotFuture) Error() error {
	defer func() { <-f.slots }()
	return f.Future.Error()
}

func enqueueFor(ctx context.Context) time.Duration {
	if t, ok := ctx.Deadline(); ok {
		return max(time.Millisecond, min(time.Until(t), enqueueTimeout))
	}
	return enqueueTimeout
}

// levels tells what a server declared that it can apply.
type levels interface {
	FeatureLevelOf(server string) (level uint32, ok bool)
}

// gate refuses a command that some voter could not apply: it would have to stop,
// and with enough of its kind the fleet would lose its majority. A voter that
// has declared nothing yet knows what every release knows.
func gate(level uint32, voters []string, declared levels) error {
	if level > state.FeatureLevel {
		return fmt.Errorf("%w: it needs feature level %d and this server knows %d", ErrFeatureLevel, level, state.FeatureLevel)
	}
	return weakest(level, voters, declared)
}

func weakest(level uint32, voters []string, declared levels) error {
	for _, id := range voters {
		have, ok := declared.FeatureLevelOf(id)
		if !ok || have < state.BaseLevel {
			have = state.BaseLevel
		}
		if have < level {
			return fmt.Errorf("%w: it needs feature level %d and server %s knows %d; upgrade that one first", ErrFeatureLevel, level, id, have)
		}
	}
	return nil
}
