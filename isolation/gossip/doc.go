// Package gossip is the pool in which the agents of one site notice each
// other: who is there, who fell silent, whose report has changed.
//
// All of it is a hint. The pool's key shows membership and not which member
// speaks, so a member may say anything about anyone; what is heard here only
// makes the control plane look. It is never an input of placement, and a death
// that gossip declares evicts nothing.
//
// Promises: messages are encrypted with the site's first key and read with any
// of them, so that keys rotate without a cut. A member that dies is suspected
// by the others within three to five seconds; one that leaves in good order is
// not. After a partition the pool finds together again. A digest that names
// another node than its member is not let in, and a second host of one name is
// told to Config.OnConflict. Hints of one member come in order; they are given
// to a callback that must not block.
//
// Concurrency: all methods of Pool may be called at any time. Run owns the
// member list. Pool.mu is a leaf: it is not held across calls of memberlist or
// of callbacks.
//
// What it leaves to others: relaying hints (agent), the keys (control, over the
// session), and believing any of it (nobody).
package gossip
