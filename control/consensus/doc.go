// Package consensus keeps the servers of a fleet in agreement: it wraps
// hashicorp/raft around a state.Store, on disk and over mutual TLS.
//
// It promises:
//
//   - What Propose returned without an error is on the disks of a majority and
//     applied here. What it refused with any error but ErrOutcomeUnknown was
//     not done and never will be. After ErrOutcomeUnknown the same command, with
//     the same id, can be proposed again to whoever leads: it is done once.
//   - After VerifyRead, a view of the store that is taken next shows everything
//     that was acknowledged before the call, by any leader. A server that was
//     deposed without knowing refuses.
//   - Lead runs its function only while this server leads and after everything
//     of earlier terms has been applied; its context ends with the term.
//   - Nothing above the feature level of the weakest voter is proposed.
//   - A data directory belongs to one server of one cluster and to one process.
//   - Run has joined every goroutine when it returns, and has handed leadership
//     over if it could.
//
// It leaves to others: what commands mean (control/state), who may propose
// (control/server), passing a command on to the leader (the same), and when a
// joining server is ready to vote (AddNonvoter first, AddVoter once it has
// caught up).
//
// Locks: Node.mu and Layer.mu are leaves; no call is made under them.
package consensus
