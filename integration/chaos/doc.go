// Command chaos kills and stops the processes of a real fleet, singly and in
// pairs, at rest and in the middle of the steps of a start and of a stop, while
// a judge who asks the fleet nothing watches what really runs.
//
// Every daemon has a supervisor that starts it again, as systemd does. Each
// site has one node, so that an instance has only one place and what happens to
// it there is its node's doing. Every instance is a beacon (see
// integration/chaos/beacon), whose word the recorder takes from a folder that
// it has mounted.
//
// The judge fails the run when
//   - two starts of one instance, or two instances of a workload of one,
//     were alive at once;
//   - an instance that no fault was to touch fell silent, or one that a fault
//     touched was not back within the time that the fault's cell states;
//   - a workload whose apply was acknowledged did not run, or one whose stop
//     was acknowledged ran on or left something on the host;
//   - there was too little traffic for this to mean anything.
//
// Steps are told by what lies on the host, looked at right before and right
// after the blow: that is a fault's evidence. A blow counts for the step that
// was seen after it.
//
//	go run ./integration/chaos -t 20m
package main
