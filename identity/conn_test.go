package identity_test

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/test/bufconn"

	"redoubt.dev/redoubt/identity"
)

// watchedListener notes when each of its connections begins and ends.
type watchedListener struct {
	net.Listener
	mu    sync.Mutex
	conns []*watchedConn
}

type watchedConn struct {
	net.Conn
	begun time.Time
	mu    sync.Mutex
	ended time.Time
}

func (l *watchedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	w := &watchedConn{Conn: c, begun: time.Now()}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns = append(l.conns, w)
	return w, nil
}

func (c *watchedConn) Close() error {
	c.mu.Lock()
	if c.ended.IsZero() {
		c.ended = time.Now()
	}
	c.mu.Unlock()
	return c.Conn.Close()
}

// lives returns the time that each connection lived, in order of their begin;
// one that still lives counts until now.
func (l *watchedListener) lives() []time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []time.Duration
	for _, c := range l.conns {
		c.mu.Lock()
		end := c.ended
		c.mu.Unlock()
		if end.IsZero() {
			end = time.Now()
		}
		all = append(all, end.Sub(c.begun))
	}
	return all
}

// renewing gives src a new SVID at each half of ttl, as an agent would.
func renewing(ctx context.Context, t *testing.T, src *identity.MemorySource, next func() error) func() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			svid, err := src.GetX509SVID()
			if err != nil {
				t.Error(err)
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(identity.RenewIn(svid, time.Now())):
			}
			if err := next(); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	return func() { <-done }
}

func TestThousandCallsAcrossRotationsNeverFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ttl = 2 * time.Minute
		a, trust := authority(t, td)
		server := identity.NewMemorySource(sign(t, a, "spiffe://fleet.test/server/s1", ttl), trust)
		node := identity.NewMemorySource(sign(t, a, "spiffe://fleet.test/node/n1", ttl), trust)
		ctx, cancel := context.WithCancel(t.Context())
		defer renewing(ctx, t, server, func() error { return server.Set(sign(t, a, "spiffe://fleet.test/server/s1", ttl)) })()
		// Another rhythm than the server's, so that either side ends first.
		time.Sleep(17 * time.Second)
		if err := node.Set(sign(t, a, "spiffe://fleet.test/node/n1", ttl)); err != nil {
			t.Fatal(err)
		}
		defer renewing(ctx, t, node, func() error { return node.Set(sign(t, a, "spiffe://fleet.test/node/n1", ttl)) })()
		defer cancel()

		buf := bufconn.Listen(1 << 16)
		l := &watchedListener{Listener: buf}
		var slow atomic.Int64
		serve(t, l, server, identity.AuthorizeKinds(td, identity.KindNode), &health{check: func(ctx context.Context) error {
			if slow.Add(1)%3 == 0 {
				time.Sleep(20 * time.Second) // some calls take most of the margin
			}
			return ctx.Err()
		}})
		conn, err := identity.NewConn("passthrough:///s1", node, identity.AuthorizeServers(td),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return buf.DialContext(ctx) }))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()

		client := healthpb.NewHealthClient(conn)
		var calls sync.WaitGroup
		var failed atomic.Int64
		for i := range 1000 {
			calls.Go(func() {
				if _, err := client.Check(ctx, &healthpb.HealthCheckRequest{}); err != nil {
					failed.Add(1)
					t.Errorf("call %d: %v", i, err)
				}
			})
			time.Sleep(time.Second)
		}
		calls.Wait()
		lives := l.lives()
		for i, life := range lives {
			if life > ttl {
				t.Errorf("connection %d lived for %s, its SVIDs for %s", i, life, ttl)
			}
		}
		// 1000 s at a rotation a minute.
		if n := len(lives); n < 16 || n > 40 {
			t.Errorf("there were %d connections", n)
		}
		t.Logf("1000 calls, %d failed, over %d connections", failed.Load(), len(lives))
	})
}

func TestOpenStreamIsCutAtTheEndAndNotBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ttl = 2 * time.Minute
		a, trust := authority(t, td)
		server := identity.NewMemorySource(sign(t, a, "spiffe://fleet.test/server/s1", time.Hour), trust)
		node := identity.NewMemorySource(sign(t, a, "spiffe://fleet.test/node/n1", ttl), trust)
		first := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		defer renewing(ctx, t, node, func() error { return node.Set(sign(t, a, "spiffe://fleet.test/node/n1", ttl)) })()
		defer cancel()
		buf := bufconn.Listen(1 << 16)
		l := &watchedListener{Listener: buf}
		serve(t, l, server, identity.AuthorizeKinds(td, identity.KindNode), &health{})
		conn, err := identity.NewConn("passthrough:///s1", node, identity.AuthorizeServers(td),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return buf.DialContext(ctx) }))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		client := healthpb.NewHealthClient(conn)
		stream, err := client.Watch(ctx, &healthpb.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		p, ok := peer.FromContext(stream.Context())
		if !ok {
			t.Fatal("stream has no peer")
		}
		info, err := identity.PeerOf(p)
		if err != nil {
			t.Fatal(err)
		}
		if left := info.NotAfter.Sub(info.DrainAt); left < ttl/4 || left > ttl*3/8 {
			t.Errorf("the drain begins %s before the end", left)
		}
		// Calls beside it go to newer connections, which must not cut it.
		for time.Since(first) < ttl-time.Second {
			if _, err := client.Check(ctx, &healthpb.HealthCheckRequest{}); err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Recv(); err != nil {
				t.Fatalf("after %s: %v", time.Since(first), err)
			}
		}
		if n := len(l.lives()); n < 2 {
			t.Fatalf("%d connections, the others should have moved", n)
		}
		for err == nil && time.Since(first) < 2*ttl {
			_, err = stream.Recv()
		}
		if at := time.Now(); at.Before(info.NotAfter) || at.After(info.NotAfter.Add(time.Second)) {
			t.Fatalf("the stream ended %s after the SVID: %v", at.Sub(info.NotAfter), err)
		}
		if _, err := client.Check(ctx, &healthpb.HealthCheckRequest{}); err != nil {
			t.Fatalf("a call after the stream's end: %v", err)
		}
	})
}

