// Package canary proves what a runtime is worth on this node: it starts the
// canary program under it, through the same path as a workload, and compares
// what the canary saw from inside with what the host sees of the boundary
// process at the same moment. It implements probe.Runner.
//
// Neither side is believed alone. The canary's answer counts only with the
// nonce that it was given; that a kernel is another one is told by the code
// that the kernel maps into every process and by its boot id, not by names
// that a sandbox can choose; and the boundary process is known by the digest
// of its executable and by its live seccomp filters.
//
// One canary runs at a time. It is removed before RunCanary returns, whatever
// happened, with a deadline of its own. When a runtime was last proven is kept
// on the boot clock (Runner.Age). Methods are safe for concurrent use; there
// is one lock, which is never held while a canary runs.
//
// Measure looks at the boundary of a live workload in the same way, without a
// canary: it knows the boundary process by its digest alone.
package canary
