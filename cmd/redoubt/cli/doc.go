// Package cli holds the verbs of the redoubt command, one file each. It can be
// imported: arguments, streams and environment are injected, and nothing in
// here ends the process or keeps state beyond one Run.
//
// Data goes to standard output; progress, hints and errors to standard error.
// Run returns the exit code: 0 done, 2 an error; `plan` 0 no change, 1 changes,
// 3 something cannot be placed; `exec` and `run` the code of what they ran.
//
// # Reaching a fleet
//
// A context file (identity.SaveFile) holds the servers' addresses, the user's
// key and SVID, and the trust bundle. fleetConn tries each address until one
// answers, repeats a call that a leaderless moment refused (changes carry a
// command id, so a repeat is harmless), and renews the SVID while it is in use.
//
// # Concurrency
//
// A command runs in the goroutine that calls Run. The goroutines that a stream
// needs are joined before Run returns, but for the one that reads standard
// input: a blocked read of a terminal cannot be taken back, so it ends with its
// next line or with the process.
package cli
