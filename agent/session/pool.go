package session

import (
	"sync"
	"time"
)

const (
	// perConn bounds the streams that share one connection; servers take 256.
	perConn = 128
	// idleFor is how long a connection without streams is kept for the next.
	idleFor = 30 * time.Second
)

// pool holds the connections that streams share, apart from the session's own,
// so that a thousand of them cost a few handshakes and not a thousand. Each
// stream has a window of its own: one that is not read holds up no other.
type pool struct {
	dial Dialer

	mu     sync.Mutex
	conns  map[poolKey][]*shared
	closed bool
}

type poolKey struct{ address, server string }

type shared struct {
	Conn
	key     poolKey
	streams int
	idle    *time.Timer // set while there are no streams
}

// get returns a connection that has room. Give it back with put.
func (p *pool) get(address, server string) (*shared, error) {
	key := poolKey{address, server}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns[key] {
		if c.streams < perConn {
			if c.idle != nil {
				c.idle.Stop()
				c.idle = nil
			}
			c.streams++
			return c, nil
		}
	}
	conn, err := p.dial(address, server) // dials at its first call
	if err != nil {
		return nil, err
	}
	c := &shared{Conn: conn, key: key, streams: 1}
	if p.conns == nil {
		p.conns = map[poolKey][]*shared{}
	}
	p.conns[key] = append(p.conns[key], c)
	return c, nil
}

func (p *pool) put(c *shared) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c.streams--
	switch {
	case c.streams > 0:
	case p.closed:
		p.drop(c)
	default:
		c.idle = time.AfterFunc(idleFor, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			if c.streams == 0 && c.idle != nil {
				p.drop(c)
			}
		})
	}
}

func (p *pool) drop(c *shared) {
	list := p.conns[c.key]
	for i, other := range list {
		if other == c {
			p.conns[c.key] = append(list[:i:i], list[i+1:]...)
			c.Close()
			break
		}
	}
	if len(p.conns[c.key]) == 0 {
		delete(p.conns, c.key)
	}
}

// close ends what is idle, and lets go of the rest as its streams end.
func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, list := range p.conns {
		for _, c := range list {
			if c.idle != nil {
				c.idle.Stop()
				c.idle = nil
			}
			if c.streams == 0 {
				p.drop(c)
			}
		}
	}
}
