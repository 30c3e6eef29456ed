// Package identity says who is who. It holds the SPIFFE ids of Redoubt, the
// sources that keep a process's own SVID and the trust bundle, the authorizers
// that decide which kind of peer may connect, and the credentials that put all
// of it on a connection: gRPC's, built on go-spiffe's grpccredentials, and
// plain TLS for Raft.
//
// # Promises
//
//   - An [ID] that exists is valid; the zero value is no identity and is never
//     accepted.
//   - Every connection is TLS 1.3, mutually authenticated, and never resumed:
//     go-spiffe verifies in VerifyPeerCertificate, which crypto/tls skips on
//     resumption, so tickets are off.
//   - A connection never outlives the NotAfter of either side's SVID. The limit
//     is checked at each read and write as well as by a timer, because timers
//     stand still while a machine sleeps.
//   - [Conn] replaces its connection before that moment, so that no call fails
//     for it; [DrainAt] gives owners of long streams the same moment.
//   - What a [DiskSource] acknowledged is on disk. A file torn by a power cut
//     costs the last write, never the identity, and a bundle never becomes
//     empty.
//
// # Clocks
//
// Certificates are judged by the wall clock. The authority backdates SVIDs by
// [Backdate], which covers ordinary skew, and renewal is timed from the moment
// an SVID arrived, so a clock that lags does not delay it. A host without a
// real-time clock that boots in 1970 cannot verify anyone until its clock is
// set: grpccredentials verifies against the wall clock and takes no other.
// [CheckClock] recognises this state and names the remedy, so that it is
// reported as a wrong clock and not as a wrong certificate.
//
// # What it leaves to others
//
// It signs nothing (see identity/ca) and enrols nobody (see identity/attest).
// Which user may do what is decided in control/server. Nothing here runs in the
// background except what a Run method does.
//
// # Concurrency
//
// Everything exported may be used from several goroutines. Constructors start
// none. Locks are leaves: no lock of this package is held while calling into
// another source, gRPC, or a callback, except that Conn holds its own while it
// asks its Source for the current SVID.
package identity
