// Package fleet holds the values that the control plane reasons about: nodes,
// workloads, their instances, servers, roles and tokens, in plain Go.
//
// A value that was read from the replicated state is shared by every reader
// and is never changed: whoever wants a different one copies it. The package
// keeps no state, does no I/O and knows no wire format beyond the workload
// file; converting to the log and snapshots is control/state's, to the API
// control/server's.
package fleet
