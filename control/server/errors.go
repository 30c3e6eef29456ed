package server

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"redoubt.dev/redoubt/control/consensus"
	"redoubt.dev/redoubt/control/leader"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// toStatus gives an error from inside the code that its caller can act on.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	switch {
	case errors.Is(err, consensus.ErrOutcomeUnknown):
		return status.Errorf(codes.Aborted, "%v; look before you repeat it (with the same command id a repeat is harmless)", err)
	case errors.Is(err, consensus.ErrNotLeader), errors.Is(err, leader.ErrNotLeader):
		return status.Errorf(codes.FailedPrecondition, "%v", err)
	case errors.Is(err, consensus.ErrStopped):
		return status.Error(codes.Unavailable, errStopping.Error())
	case errors.Is(err, consensus.ErrBusy):
		return status.Errorf(codes.ResourceExhausted, "%v", err)
	case errors.Is(err, consensus.ErrTooLarge):
		return status.Errorf(codes.InvalidArgument, "%v", err)
	case errors.Is(err, consensus.ErrFeatureLevel):
		return status.Errorf(codes.FailedPrecondition, "%v", err)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return status.FromContextError(err).Err()
	}
	return status.Error(codes.Internal, err.Error())
}

// retryable tells whether a proposal under the same id may help.
func retryable(err error) bool {
	if errors.Is(err, consensus.ErrOutcomeUnknown) || errors.Is(err, consensus.ErrNotLeader) || errors.Is(err, consensus.ErrBusy) {
		return true
	}
	switch status.Code(err) {
	case codes.Unavailable, codes.Aborted, codes.FailedPrecondition, codes.ResourceExhausted:
		return true
	}
	return false
}

// resultError is the first operation's refusal, nil if none was refused.
func resultError(results []*redoubtv1.OperationResult) error {
	for _, r := range results {
		if codes.Code(r.GetCode()) != codes.OK {
			return status.Error(codes.Code(r.GetCode()), r.GetMessage())
		}
	}
	return nil
}
