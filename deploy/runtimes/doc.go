// Package runtimes carries the container runtimes and the two small images
// that an agent needs, and puts them on disk.
//
// The folder out/ is embedded. `make -C deploy/runtimes` fills it; in a fresh
// clone it holds a README only, the package still compiles, and [Embedded]
// says what to run. Every part is identified by the SHA-256 of its uncompressed
// content, which the manifest in out/ names.
//
// Promises of [Bundle.Unpack]:
//
//   - A path that it returns held, at that moment, exactly the content of the
//     digest: new files are hashed while they are written, and files that were
//     there already are hashed again before they are trusted.
//   - A file appears under its final name complete and synced, or not at all:
//     it is written beside and renamed. A process killed half way leaves
//     only a temporary folder, which the next call removes.
//   - Any number of processes may unpack into one folder at once; a lock on
//     the folder lets one work and the others then find its result.
//   - A truncated, altered or replaced file is replaced with the right one.
//     Processes that run the old file keep running it.
//   - On a full disk nothing is trusted and the error says how much is needed.
//
// The folder is made for its owner alone (0700) and refused if somebody else
// owns it or may write in it, since then what was verified could be exchanged
// before it is run. Folders of older digests are left alone: instances that
// were started from them may still need them.
//
// The package starts no goroutines, and Unpack takes one lock, the folder's.
package runtimes