// When the old connection's last stream ends, the connection is closed.
func TestDrainedConnectionIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, trust := authority(t, td)
		server := identity.NewMemorySource(sign(t, a, "spiffe://fleet.test/server/s1", time.Hour), trust)
		node := identity.NewMemorySource(sign(t, a, "spiffe://fleet.test/node/n1", time.Hour), trust)
		buf := bufconn.Listen(1 << 16)
		l := &watchedListener{Listener: buf}
		serve(t, l, server, identity.AuthorizeKinds(td, identity.KindNode), &health{})
		conn, err := identity.NewConn("passthrough:///s1", node, identity.AuthorizeServers(td),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return buf.DialContext(ctx) }))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		client := healthpb.NewHealthClient(conn)
		ctx, cancel := context.WithCancel(t.Context())
		stream, err := client.Watch(ctx, &healthpb.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		if err := node.Set(sign(t, a, "spiffe://fleet.test/node/n1", time.Hour)); err != nil {
			t.Fatal(err)
		}
		call := func() {
			t.Helper()
			if _, err := client.Check(t.Context(), &healthpb.HealthCheckRequest{}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		call() // begins the new connection
		call() // uses it
		open := func() (n int) {
			for _, c := range l.conns {
				if c.ended.IsZero() {
					n++
				}
			}
			return n
		}
		if n := open(); n != 2 {
			t.Fatalf("%d connections are open, want the stream's and the new one", n)
		}
		cancel()
		for err == nil {
			_, err = stream.Recv()
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if n := open(); n != 1 {
			t.Fatalf("%d connections are open after the stream ended, want 1", n)
		}
	})
}

// The old connection serves on while a new one cannot be had, until near its end.
func TestCallsGoOnWhileTheNewConnectionFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ttl = 2 * time.Minute
		a, trust := authority(t, td)
		server := identity.NewMemorySource(sign(t, a, "spiffe://fleet.test/server/s1", time.Hour), trust)
		node := identity.NewMemorySource(sign(t, a, "spiffe://fleet.test/node/n1", ttl), trust)
		first := time.Now()
		buf := bufconn.Listen(1 << 16)
		serve(t, buf, server, identity.AuthorizeKinds(td, identity.KindNode), &health{})
		var down atomic.Bool
		conn, err := identity.NewConn("passthrough:///s1", node, identity.AuthorizeServers(td),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
				if down.Load() {
					return nil, fmt.Errorf("link is down")
				}
				return buf.DialContext(ctx)
			}))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		client := healthpb.NewHealthClient(conn)
		check := func() error {
			_, err := client.Check(t.Context(), &healthpb.HealthCheckRequest{})
			return err
		}
		if err := check(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(ttl / 2)
		down.Store(true)
		if err := node.Set(sign(t, a, "spiffe://fleet.test/node/n1", ttl)); err != nil {
			t.Fatal(err)
		}
		for time.Since(first) < ttl*3/4 {
			if err := check(); err != nil {
				t.Fatalf("after %s: %v", time.Since(first), err)
			}
			time.Sleep(time.Second)
		}
		time.Sleep(ttl)
		if check() == nil {
			t.Fatal("a call succeeded over a connection that had ended")
		}
		down.Store(false)
		ctx, cancel := context.WithTimeout(t.Context(), ttl)
		defer cancel()
		if _, err := client.Check(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true)); err == nil {
			t.Fatal("an expired SVID connected") // the second SVID has ended too
		}
		if err := node.Set(sign(t, a, "spiffe://fleet.test/node/n1", ttl)); err != nil {
			t.Fatal(err)
		}
		ctx, cancel = context.WithTimeout(t.Context(), ttl)
		defer cancel()
		if _, err := client.Check(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true)); err != nil {
			t.Fatalf("after renewal: %v", err)
		}
	})
}

func TestClosedConnRefusesCalls(t *testing.T) {
	a, trust := authority(t, td)
	node := identity.NewMemorySource(sign(t, a, "spiffe://fleet.test/node/n1", time.Hour), trust)
	conn, err := identity.NewConn("127.0.0.1:1", node, identity.AuthorizeServers(td), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(); err != nil {
		t.Fatalf("second close: %v", err)
	}
	if _, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{}); err == nil {
		t.Fatal("a closed connection took a call")
	}
}
