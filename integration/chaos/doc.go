// Command chaos kills and stops the processes of a real fleet, singly and in
// pairs, at rest and in the middle of the steps of a start and of a stop, while
// a judge who asks the fleet nothing watches what really runs.
//
// Every daemon has a supervisor that starts it again, as systemd does. Sites
// whose nodes are struck piece by piece have one node, so that an instance has
// only one place and what happens to it there is its node's doing; another site
// has two, and of them one at a time is lost as a whole. Two nodes offer runc
// alone, the others run everything under gVisor. Every instance is a beacon (see
// integration/chaos/beacon), whose word the recorder takes from a folder that
// it has mounted.
//
// The judge fails the run when
//   - two starts of one instance, or two instances of a workload of one, were
//     alive at once, but for those of Eager while a node is lost;
//   - an instance that no fault was to touch fell silent, or one that a fault
//     touched was not back within the time that the fault's cell states;
//   - a workload whose apply was acknowledged did not run, or one whose stop
//     was acknowledged ran on or left something on the host;
//   - a node has more on its host at the end than before the first fault;
//   - there was too little traffic for this to mean anything.
//
// Steps are told by what lies on the host, looked at right before and right
// after the blow. That, and what became of the processes struck, is a fault's
// evidence.
//
// Locks: chaos.servers is held while servers are struck, and while a lost node
// is waited for; chaos.mu and the recorder's are leaves.
//
//	go run ./integration/chaos -t 20m
package main
