// Package install puts this program on a host as a daemon that is kept running,
// and takes it away again.
//
// A plan is made first, from what is there, and can be shown: which file would
// be made, replaced, kept or left alone, with its mode and content, and which
// command would run. Apply then does the steps in order and stops at the first
// that fails. Every file is replaced whole, by a rename after its content is on
// disk, and every step may be repeated, so an install that was cut short is
// mended by running it again. The program is in place before anything names it,
// and a unit is started last.
//
// The configuration is the operator's. A line at its head holds a digest of the
// rest: as long as it is right nobody has touched the file, and settings that an
// install is given are put into it. Once it was changed by hand it is never
// written again, and what the file lacks is said.
//
// Secrets pass by here: no step and no file holds a token. What joins a fleet,
// and what ends containers, is the caller's, as steps among the others.
package install
