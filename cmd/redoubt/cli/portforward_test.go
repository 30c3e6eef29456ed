package cli

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// refusing is a fleet that refuses forwards.
type refusing struct{ redoubtv1.FleetServiceClient }

func (refusing) PortForward(context.Context, ...grpc.CallOption) (grpc.BidiStreamingClient[redoubtv1.PortForwardRequest, redoubtv1.PortForwardResponse], error) {
	return nil, errors.New("no such\x1b[2J port")
}

// queue is a listener; what comes out of the channel is accepted, nil is EMFILE.
type queue struct {
	net.Listener
	conns chan net.Conn
}

func (q queue) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 80} }
func (q queue) Accept() (net.Conn, error) {
	c, ok := <-q.conns
	if !ok {
		return nil, net.ErrClosed
	}
	if c == nil {
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	return c, nil
}

// Listeners that nobody calls take no connection's place, and a lack of files
// passes.
func TestForwardsWaitForConnectionsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said strings.Builder
		w := &forwarding{app: &app{Env: Env{Stderr: &said}}, fleet: &connection{FleetServiceClient: refusing{}}, name: "web", slots: make(chan struct{}, 1)}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		busy := queue{conns: make(chan net.Conn)}
		idle := queue{conns: make(chan net.Conn)}
		wg.Go(func() { _ = w.accept(ctx, listener{idle, 81}, &wg) })
		synctest.Wait()
		ended := make(chan error, 1)
		go func() { ended <- w.accept(ctx, listener{busy, 80}, &wg) }()
		synctest.Wait()
		busy.conns <- nil
		here, there := net.Pipe()
		select {
		case busy.conns <- there:
		case err := <-ended:
			t.Fatalf("it gave up: %v", err)
		}
		if _, err := here.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("the connection that nobody carries: %v", err)
		}
		synctest.Wait()
		for _, want := range []string{"too many open files; trying again", "redoubt: port 80 of web: no such?[2J port\n"} {
			if !strings.Contains(said.String(), want) {
				t.Errorf("no %q in %q", want, said.String())
			}
		}
		cancel()
		close(busy.conns)
		close(idle.conns)
		wg.Wait()
		<-ended
	})
}
