package session

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"redoubt.dev/redoubt/agent/driver"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// duplex is one end of a connection whose directions end apart, as TCP's do.
type duplex struct {
	net.Conn // for what is not used
	r        *io.PipeReader
	w        *io.PipeWriter
}

func newDuplex() (a, b duplex) {
	r1, w1 := io.Pipe()
	r2, w2 := io.Pipe()
	return duplex{r: r1, w: w2}, duplex{r: r2, w: w1}
}

func (d duplex) Read(p []byte) (int, error)  { return d.r.Read(p) }
func (d duplex) Write(p []byte) (int, error) { return d.w.Write(p) }
func (d duplex) CloseWrite() error           { return d.w.Close() }
func (d duplex) Close() error {
	d.r.CloseWithError(io.ErrClosedPipe)
	return d.w.CloseWithError(io.ErrUnexpectedEOF)
}

var forwardOpen = func() *redoubtv1.StreamOpen {
	return &redoubtv1.StreamOpen{Request: &redoubtv1.StreamOpen_Forward{Forward: &redoubtv1.PortForwardStart{Port: 80}}}
}

func forwardRequest(r *redoubtv1.PortForwardRequest) *redoubtv1.AttachResponse {
	return &redoubtv1.AttachResponse{Message: &redoubtv1.AttachResponse_Forward{Forward: r}}
}

// What is sent after one direction has ended still arrives in the other, and
// the connection is over once both have.
func TestForwardEndsEachDirectionApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := newDuplex()
		asked, answer := "", strings.Repeat("a", 100_000)
		go func() { // the instance answers once it has heard the end of the question
			data, _ := io.ReadAll(far)
			asked = string(data)
			_, _ = io.WriteString(far, answer)
			_ = far.CloseWrite()
		}()
		var got bytes.Buffer
		closed, ended := false, false
		attached(t, forwardOpen(), &bulk{forward: func(_ context.Context, uid string, port uint16) (string, net.Conn, error) {
			if uid != "a" || port != 80 {
				t.Errorf("port %d of %s", port, uid)
			}
			return "web-1", near, nil
		}}, func(s redoubtv1.AgentService_AttachServer) error {
			if m, err := s.Recv(); err != nil || m.GetForward().GetConnected() != "web-1" {
				t.Errorf("it begins with %v, %v", m, err)
			}
			_ = s.Send(forwardRequest(&redoubtv1.PortForwardRequest{Message: &redoubtv1.PortForwardRequest_Data{Data: []byte("who?")}}))
			_ = s.Send(forwardRequest(&redoubtv1.PortForwardRequest{Message: &redoubtv1.PortForwardRequest_Close{Close: true}}))
			for {
				m, err := s.Recv()
				if err != nil {
					ended = err == io.EOF
					return nil
				}
				got.Write(m.GetForward().GetData())
				closed = closed || m.GetForward().GetClose()
			}
		})
		if asked != "who?" || got.String() != answer || !closed || !ended {
			t.Errorf("the instance heard %q; back came %d bytes, closed %v, ended %v", asked, got.Len(), closed, ended)
		}
	})
}

// A caller who does not read holds up the instance, and no more is kept for him
// than the windows; one who goes ends the connection.
func TestForwardIsReadNoFasterThanItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := newDuplex()
		var sent atomic.Int64
		over := false
		go func() {
			for {
				n, err := far.Write(make([]byte, 10_000))
				sent.Add(int64(n))
				if err != nil {
					over = true
					return
				}
			}
		}()
		attached(t, forwardOpen(), &bulk{forward: func(context.Context, string, uint16) (string, net.Conn, error) { return "web-1", near, nil }},
			func(s redoubtv1.AgentService_AttachServer) error {
				time.Sleep(2 * time.Second)
				if n := sent.Load(); n == 0 || n > 1<<20 {
					t.Errorf("%d bytes were taken for a caller who does not read", n)
				}
				return status.Error(codes.Canceled, "the caller left")
			})
		if !over {
			t.Error("the connection was left open")
		}
	})
}

