package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
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

// DialInside connects by TCP to a port of an instance as a neighbour process of
// its would: to its address, then, if nothing accepts there, to its loopback
// from inside of its namespace. The second finds what listens on 127.0.0.1 only,
// and is all that there is with network none; a sandbox with a network stack of
// its own has a loopback that nothing outside reaches.
func (n *Network) DialInside(ctx context.Context, instance string, port uint16) (net.Conn, error) {
	n.mu.Lock()
	a, ok := n.attached[instance]
	n.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("connect to port %d: instance %s has no network: %w", port, instance, ErrInvalid)
	}
	var first error
	if a.Address.IsValid() {
		conn, err := n.Dial(ctx, netip.AddrPortFrom(a.Address, port))
		if err == nil || !errors.Is(err, syscall.ECONNREFUSED) {
			return conn, err
		}
		first = err
	}
	space, err := openNamespace(a.Netns)
	if err != nil {
		return nil, err
	}
	defer space.fd.Close()
	var conn net.Conn
	err = space.do(func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, "tcp", netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port).String())
		return err
	})
	if err != nil && first != nil {
		err = first
	}
	return conn, err
}
