// Package health asks running instances how they are: startup, liveness and
// readiness probes, by a command inside, an HTTP request, a TCP connection or a
// call of grpc.health.v1.
//
// State is the pure part: which probe is due when, and what a row of answers
// means. Monitor runs the probes of everything that it is told to watch.
//
// Promises:
//   - One probe of a kind runs at a time for an instance, and at most one
//     command inside it; a command that does not end by its time-out is killed
//     where it runs. So a probe that hangs never piles up.
//   - A probe connects to its own instance's address and to nothing else: the
//     address is not the file's to choose, and redirects are not followed.
//   - Whatever an instance answers is bounded: 1 KiB of a body, 16 KiB of
//     headers, 4 KiB of a message, 1 KiB of a command's output.
//   - A verdict changes only when a threshold is crossed, so that a probe that
//     fails for days is told once.
//   - Delays count from when the attempt began, on the boot clock, and what was
//     found before an agent was restarted still holds afterwards: nothing is
//     restarted, and nothing ready becomes unready, because an agent was away.
//
// It leaves what follows from a verdict to agent/reconcile, and how to reach an
// instance to whoever gives it Dial. Locks: Monitor.mu before attempt.mu, both held
// for moments.
package health
