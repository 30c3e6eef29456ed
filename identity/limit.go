package identity

import (
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// recheck bounds how long a sleeping limit trusts its timer: a machine's sleep
// or a set clock moves the wall clock without moving timers.
const recheck = time.Minute

// limitConn closes the connection under it when its time is over. It sits
// below TLS, so that closing needs no lock of the TLS connection. It embeds
// net.Conn as an interface and so hides the file descriptor, which keeps
// anyone from going around the limit.
type limitConn struct {
	net.Conn
	end  atomic.Int64 // unix nanoseconds; 0 while unlimited
	over atomic.Bool  // closed because of end

	mu     sync.Mutex
	timer  *time.Timer
	closed bool
}

// limit sets the end once, after the handshake.
func (c *limitConn) limit(end time.Time) {
	c.end.Store(end.UnixNano())
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.timer = time.AfterFunc(min(recheck, max(0, time.Until(end))), c.tick)
	}
}

func (c *limitConn) tick() {
	left := c.left()
	if left <= 0 {
		c.expire()
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.timer.Reset(min(recheck, left))
	}
}

// left is what remains; only meaningful once limited.
func (c *limitConn) left() time.Duration {
	return time.Duration(c.end.Load() - time.Now().UnixNano())
}

func (c *limitConn) expire() {
	c.over.Store(true)
	c.Close()
}

func (c *limitConn) expired() bool {
	if c.end.Load() == 0 {
		return false
	}
	if !c.over.Load() && c.left() <= 0 {
		c.expire()
	}
	return c.over.Load()
}

func (c *limitConn) errExpired() error {
	return fmt.Errorf("connection to %s ended at %s: %w", c.RemoteAddr(), time.Unix(0, c.end.Load()).UTC().Format(time.RFC3339), ErrExpired)
}

func (c *limitConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	// Checked after reading: what arrived late must not be believed.
	if c.expired() {
		return 0, c.errExpired()
	}
	return n, err
}

func (c *limitConn) Write(b []byte) (int, error) {
	if c.expired() {
		return 0, c.errExpired()
	}
	n, err := c.Conn.Write(b)
	if err != nil && c.over.Load() {
		err = c.errExpired()
	}
	return n, err
}

func (c *limitConn) Close() error {
	c.mu.Lock()
	if c.timer != nil {
		c.timer.Stop()
	}
	c.closed = true
	c.mu.Unlock()
	return c.Conn.Close()
}
