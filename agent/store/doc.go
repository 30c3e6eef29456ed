// Package store keeps on disk what an agent must not forget: the assignments
// it was given, what became of each instance, the fleet's addresses and keys
// for a cold start, its report generation and its lease.
//
// Durability: a method that writes has written and synced when it returns nil,
// and has changed nothing, in memory neither, when it returns an error. That
// ordering is what the agent stands on: it acts only on what Assignments and
// Facts return, and those return only what is on disk.
//
// Damage: a file that is torn, truncated or altered is refused with ErrDamaged
// and stays as it is. Every record has a checksum of its own beside bbolt's.
// A store that was begun anew is not Authoritative until a complete set of
// assignments has been saved into it, so that a lost file never makes an agent
// take its running containers for leftovers.
//
// One process holds a data directory at a time; Open takes its lock.
//
// All methods may be called concurrently. There is one lock; it is held over
// the write to disk, so readers wait for a writer's sync.
//
// What it leaves to others: what the values mean, and the identity, which has
// files of its own.
package store
