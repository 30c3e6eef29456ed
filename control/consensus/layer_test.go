package consensus

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// pair is a dialled connection and its other end, draining at a given time.
func pair(t *testing.T, drainAt time.Time) (dialled, accepted net.Conn, close func()) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	sec := plain
	sec.DrainAt = func(net.Conn) time.Time { return drainAt }
	l := NewLayer(ln, sec, nil)
	dialled, err = l.Dial(raft.ServerAddress(ln.Addr().String()), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if accepted, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return dialled, accepted, func() { l.Close(); dialled.Close(); accepted.Close(); l.wait() }
}

func TestNoRequestBeginsOnADrainingConnection(t *testing.T) {
	drainAt := time.Now().Add(300 * time.Millisecond)
	d, a, done := pair(t, drainAt)
	defer done()
	buf := make([]byte, 8)
	if _, err := d.Write([]byte("req-1a")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(a, buf[:6]); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Until(drainAt) + 10*time.Millisecond)
	// What has begun is finished, and answered.
	if _, err := d.Write([]byte("b")); err != nil {
		t.Fatalf("a request was cut in the middle: %v", err)
	}
	if _, err := a.Write([]byte("ok")); err != nil {
		t.Fatalf("an answer was refused: %v", err)
	}
	if _, err := io.ReadFull(d, buf[:2]); err != nil {
		t.Fatal(err)
	}
	if n, err := d.Write([]byte("req-2")); !errors.Is(err, errDraining) || n != 0 {
		t.Fatalf("the next request: %d bytes, %v", n, err)
	}
	a.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, _ := io.ReadFull(a, buf); n != 1 {
		t.Fatalf("%d bytes arrived, want only the end of the first request", n)
	}
}

func TestASilentStrangerHoldsUpNobody(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	sec := plain
	sec.Server = func(ctx context.Context, c net.Conn) (net.Conn, error) {
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil { // waits for the peer's first word
			return nil, err
		}
		return c, nil
	}
	l := NewLayer(ln, sec, nil)
	silent, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	first, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	stuck := make(chan error, 1)
	go func() { _, err := first.Read(make([]byte, 1)); first.Close(); stuck <- err }()
	good, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer good.Close()
	good.Write([]byte("hx"))
	second, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	if _, err := second.Read(b); err != nil || b[0] != 'x' {
		t.Fatalf("%q, %v", b, err)
	}
	// Closing the layer ends the handshake that hangs, and every connection.
	l.Close()
	select {
	case err := <-stuck:
		if err == nil {
			t.Fatal("the silent one was heard")
		}
	case <-time.After(5 * time.Second):
		t.Fatal("Close leaves a handshake hanging")
	}
	second.Close()
	l.wait()
}
