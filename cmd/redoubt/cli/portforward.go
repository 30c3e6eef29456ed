package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// forwardsAtOnce bounds the connections of one command; more wait. A server takes 256 streams of one connection.
const forwardsAtOnce = 200

func (a *app) portForwardCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "port-forward NAME [LOCAL:]REMOTE...", Short: "Reach ports of an instance from here",
		Long: "Listens on ports of this machine and carries each connection to a port of an\n" +
			"instance, or of the first running instance of a workload, until interrupted.\n" +
			"The port need not be published.\n\n" +
			"  redoubt port-forward web 8080:80     localhost:8080 leads to port 80\n" +
			"  redoubt port-forward web 5432        the same number on both sides\n" +
			"  redoubt port-forward web :80         a free port of this machine\n\n" +
			"TCP only. At most 200 connections at once; more wait. Under gVisor a port is\n" +
			"reached only where it listens on 0.0.0.0, and none with `network: none`.",
	}
	a.client(c)
	a.namespaced(c)
	addresses := c.Flags().StringSlice("address", []string{"localhost"}, "listen on that `ADDRESS`; may be repeated")
	c.Args = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return fmt.Errorf("%s: name an instance or workload; usage: %s", verbPath(c), c.UseLine())
		}
		if len(args) == 1 {
			return fmt.Errorf("%s: name a port: redoubt port-forward %s 8080:80", verbPath(c), args[0])
		}
		return nil
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		var ports []portPair
		for _, s := range args[1:] {
			p, err := parsePortPair(s)
			if err != nil {
				return err
			}
			ports = append(ports, p)
		}
		return a.with(c.Context(), func(ctx context.Context, f *connection) error {
			fw := &forwarding{app: a, fleet: f, name: args[0], slots: make(chan struct{}, forwardsAtOnce)}
			return fw.run(ctx, *addresses, ports)
		})
	}
	return c
}

// portPair is a port here and one of the instance; local 0 is a free one.
type portPair struct{ local, remote uint16 }

func parsePortPair(s string) (portPair, error) {
	local, remote, both := strings.Cut(s, ":")
	if !both {
		local, remote = s, s
	}
	number := func(text string) (uint16, error) {
		n, err := strconv.ParseUint(text, 10, 16)
		if err != nil || n == 0 {
			return 0, fmt.Errorf("port-forward: %q: a port is a number from 1 to 65535; write [LOCAL:]REMOTE, as in 8080:80", s)
		}
		return uint16(n), nil
	}
	var p portPair
	var err error
	if p.remote, err = number(remote); err != nil {
		return p, err
	}
	if both && (local == "" || local == "0") {
		return p, nil
	}
	p.local, err = number(local)
	return p, err
}

// forwarding is one port-forward as its user sees it.
type forwarding struct {
	*app
	fleet *connection
	name  string
	slots chan struct{}

	mu     sync.Mutex
	told   string // the last complaint, and when
	toldAt time.Time
}

func (w *forwarding) run(ctx context.Context, addresses []string, ports []portPair) error {
	// Port 0 only asks: what is wrong with the name shows before anything listens.
	probe, err := w.open(ctx, 0)
	if err != nil {
		return fmt.Errorf("port-forward to %s: %w", w.name, err)
	}
	m, err := probe.Recv()
	if err != nil {
		return fmt.Errorf("port-forward to %s: %w", w.name, err)
	}
	listeners, err := listenAll(addresses, ports)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, l := range listeners {
		defer context.AfterFunc(ctx, func() { l.Close() })()
		fmt.Fprintf(w.Stdout, "Forwarding from %s to port %d of %s\n", l.Addr(), l.remote, clean(m.GetConnected()))
	}
	failed := make(chan error, len(listeners))
	for _, l := range listeners {
		wg.Go(func() {
			failed <- w.accept(ctx, l, &wg)
			cancel()
		})
	}
	<-ctx.Done()
	for _, l := range listeners {
		l.Close()
	}
	return <-failed
}

type listener struct {
	net.Listener
	remote uint16
}

// listenAll listens everywhere or nowhere. "localhost" is both families where
// there are both, and the same port on either.
func listenAll(addresses []string, ports []portPair) (all []listener, err error) {
	defer func() {
		if err != nil {
			for _, l := range all {
				l.Close()
			}
		}
	}()
	for _, p := range ports {
		local := p.local
		for _, address := range addresses {
			hosts := []string{address}
			if address == "localhost" {
				hosts = []string{"127.0.0.1", "::1"}
			}
			for i, host := range hosts {
				l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(int(local))))
				if err != nil && i > 0 {
					continue // no IPv6 here, or held there by somebody else
				}
				if err != nil {
					return all, fmt.Errorf("port-forward: listen on %s: %w; choose another local port, as in %d:%d, or leave it out, as in :%d",
						net.JoinHostPort(host, strconv.Itoa(int(local))), listenCause(err), local+1, p.remote, p.remote)
				}
				all = append(all, listener{l, p.remote})
				if t, ok := l.Addr().(*net.TCPAddr); ok {
					local = uint16(t.Port)
				}
			}
		}
	}
	return all, nil
}

