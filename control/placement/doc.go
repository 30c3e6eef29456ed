// Package placement decides where instances run: which are started, on which
// node and under which runtime, which are stopped, and why.
//
// Plan is pure: no clock, no context, no logger, no I/O, no randomness. Equal
// inputs give equal results, in whatever order they are listed. It holds
// nothing between calls and is safe for concurrent use; it reads the values in
// Input and never changes them.
//
// Promises, each held by a test of this package:
//   - The floor is never crossed. Only what is verified, fresh and compatible
//     is placed on, and an instance below a floor that was raised is stopped.
//   - No node's cpu or memory is promised twice (the sandbox's own overhead
//     counted), nor a host port of a node.
//   - In a site the strongest class that qualifies is taken. Copies are spread
//     over sites and nodes that offer the same class; a class is never traded
//     for spread.
//   - What runs stays where it is: a better offer moves nothing.
//   - Of a service at most Policy.MaxUnavailable copies are down for a change
//     of its spec, and an old copy stops only where the new one has a place.
//   - A workload that cannot be placed names every node, with every reason that
//     holds for it.
//
// Order of workloads: the one that was changed first is served first, so that
// what was just applied never takes the room that another waits for.
//
// It leaves to others: judging freshness and silence (control/leader), minting
// uids and proposing, and the last word: Apply rechecks everything against the
// state that it meets.
package placement
