package server

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"redoubt.dev/redoubt/identity"
)

// What one node or user can make a server hold. gRPC bounds each stream and
// each connection; a caller has many, and gives a message a window of its own
// size as soon as its length is known. So the sum is counted here, on the
// connections' frames, by caller.
const (
	// maxUnread bounds what a caller has sent and this server has not taken in
	// yet: messages of which the end is missing, messages that wait for their
	// handler, requests that are worked on. All the streams that it may have,
	// with full windows, are within it: who is merely slow is never cut off.
	// maxUnreadAll bounds it over all callers together; then whoever has most of
	// it goes first.
	maxUnread, maxUnreadAll = maxCallsEach*streamWindow + 64<<20, 1 << 30
	// maxUntaken bounds answers that a caller has asked for and does not read.
	// One answer is always given, whatever its size.
	maxUntaken = 64 << 20
	// maxUnanswered bounds calls that are done but for a caller who does not
	// read the answer. Such a call runs no more and is not counted as one.
	maxUnanswered = 4096
)

// holding is what a caller makes this server hold over all its connections.
type holding struct {
	unread, untaken, streams atomic.Int64
}

// wire follows one connection of a caller. It is told of every byte, before
// gRPC is.
type wire struct {
	caller    *usage
	admission *admission

	mu      sync.Mutex
	in, out frames
	streams map[uint32]*inbound
	unread  int64 // of all its streams
	untaken int64 // answers, large messages
	flow    int64 // small messages of streams, which wait in quotas of their own
	running int64 // calls whose handler has not returned
	closed  bool
}

// inbound is a stream from its caller's first frame to this server's last.
type inbound struct {
	prefix  [5]byte // of a message: compressed or not, length
	have    int
	left    int   // of the message, to come
	part    int64 // of the message, has come
	got     int64 // bytes that count against the stream's window
	granted int64 // what the window was widened by since: so much was taken in
}

// unread is what of a stream may be in memory, and a quarter of a window that
// has been read but not given back.
func (s *inbound) unread() int64 { return max(s.part, s.got-s.granted) }

// follow takes in the bytes of DATA frames.
func (s *inbound) follow(data []byte) {
	for len(data) > 0 {
		if s.have < len(s.prefix) {
			n := copy(s.prefix[s.have:], data)
			s.have, s.part, data = s.have+n, s.part+int64(n), data[n:]
			if s.have < len(s.prefix) {
				return
			}
			s.left = int(s.prefix[1])<<24 | int(s.prefix[2])<<16 | int(s.prefix[3])<<8 | int(s.prefix[4])
		}
		n := min(s.left, len(data))
		s.left, s.part, data = s.left-n, s.part+int64(n), data[n:]
		if s.left == 0 {
			s.have, s.part = 0, 0
		}
	}
}

func newWire(a *admission, u *usage) *wire {
	return &wire{caller: u, admission: a, streams: map[uint32]*inbound{}, in: frames{skip: len(http2.ClientPreface)}}
}

// read is told what the caller sent; an error ends the connection.
func (w *wire) read(p []byte) error {
	w.mu.Lock()
	before := w.unread
	w.in.feed(p, func(at frame, data []byte, size int, _ bool) {
		switch s := w.streams[at.stream]; {
		case at.kind == http2.FrameHeaders && s == nil && at.stream%2 == 1 && !w.closed:
			w.streams[at.stream] = &inbound{}
			w.caller.held.streams.Add(1)
		case at.kind == http2.FrameRSTStream:
			w.end(at.stream)
		case at.kind == http2.FrameData && s != nil:
			was := s.unread()
			s.got += int64(size)
			s.follow(data)
			w.unread += s.unread() - was
		}
	})
	more := w.unread - before
	w.mu.Unlock()
	return w.admission.hold(w.caller, more)
}

// wrote is told what this server is about to send.
func (w *wire) wrote(p []byte) {
	w.mu.Lock()
	before := w.unread
	w.out.feed(p, func(at frame, _ []byte, size int, last bool) {
		switch at.kind {
		case http2.FrameWindowUpdate:
			if s := w.streams[at.stream]; s != nil && last {
				was := s.unread()
				s.granted += int64(at.value)
				w.unread += s.unread() - was
			}
		case http2.FrameData:
			small := min(w.flow, int64(size))
			w.flow -= small
			w.pay(min(w.untaken, int64(size)-small))
			if last && at.flags.Has(http2.FlagDataEndStream) {
				w.end(at.stream)
			}
		case http2.FrameHeaders:
			if last && at.flags.Has(http2.FlagHeadersEndStream) {
				w.end(at.stream)
			}
		case http2.FrameRSTStream:
			if last {
				w.end(at.stream)
			}
		}
	})
	less := w.unread - before
	w.mu.Unlock()
	_ = w.admission.hold(w.caller, less) // less is never too much
}

