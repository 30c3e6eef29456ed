// Package attest is how a host becomes a member: join tokens, the first
// contact, and renewal after expiry. It is logic only; the enrolment service in
// control/server and the agent move its values over gRPC.
//
// # Joining
//
// An operator makes a [Token] and gives its text to the new host. The token
// pins the keys of the fleet's authorities, so that the host can authenticate
// the server that it meets first ([PinnedTLS]), and carries a secret, so that
// the server can authenticate the host. The server keeps only the secret's hash
// ([Stored]).
//
// A token binds to the first key that enrols with it. The same key may come
// again until the token expires, which makes a dropped link harmless: the host
// repeats what it sent. Another key is refused ([ErrOtherKey]).
//
// Time and replication are kept apart: the server that answers judges a
// request with [Verify], which needs the time; the replicated state then binds
// the key with [Stored.Bind], which does not, so that of two requests at two
// servers the one that commits first wins.
//
// # Renewing after expiry
//
// A host that was cut off for longer than its SVID lived cannot speak mutual
// TLS. Within a [Window] after the expiry it may renew by proving possession
// of the key that it enrolled: it signs a challenge of the server
// ([NewRenewal], [VerifyRenewal]).
//
// # Secrets
//
// [Secret] prints nothing but "[secret]", however it is formatted. Errors never
// hold parts of a token.
//
// Everything here may be used from several goroutines.
package attest
