// Package isolation is the vocabulary of what Redoubt proves: classes of
// boundaries, the catalogue of runtimes, what a probe found about each on a
// node, the score of a finding and the order in which findings are tried.
//
// It is pure: no clock, no I/O, no goroutines, nothing that is kept. Everything
// here is safe for concurrent use, and equal inputs give equal outputs on every
// machine, which is what lets a fleet of mixed agents rank alike: nodes report
// measured Terms, whoever ranks computes the Score and records ScoreVersion.
//
// It promises that the order of classes is never broken by a score (the ranges
// of the classes do not overlap), that a score is monotone in every input, and
// that Rank accepts nothing that is not verified, fresh, compatible and at or
// above the floor. A reject keeps every reason that holds for it.
//
// It leaves to others: measuring (isolation/probe, isolation/surface), judging
// freshness (the server that received the report), room and state of nodes
// (control/placement).
package isolation
