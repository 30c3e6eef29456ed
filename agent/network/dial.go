package network

import (
	"context"
	"fmt"
	"net"
	"net/netip"
)

// Dial connects by TCP, from the host, to an address that an instance of this
// node holds; any other is refused. Not from inside of the instance's own
// namespace: a sandbox with a network stack of its own has taken the address off
// it, so nothing that the kernel does there reaches the workload.
func (n *Network) Dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	n.mu.Lock()
	held := false
	for _, a := range n.attached {
		held = held || a.Address == to.Addr()
	}
	n.mu.Unlock()
	if !held {
		return nil, fmt.Errorf("connect to %s: no instance of this node has that address: %w", to, ErrInvalid)
	}
	var conn net.Conn
	err := n.host.do(func() (err error) {
		// By address, so that one socket is made, on this thread.
		conn, err = new(net.Dialer).DialContext(ctx, "tcp", to.String())
		return err
	})
	return conn, err
}
