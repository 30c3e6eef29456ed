// Package registry is what a node knows of image registries: where they are,
// who it is to them, and how far it trusts what they send. It speaks HTTP and
// knows no container runtime; agent/containerd pulls with it.
//
// A node's directory of registries (Dir) holds
//
//	config.json          credentials in docker's format: auths, credHelpers, credsStore
//	HOST/config.json     the same for one registry; it goes first
//	HOST/hosts.toml      mirrors, roots, client certificates, as containerd has them
//
// HOST is host or host:port (or host_port_, where a colon is unwelcome). It is
// read again at each pull, so that a changed password needs no restart.
//
// Promises:
//
//   - A file that somebody else could read or change is refused and named,
//     with the command that mends it.
//   - No error and no log line holds a secret: not what a file holds, not what
//     a helper prints, not the body of a registry's answer, not the query of an
//     address.
//   - A helper runs with a deadline, an environment of its own and a bound on
//     what it prints.
//   - What a registry was given goes to no other host by a redirect, and never
//     from TLS to plain HTTP. Documents are bounded; what a registry asks to
//     wait is waited, within a bound.
//
// A Dir is a value. A Traffic is safe for concurrent use; it starts no
// goroutine.
package registry
