// Package skew builds the release before this one, and holds the tests that run
// it beside this one: servers upgraded one by one and rolled back under load,
// agents and commands of either beside servers of the other.
//
// The release before is a commit of this repository's own history, pinned in
// predecessor.go with the reason for it. Where the history is not there, as in a
// shallow clone, tests skip with a line that names it.
package skew
