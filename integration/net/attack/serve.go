package attack

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// Serve answers at every address until ctx ends: "tcp:ADDRESS", "udp:ADDRESS"
// or "unix:ADDRESS". The answer is one line, the name and who asked; after it a
// datagram has what it was asked. Listening
// is done when it calls ready, on the calling thread: in its network namespace.
func Serve(ctx context.Context, name string, at []string, ready func()) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, a := range at {
		network, address, _ := strings.Cut(a, ":")
		switch network {
		case "udp":
			conn, err := net.ListenPacket("udp", address)
			if err != nil {
				return err
			}
			context.AfterFunc(ctx, func() { conn.Close() })
			g.Go(func() error { answerDatagrams(conn, name); return nil })
		case "tcp", "unix":
			l, err := net.Listen(network, address)
			if err != nil {
				return err
			}
			context.AfterFunc(ctx, func() { l.Close() })
			g.Go(func() error { answerStreams(l, name); return nil })
		default:
			return fmt.Errorf("%s is no address to serve at", a)
		}
	}
	ready()
	<-ctx.Done()
	return g.Wait()
}

func answerStreams(l net.Listener, name string) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() { // ends with the connection, which is short
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
			if _, err := bufio.NewReader(conn).ReadString('\n'); err == nil {
				fmt.Fprintf(conn, "%s %s\n", name, conn.RemoteAddr())
			}
		}()
	}
}

func answerDatagrams(conn net.PacketConn, name string) {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = conn.WriteTo(append(fmt.Appendf(nil, "%s %s\n", name, from), buf[:n]...), from)
	}
}
