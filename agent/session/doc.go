// Package session holds an agent's one long stream to the control plane.
//
// The agent dials out, to any server of its list, and stays with the one that
// answers; when it falls silent, says goodbye, or either side's certificate
// nears its end, the agent moves to another connection. Nothing is lost by
// that: assignments are stored before they count, status is told again until a
// server has acknowledged it, and a new session begins with everything.
//
// Promises:
//   - Order: messages of the server are taken one by one; an Assignments
//     message is durable before the next is looked at. One that does not chain
//     is never stored: the session ends and the next asks for everything.
//   - Status: latest wins. One batch is under way at a time; what changes
//     meanwhile goes into the next, an instance once, however often it changed.
//   - Lease: an acknowledgement renews it as of when its heartbeat was sent,
//     and only if that was after this session's first assignments were stored,
//     so that word of a stop cannot come after the lease that it ends.
//   - Exec and logs run on connections of their own, a bounded number at once;
//     a reader who does not read holds up only its own process or log.
//
// Concurrency: Run owns every goroutine and has joined them when it returns.
// Calls of Node come from one goroutine, except Bulk's.
//
// What it leaves to others: credentials (the Dialer), storage and conversion
// (Node), running things (Bulk).
package session
