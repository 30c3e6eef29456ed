package network

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
)

// names are the names of a node's objects. Interface names hold 15 characters,
// too few for an id, so they carry a hash of it; the table carries the id.
type names struct {
	node   string
	table  string // nft table in the host's namespace
	host   string // the host's end of the link to the switch
	uplink string // the switch's end of that link
	bridge string
}

const linkAlias = "redoubt:" // begins the alias of every host link of any node

func namesOf(node string) names {
	h := digest("node", node)[:11]
	return names{node: node, table: tablePrefix + node, host: "rdn" + h, uplink: "rdu" + h, bridge: "rdb" + h}
}

// port is the name of an instance's port on the bridge.
func (n names) port(instance string) string {
	return "rdp" + digest("port", n.node, instance)[:12]
}

// hardware gives the host's link an address that stays the same when the link
// is made anew, so that the instances' neighbour tables stay true.
func (n names) hardware() net.HardwareAddr {
	sum := sha256.Sum256([]byte("hardware\x00" + n.node))
	return net.HardwareAddr{0x02, sum[0], sum[1], sum[2], sum[3], sum[4]}
}

// hardwareOf is the address of the eth0 that holds addr.
func hardwareOf(addr netip.Addr) net.HardwareAddr {
	b := addr.As4()
	return net.HardwareAddr{0x02, 0x52, b[0], b[1], b[2], b[3]}
}

func digest(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s,", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// validID admits what is safe as a file name, a table name and a comment.
func validID(what, id string) error {
	if id == "" || len(id) > 200 {
		return fmt.Errorf("%w %s %q: it must have 1 to 200 characters", ErrInvalid, what, id)
	}
	for i, r := range id {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
		case i > 0 && (r == '-' || r == '_' || r == '.'):
		default:
			return fmt.Errorf("%w %s %q: only letters, digits, and after the first character . - _ are allowed", ErrInvalid, what, id)
		}
	}
	return nil
}