// end forgets a stream; it needs mu. Where each stream that is left has its
// handler, nothing waits for a reader any more: what a caller asked for and gave
// up was counted until now.
func (w *wire) end(stream uint32) {
	s := w.streams[stream]
	if s == nil {
		return
	}
	delete(w.streams, stream)
	w.unread -= s.unread()
	w.caller.held.streams.Add(-1)
	if int64(len(w.streams)) <= w.running {
		w.pay(w.untaken)
	}
}

// pay takes from what waits for the caller; it needs mu.
func (w *wire) pay(size int64) {
	w.untaken -= size
	w.caller.held.untaken.Add(-size)
}

// begins and ends are told of the handlers.
func (w *wire) begins() { w.mu.Lock(); w.running++; w.mu.Unlock() }
func (w *wire) ends()   { w.mu.Lock(); w.running--; w.mu.Unlock() }

// owe admits an answer or a message of a stream of so many bytes. A small one of
// a stream waits for its reader in the stream's quota.
func (w *wire) owe(size int64, streamed bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if streamed && size <= maxStreamed {
		w.flow += size
		return nil
	}
	if have := w.caller.held.untaken.Load(); have > 0 && have+size > maxUntaken {
		w.admission.refused("answers")
		return status.Errorf(codes.ResourceExhausted, "%d MiB of answers wait for this caller to read them, its limit on this server: read or end the calls that are open", have>>20)
	}
	if !w.closed {
		w.untaken += size
		w.caller.held.untaken.Add(size)
	}
	return nil
}

// close gives back what the connection held.
func (w *wire) close() {
	w.mu.Lock()
	unread, untaken, streams := w.unread, w.untaken, len(w.streams)
	w.unread, w.untaken, w.closed = 0, 0, true
	clear(w.streams)
	w.mu.Unlock()
	w.caller.held.untaken.Add(-untaken)
	w.caller.held.streams.Add(-int64(streams))
	_ = w.admission.hold(w.caller, -unread)
}

// hold counts bytes that a caller makes this server keep, and says when they are
// too many. The caller who has most of all goes first when there is no room left.
func (a *admission) hold(u *usage, more int64) error {
	have, all := u.held.unread.Add(more), a.unread.Add(more)
	switch {
	case more <= 0:
		return nil
	case have > maxUnread:
		a.refused("unread")
		return fmt.Errorf("%s has sent %d MiB that are not taken in yet, its limit: messages that are unfinished, or too many at once", u.name, have>>20)
	case all > maxUnreadAll:
		a.refused("unread")
		return a.cutMost(u)
	}
	return nil
}

// cutMost ends the connections of the caller that holds most; asking is told by
// an error if it is that one.
func (a *admission) cutMost(asking *usage) error {
	a.mu.Lock()
	most := asking
	for _, u := range a.each {
		if u.held.unread.Load() > most.held.unread.Load() {
			most = u
		}
	}
	var conns []net.Conn
	for c := range most.conns {
		conns = append(conns, c.Conn)
	}
	a.mu.Unlock()
	if most == asking {
		return fmt.Errorf("%d MiB of all callers are not taken in yet, this server's limit, and %s has most of them", a.unread.Load()>>20, most.name)
	}
	for _, c := range conns {
		c.Close() // below what counts, which its owner closes
	}
	return nil
}

// Read and Write count what passes.
func (c *countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.wire != nil && n > 0 {
		if held := c.wire.read(p[:n]); held != nil {
			c.refuse(held)
			c.Conn.Close()
			return 0, held
		}
	}
	return n, err
}

func (c *countedConn) Write(p []byte) (int, error) {
	if c.wire != nil {
		c.wire.wrote(p)
	}
	return c.Conn.Write(p)
}

// callerAddr is the address of a connection, and the connection: it is what
// gRPC tells a call of its connection.
type callerAddr struct {
	net.Addr
	conn *countedConn
}

func (c *countedConn) RemoteAddr() net.Addr { return callerAddr{c.Conn.RemoteAddr(), c} }

// wireOf is the connection of a call, nil where it is not counted.
func wireOf(ctx context.Context) *wire {
	if p, ok := peer.FromContext(ctx); ok {
		if a, ok := p.Addr.(callerAddr); ok {
			return a.conn.wire
		}
	}
	return nil
}

// nameOf is how a caller is called in a refusal.
func nameOf(id identity.ID) string { return fmt.Sprintf("%s %s", id.Kind(), id.Name()) }