// A refused port is an error in words, and another kind of stream than an exec
// has room where execs have none.
func TestRefusedPortsSayWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got *redoubtv1.AttachError
		attached(t, forwardOpen(), &bulk{forward: func(context.Context, string, uint16) (string, net.Conn, error) {
			return "", nil, status.Error(codes.FailedPrecondition, "nothing listens on port 80 of web-1")
		}}, func(s redoubtv1.AgentService_AttachServer) error {
			for {
				m, err := s.Recv()
				if err != nil {
					return nil
				}
				got = m.GetError()
			}
		})
		if codes.Code(got.GetCode()) != codes.FailedPrecondition || !strings.Contains(got.GetMessage(), "port 80 of web-1") {
			t.Errorf("the caller sees %v", got)
		}
	})
}

// Streams share connections, and no more than fit on one.
func TestStreamsShareConnections(t *testing.T) {
	var open atomic.Int64
	p := pool{dial: func(string, string) (Conn, error) { open.Add(1); return countedConn{closed: &open}, nil }}
	var all []*shared
	for range 1000 {
		c, err := p.get("s1:1", "s1")
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	if n := open.Load(); n != (1000+perConn-1)/perConn {
		t.Errorf("a thousand streams have %d connections", n)
	}
	other, _ := p.get("s1:1", "s2") // must be another server
	if open.Load() != 9 {
		t.Error("a connection to one server was taken for another")
	}
	for _, c := range append(all, other) {
		p.put(c)
	}
	if open.Load() != 9 {
		t.Error("connections were not kept for the next stream")
	}
	p.close()
	if n := open.Load(); n != 0 || len(p.conns) != 0 {
		t.Errorf("%d connections are left open", n)
	}
}

type countedConn struct {
	Conn
	closed *atomic.Int64
}

func (c countedConn) Close() error { c.closed.Add(-1); return nil }

// Execs have a bound of their own, which is told; what is no exec is not kept
// out by it.
func TestExecsHaveABoundOfTheirOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got *redoubtv1.AttachError
		f := &fleet{t: t}
		defer f.add("s1", &server{attach: func(s redoubtv1.AgentService_AttachServer) error {
			for {
				m, err := s.Recv()
				if err != nil {
					return nil
				}
				if m.GetError() != nil {
					got = m.GetError()
				}
			}
		}})()
		asked := 0
		s := New(Config{Node: "n1", Execs: 1}, Deps{Dial: f.dial, Log: slog.New(slog.DiscardHandler), Bulk: &bulk{
			exec: func(context.Context, string, driver.ExecSpec, driver.Streams, func(string)) (int, error) {
				asked++
				return 0, nil
			},
			logs: func(context.Context, string, LogOptions, func(LogChunk) error) error { asked++; return nil },
		}})
		defer s.pool.close()
		s.execs <- struct{}{} // one is under way
		exec := &redoubtv1.StreamOpen{ServerAddress: "s1", Request: &redoubtv1.StreamOpen_Exec{Exec: &redoubtv1.ExecStart{Command: []string{"x"}}}}
		if err := s.attach(t.Context(), exec); err != nil {
			t.Fatal(err)
		}
		if codes.Code(got.GetCode()) != codes.ResourceExhausted || !strings.Contains(got.GetMessage(), "node n1 serves 1 execs already") || asked != 0 {
			t.Errorf("one too many is told %v; %d began", got, asked)
		}
		got = nil
		if err := s.attach(t.Context(), &redoubtv1.StreamOpen{ServerAddress: "s1", Request: &redoubtv1.StreamOpen_Logs{Logs: &redoubtv1.LogsRequest{}}}); err != nil || got != nil || asked != 1 {
			t.Errorf("logs beside it: %v, %v, %d began", err, got, asked)
		}
		<-s.execs
		if err := s.attach(t.Context(), exec); err != nil || got != nil || asked != 2 {
			t.Errorf("an exec after it: %v, %v, %d began", err, got, asked)
		}
	})
}
