package consensus

import (
	"errors"
	"fmt"
)

var (
	// ErrNotLeader: another server leads, or none; a *NotLeaderError has more.
	ErrNotLeader = errors.New("this server is not the leader")
	// ErrOutcomeUnknown: the command may or may not be done, now or later.
	// Propose it again under the same id to find out.
	ErrOutcomeUnknown = errors.New("the outcome is unknown")
	// ErrTooLarge: the command has more than MaxCommand bytes.
	ErrTooLarge = errors.New("the command is too large")
	// ErrBusy: the command waited for its turn in vain and was not proposed.
	ErrBusy = errors.New("too many commands are under way")
	// ErrStopped: the node is not running (yet, or any more).
	ErrStopped = errors.New("consensus is not running on this server")
	// ErrFeatureLevel: a voter cannot apply the command yet.
	ErrFeatureLevel = errors.New("a server is too old for this command")
	// ErrInUse: another process holds the data directory.
	ErrInUse = errors.New("data directory is in use")
	// ErrForeign: the data directory is another server's or another cluster's.
	ErrForeign = errors.New("data directory belongs to another server")
	// ErrBootstrapped: the data directory holds a log already.
	ErrBootstrapped = errors.New("this server has a log already")
)

// NotLeaderError is an ErrNotLeader that says who leads, as far as is known.
type NotLeaderError struct {
	// LeaderID and LeaderAddress (Raft's) are empty where none is known.
	LeaderID, LeaderAddress string
}

func (e *NotLeaderError) Error() string {
	if e.LeaderID == "" {
		return ErrNotLeader.Error() + ", and none is elected"
	}
	return fmt.Sprintf("%v; %s at %s is", ErrNotLeader, e.LeaderID, e.LeaderAddress)
}

// Is makes every NotLeaderError an ErrNotLeader.
func (e *NotLeaderError) Is(target error) bool { return target == ErrNotLeader }
