// Package state is the replicated state of a fleet: a deterministic machine
// that Raft feeds with commands, over an in-memory database with snapshots.
//
// It promises:
//
//   - Apply depends on nothing but the state and the command: no clock, no
//     randomness, no map order. The same commands give the same bytes in a
//     snapshot on every server (property-tested).
//   - A command's operations apply in order, each whole or not at all; one that
//     is refused does not undo the others and changes nothing.
//   - An operation that was planned on older state is checked again: a stale
//     plan is refused, never half applied. What an assignment may rest on
//     (generation, room, host ports, floor, cordon, revision, ordinal) holds at
//     the index at which it applies.
//   - A command id that is seen again within DedupWindow log entries returns
//     the first results and changes nothing.
//   - A View is one moment: everything read from it belongs to View.Index. It is
//     safe for concurrent use and needs no closing. Values read from it are
//     shared and must not be changed.
//   - Readers never block Apply, nor Apply readers. Restore replaces everything
//     in one step, and wakes every watcher.
//
// It leaves to others: whether a reading is fresh (consensus.Node.VerifyRead),
// who may propose what (control/server), durability (the Raft log and its
// snapshot store; this package only writes and reads the snapshot's bytes), and
// every judgement that needs a clock (control/leader).
//
// Locks: Store.mu guards only the index that Wait and Changed look at, and is
// held for no call. Writers are one goroutine, Raft's.
package state
