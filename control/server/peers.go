package server

import (
	"errors"
	"fmt"
	"sync"

	"google.golang.org/grpc"
)

// PeerConn is a connection to another server that outlives the certificates it
// was made with.
type PeerConn interface {
	grpc.ClientConnInterface
	Close() error
}

// peerPool keeps one connection to each other server.
type peerPool struct {
	dial func(id, address string) (PeerConn, error)

	mu     sync.Mutex
	closed bool
	conns  map[string]peerEntry
}

type peerEntry struct {
	address string
	conn    PeerConn
}

// peerRef is where another server is.
type peerRef struct{ ID, Address string }

func newPeerPool(dial func(id, address string) (PeerConn, error)) *peerPool {
	return &peerPool{dial: dial, conns: map[string]peerEntry{}}
}

var errPoolClosed = errors.New("this server is stopping")

// conn returns the connection to p, made anew if p has moved.
func (pp *peerPool) conn(p peerRef) (grpc.ClientConnInterface, error) {
	pp.mu.Lock()
	defer pp.mu.Unlock()
	if pp.closed {
		return nil, errPoolClosed
	}
	if e, ok := pp.conns[p.ID]; ok {
		if e.address == p.Address {
			return e.conn, nil
		}
		_ = e.conn.Close()
		delete(pp.conns, p.ID)
	}
	c, err := pp.dial(p.ID, p.Address)
	if err != nil {
		return nil, fmt.Errorf("dial server %s at %s: %w", p.ID, p.Address, err)
	}
	pp.conns[p.ID] = peerEntry{p.Address, c}
	return c, nil
}

// close closes every connection; later calls of conn fail.
func (pp *peerPool) close() {
	pp.mu.Lock()
	defer pp.mu.Unlock()
	pp.closed = true
	for id, e := range pp.conns {
		_ = e.conn.Close()
		delete(pp.conns, id)
	}
}
