// Package script runs the redoubt command as people do, as processes: real
// servers with Raft on disk, real enrolment, mutual TLS and sessions. Agents run
// with --driver fake, so that it needs neither root nor a runtime; what real
// runtimes do is shown by integration/net and the demo.
package script
