// Package containerd runs containers on containerd: a private daemon that the
// agent starts and outlives, or one that the host already has. It is the only
// package that imports containerd.
//
// Promises:
//
//   - One instance at a time. The container's id is chosen by the caller; Start
//     and Delete for one id exclude each other, and a Start that finds a living
//     container of its id, lost by containerd or not, never adds a second.
//
//   - Every call ends by its context's deadline or by this package's own
//     (seconds), whatever the daemon, a shim or a sandbox does. Kill and delete
//     escalate until nothing lives: runtime, process, shim, control group.
//
//   - The boundary is checked before the workload's first instruction: a
//     container that should be in a sandbox, and is not, is destroyed
//     (driver.ErrDowngrade).
//
//   - The agent, the daemon or both may be killed at any moment. Containers
//     keep running; the next agent adopts the daemon, and what it cannot be
//     told (an exit that nobody collected) it reports as lost and not as
//     success.
//
//   - Everything made on the host carries the node's id or lies in the node's
//     own directories, and a sweep touches nothing else: the containerd
//     namespace "redoubt-NODE", control groups below /redoubt/NODE, Config.Dir
//     and the run directory derived from it.
//
//   - An image is what its digest says, is within the node's bounds before and
//     while it is unpacked, and is never removed while a container, an
//     assignment or a pull needs it. Callers that want the same image share one
//     pull; a torn one goes on where it was torn.
//
// Left to others: networks (a Spec names a pinned network namespace), which
// host paths a tenant may bind, log rotation (package logs), when to restart.
//
// Locks: Driver.busy (one entry an id) is taken before anything else and never
// two ids at once, as is imageWork.names (one entry an image name), which is
// never held together with it; Driver.mu, imageWork.mu and Daemon.mu are leaves
// that are not held across a call.
package containerd
