// Package agent is a node's agent: it proves what isolation the node can
// deliver, takes assignments from the control plane, keeps them on disk, runs
// them, and tells what became of them.
//
// Agent composes the parts and passes values between them: session (the one
// stream to any server), store (what is on disk), reconcile (containers as
// assigned), the reporter (proofs and their age), the site's gossip pool, and
// the renewal of its identity. Host is what a node has: a container runtime, a
// network, probes.
//
// Promises:
//   - It only dials out, gossip inside the site apart.
//   - Stopping it, however, leaves containers running; starting it adopts them.
//   - A part that is not needed to keep work running (gossip, session, renewal)
//     never takes the others down: it is tried again.
//   - Facts move the report's generation; a renewed proof moves only its age,
//     which is kept by the boot clock.
//
// Concurrency: New starts nothing. Run owns every goroutine and has joined them
// when it returns. Locks (Reporter.mu, lease.mu) are leaves.
//
// What it leaves to others: what a workload means (control), and how containers
// and networks are made (agent/containerd, agent/network).
package agent
