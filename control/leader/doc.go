// Package leader holds what lives for one term of leadership: what the leader
// hears of nodes (Observed), and the loops that turn it and the replicated
// state into proposals: place (plans into assignments), lease (silence into
// loss), reap (what is over into nothing).
//
// Promises:
//   - No plan and no proposal before the term's barrier has applied.
//   - Nothing is moved or ended because a leader died, stood still or is new:
//     a term starts with every lease just renewed.
//   - Gossip only makes suspect. Only a node's own silence, while others of its
//     site are heard, ends a lease.
//   - The loops only propose. What they saw may be old when it applies; Apply
//     checks it again, and a refused proposal is planned anew.
//
// Concurrency: Observe may be called from anywhere at any time; outside a term
// it answers ErrNotLeader. Run owns the loops and has joined them when it
// returns. Locks: term.giving before Observed.mu; the first is held while what is
// given up is proposed, the second for no call.
package leader