func listenCause(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// acceptPause is how long a lack of files or memory is left to pass.
const acceptPause = 200 * time.Millisecond

// passing tells whether an accept that failed may do when it is tried again.
func passing(err error) bool {
	return slices.ContainsFunc([]error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EINTR}, func(is error) bool { return errors.Is(err, is) })
}

func (w *forwarding) accept(ctx context.Context, l listener, wg *sync.WaitGroup) error {
	for {
		conn, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return ctx.Err()
		case passing(err):
			// The connection waits in the queue of the kernel.
			w.complain(l.remote, fmt.Errorf("accept on %s: %w; trying again", l.Addr(), listenCause(err)))
			select {
			case <-time.After(acceptPause):
			case <-ctx.Done():
				return ctx.Err()
			}
			continue
		case err != nil:
			return fmt.Errorf("port-forward: accept on %s: %w", l.Addr(), err)
		}
		// Only what is accepted takes a slot: listeners that nobody calls take none
		// away from the others. Each holds at most one connection that waits here.
		select {
		case w.slots <- struct{}{}:
		case <-ctx.Done():
			conn.Close()
			return ctx.Err()
		}
		wg.Go(func() {
			defer func() { <-w.slots }()
			if err := w.carry(ctx, conn, l.remote); err != nil && ctx.Err() == nil {
				w.complain(l.remote, err)
				// Not as if the instance had ended it well.
				if t, ok := conn.(*net.TCPConn); ok {
					_ = t.SetLinger(0)
				}
			}
			conn.Close()
		})
	}
}

// complain says why a connection failed; the same reason once in two seconds.
func (w *forwarding) complain(port uint16, err error) {
	line := fmt.Sprintf("redoubt: port %d of %s: %s", port, w.name, plain(err))
	w.mu.Lock()
	defer w.mu.Unlock()
	if line == w.told && time.Since(w.toldAt) < 2*time.Second {
		return
	}
	w.told, w.toldAt = line, time.Now()
	fmt.Fprintln(w.Stderr, line)
}

type forwardStream = grpc.BidiStreamingClient[redoubtv1.PortForwardRequest, redoubtv1.PortForwardResponse]

func (w *forwarding) open(ctx context.Context, port uint16) (forwardStream, error) {
	s, err := w.fleet.PortForward(ctx)
	if err != nil {
		return nil, err
	}
	err = s.Send(&redoubtv1.PortForwardRequest{Message: &redoubtv1.PortForwardRequest_Start{Start: &redoubtv1.PortForwardStart{
		Namespace: w.namespace, Name: w.name, Port: uint32(port)}}})
	if err != nil && !errors.Is(err, io.EOF) { // Recv has the reason
		return nil, err
	}
	return s, nil
}

// carry carries one connection, each direction until its own end.
func (w *forwarding) carry(ctx context.Context, conn net.Conn, port uint16) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	// The last to run ends a blocked read, for which Wait waits.
	context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	s, err := w.open(ctx, port)
	if err != nil {
		return err
	}
	wg.Go(func() {
		buf := make([]byte, 32<<10)
		for {
			n, err := conn.Read(buf)
			if n > 0 {
				data := append([]byte(nil), buf[:n]...)
				if s.Send(&redoubtv1.PortForwardRequest{Message: &redoubtv1.PortForwardRequest_Data{Data: data}}) != nil {
					return
				}
			}
			if errors.Is(err, io.EOF) {
				_ = s.Send(&redoubtv1.PortForwardRequest{Message: &redoubtv1.PortForwardRequest_Close{Close: true}})
				return
			}
			if err != nil {
				cancel() // this side broke it: the instance shall see that
				return
			}
		}
	})
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			if ctx.Err() != nil {
				return nil // broken from here
			}
			return err
		}
		switch r := m.GetMessage().(type) {
		case *redoubtv1.PortForwardResponse_Data:
			if _, err := conn.Write(r.Data); err != nil {
				return nil // its own client went away
			}
		case *redoubtv1.PortForwardResponse_Close:
			if t, ok := conn.(*net.TCPConn); ok {
				_ = t.CloseWrite()
			}
		}
	}
}
