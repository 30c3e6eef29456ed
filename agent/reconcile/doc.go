// Package reconcile brings a node's containers to what its assignments say.
//
// Diff is pure: from what is desired and what is observed it says what to do.
// Loop observes, asks Diff and does it.
//
// Promises:
//   - Nothing is done that is not on disk: an assignment is read back from the
//     ledger, and every attempt to start is written there before the start.
//   - An instance never runs twice on a node. Its container's id follows from
//     its uid; each start has an attempt number, written first and put on the
//     container as a label, so that an exit is counted once whatever crashes.
//   - A final phase is written only after container and network are gone, so
//     that who reads "stopped" may give its port and memory away.
//   - What runs is left alone when the agent restarts, and when no complete
//     set of assignments was ever stored nothing unknown is swept.
//   - Instances do not wait for each other: one action of an instance at a
//     time, each with a deadline; a few starts at once; the driver bounds the pulls.
//   - Cut off, instances run on and are restarted. Only one with a lease
//     (disconnect.replace Safe) ends when its lease does.
//
// Concurrency: the loop's own goroutine is the only one that decides; workers
// do one action each and hand it back. Facts of an instance are written by the
// worker that has it, or by the loop when none has. The one lock
// guards the list of finished actions and is held for moments only.
//
// What it leaves to others: durable storage (agent/store), containers
// (agent/driver), namespaces and addresses (agent/network), proof of runtimes
// (the reporter) and telling the control plane (agent/session).
package reconcile
