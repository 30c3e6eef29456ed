// Package surface measures what a live process can still reach of its host:
// the system calls that its seccomp filters let through, the device nodes it
// holds, its namespaces, capabilities and no-new-privileges bit.
//
// # What a count means
//
// A system call is reachable if some thread of the process can make it with
// some argument values. The filters are read off the kernel (PTRACE_SECCOMP_
// GET_FILTER) and interpreted for every number of the machine's native call
// table, with arguments and instruction pointer unknown. The answer errs only
// to the unsafe side of the process: where filters depend on arguments in a
// way that never lets a call through in fact, it may still be counted; a call
// that is reachable is never left out. What a supervisor decides (user
// notification, tracing) counts as reachable.
//
// # Disturbance
//
// Reading a filter stops each filtered thread for some microseconds; a thread
// in a call that the kernel cannot restart sees EINTR, as after any signal.
// No thread is left stopped: a tracing OS thread that could not let go ends
// with the measurement, and the kernel then releases what it traced, also if
// this process is killed half way. Measure needs CAP_SYS_ADMIN and CAP_SYS_PTRACE over the
// process and must itself run without a seccomp filter.
//
// The process must not be a child of this one that another goroutine is
// waiting for: that wait may see the stop and take it for an exit.
//
// Evaluate and Program are pure and safe for concurrent use; so is Measure.
// What the numbers are worth is for package isolation to say.
package surface

//go:generate go run gen.go
