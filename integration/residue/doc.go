// Package residue tells what a program left behind on a host.
//
// Take lists all that redoubt could leave: processes, mounts, network
// namespaces, links with their addresses and routes, nft rules, control groups,
// sysctls, and files outside the clone with their size, mode and times. Diff
// compares two such lists, taken before and after, and names every difference.
//
// A host is never quite still, so some rules say what counts. Each is about the
// host and none about redoubt:
//
//   - A process that descends from one that was there before is that one's
//     business, and so is a file that such a process holds open. The observer
//     itself is no such ancestor: what it started must be gone.
//   - Kernel threads, and the counters among the sysctls, change by themselves.
//   - The caches of the go command, the clone itself and the system's logs are
//     left out. Options.Ignore adds to that.
//
// It reads the namespaces of the calling process. It changes nothing, holds
// nothing open, and may run at any time; a listing taken while something is
// being torn down shows the half of it, so Settled waits for quiet.
package residue
