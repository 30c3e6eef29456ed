// Package kvm finds out whether ordinary virtual machines can run here, by
// running a tiny one.
//
// A /dev/kvm that opens, answers its version and creates machines proves
// nothing: on paravirtual KVM only guest kernels that were made for it run.
// The probe therefore enters long mode with paging, takes an exception through
// an IDT, executes instructions that emulators stumble over, goes to ring 3,
// comes back by a system call and halts; and it measures how fast ring 0 code
// runs, since a KVM that emulates every instruction is about a thousand times
// too slow. Capability bits decide nothing.
//
// The guest runs in a child process, this program started again under the name
// childName, which an init function here recognises. So neither a machine that
// cannot be stopped nor a host kernel that stumbles takes the caller with it.
// The rate is judged by the CPU time of the thread that runs the guest, best
// of three, so a busy host is not taken for a slow one.
//
// Probe is safe for concurrent use and holds nothing afterwards.
package kvm
