package session

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// connectFor bounds how long a port of an instance may take to accept.
const connectFor = 10 * time.Second

// halfCloser is a connection of which one direction can end: TCP's.
type halfCloser interface{ CloseWrite() error }

// forward carries one connection to a port of an instance, each direction until
// its own end. Neither is read faster than the other side takes it: what is on
// the way is bounded by the stream's window and one buffer.
func (s *Session) forward(ctx context.Context, cancel context.CancelFunc, stream grpc.BidiStreamingClient[redoubtv1.AttachRequest, redoubtv1.AttachResponse], out *outlet, o *redoubtv1.StreamOpen) error {
	port := o.GetForward().GetPort()
	if port == 0 || port > 65535 {
		return status.Errorf(codes.InvalidArgument, "port %d is none", port)
	}
	dialling, done := context.WithTimeout(ctx, connectFor)
	instance, conn, err := s.deps.Bulk.Forward(dialling, o.GetUid(), uint16(port))
	done()
	if err != nil {
		return err
	}
	defer conn.Close()
	// A blocked read or write ends with the stream.
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	reply := func(r *redoubtv1.PortForwardResponse) error {
		return out.send(&redoubtv1.AttachRequest{Message: &redoubtv1.AttachRequest_Forward{Forward: r}})
	}
	if err := reply(&redoubtv1.PortForwardResponse{Message: &redoubtv1.PortForwardResponse_Connected{Connected: instance}}); err != nil {
		return err
	}
	ended := make(chan struct{}) // the caller sends no more
	out.receiver.Go(func() { forwardIn(stream, conn, cancel, ended) })
	if err := forwardOut(conn, reply); err != nil {
		if ctx.Err() != nil {
			return nil // nobody is there any more
		}
		return err
	}
	select {
	case <-ended:
	case <-ctx.Done():
	}
	return nil
}

// forwardIn passes what the caller sends on to the instance.
func forwardIn(stream grpc.BidiStreamingClient[redoubtv1.AttachRequest, redoubtv1.AttachResponse], conn net.Conn, gone context.CancelFunc, ended chan<- struct{}) {
	open, broken := true, false
	end := func() {
		if open {
			open = false
			if h, ok := conn.(halfCloser); ok {
				_ = h.CloseWrite()
			}
			close(ended)
		}
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			gone()
			end()
			return
		}
		switch r := m.GetForward().GetMessage().(type) {
		case *redoubtv1.PortForwardRequest_Data:
			if open && !broken {
				// An instance that takes no more may still send; its end shows
				// where it is read.
				_, err := conn.Write(r.Data)
				broken = err != nil
			}
		case *redoubtv1.PortForwardRequest_Close:
			end()
		}
	}
}

// forwardOut passes what the instance sends on to the caller until its end.
func forwardOut(conn net.Conn, reply func(*redoubtv1.PortForwardResponse) error) error {
	buf := make([]byte, chunk)
	for {
		n, err := conn.Read(buf)
		if n > 0 {
			// gRPC has encoded the message when it returns; buf may be reused.
			if err := reply(&redoubtv1.PortForwardResponse{Message: &redoubtv1.PortForwardResponse_Data{Data: buf[:n]}}); err != nil {
				return err
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			return reply(&redoubtv1.PortForwardResponse{Message: &redoubtv1.PortForwardResponse_Close{Close: true}})
		default:
			return status.Errorf(codes.Aborted, "the instance broke the connection: %v", underlying(err))
		}
	}
}

// underlying is err without the addresses, which mean nothing to a caller.
func underlying(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil {
		return op.Err
	}
	return err
}
