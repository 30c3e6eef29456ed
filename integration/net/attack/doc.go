// Package attack tries to break the promises of a node's network from inside an
// instance: it connects to where nothing should be reached, sends frames and
// packets in others' names, asks the resolver for what is not its business and
// opens connections by the ten thousand. integration/net/attack/attacker is the
// workload that does it; a test does the same from elsewhere, to see that what
// was stopped inside gets through where it may.
//
// Nothing here judges. A Result says what came back, or which step the sandbox
// itself refused.
package attack

import "time"

// Probe is one thing to try. To is an address; what else it needs its kind says.
type Probe struct {
	Name string
	Kind string
	To   string
	// From is the local address to use; empty: the usual one.
	From string `json:",omitempty"`
	// Query is what is asked: of a resolver a name, of a server the first line.
	Query string `json:",omitempty"`
	// Patience is how long an answer may take. What is expected to come is
	// tried again until then.
	Patience time.Duration
}

// The kinds of probes.
const (
	TCP      = "tcp"      // connects and reads a line
	UDP      = "udp"      // sends a datagram and waits for one
	Fragment = "fragment" // UDP of more than one packet, both ways
	Ping     = "ping"
	Name     = "name"     // asks the resolver at To for the A records of Query
	Transfer = "transfer" // asks it for the whole zone Query
	Socket   = "socket"   // connects to a Unix socket, abstract with @
)

// Result of a probe.
type Result struct {
	Name    string
	Reached bool
	Answer  string
	// Inside: it did not get as far as the wire, the system that the attacker
	// runs on refused.
	Inside bool
	Error  string
}
