// Package probe turns the facts of a host into findings: what each isolation
// runtime is really worth here.
//
// Nothing is believed for being installed. A runtime is verified only after a
// canary ran under it, through the path that a workload takes, and both sides
// of the boundary agree: the canary on which kernel it met, the host on which
// process stands between (Seen). The Runner that starts canaries is given by
// the caller; this package decides which to run, what their class demands and
// how to say what is missing. A missing or failing runtime is a finding too,
// with its reason and the nearest fix, the deepest obstacle first: where
// virtual machines cannot run, installing one more program would not help.
//
// Findings runs one canary after another and ends by its context. It starts no
// goroutine that outlives it and writes nothing on the host. Findings come
// sorted by runtime and variant. Each runtime has a file of its own here;
// everything else treats them alike.
package probe
