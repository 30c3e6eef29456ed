// Package fleet runs a real fleet on one host: bin/redoubt as control servers
// and agents, every one a process of its own in a network namespace of its own,
// with a data directory of its own. The demo and the network tests are made of
// it.
//
// All that it is about to make is written to state.json in its directory before
// it is made, so that Sweep of a later process removes what a killed one left.
// Down and Sweep go by marks that only this fleet's things bear: its network
// namespaces, its nodes' control groups, its directory in a command line. What
// they had to end or remove by force, because the daemons' own orderly end did
// not, they return: a judge takes that for a failure.
//
// A directory is used by one Fleet at a time; New holds its lock. A Fleet is
// for one goroutine, but for Interrupted commands, which contexts end.
package fleet
