package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"redoubt.dev/redoubt/agent/driver"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// Bulk runs what a StreamOpen asks for. Errors become what the user sees; a
// gRPC status keeps its code.
type Bulk interface {
	// Exec runs a process in the instance uid to its end; it calls started with
	// the instance's name once it is about to run.
	Exec(ctx context.Context, uid string, spec driver.ExecSpec, streams driver.Streams, started func(instance string)) (code int, err error)
	// Logs hands over what the instance uid wrote and, with follow, what it
	// writes until ctx or the instance ends.
	Logs(ctx context.Context, uid string, opts LogOptions, hand func(LogChunk) error) error
	// Egress reads the counters of the egress rules of the instance uid.
	Egress(ctx context.Context, uid string) (*redoubtv1.EgressCounts, error)
	// Forward connects to a TCP port of the instance uid, and names it.
	Forward(ctx context.Context, uid string, port uint16) (instance string, conn net.Conn, err error)
}

// LogOptions say which part of a log is wanted.
type LogOptions struct {
	// From goes on after that many bytes of all that the instance ever wrote;
	// negative: as the other fields say.
	From int64
	Tail int // last lines; negative: all that is kept
	// Since, if set, leaves out what was written before; SinceAgo says so by the
	// node's own clock.
	Since    time.Time
	SinceAgo time.Duration
	Previous bool // only what was written between the last two starts
	Follow   bool
}

// LogChunk is a part of a log.
type LogChunk struct {
	Data    []byte    // reused after the call
	Offset  int64     // after Data, of all that the instance ever wrote
	Time    time.Time // by which Data had been written; zero: not known
	Dropped int64     // bytes before Data that are no longer kept
}

const chunk = 32 << 10

// open answers a StreamOpen on a connection of its own. A server that asks for
// more than can even be refused gets no answer.
func (s *Session) open(ctx context.Context, o *redoubtv1.StreamOpen) {
	select {
	case s.opens <- struct{}{}:
	default:
		s.deps.Log.Debug("stream not opened: too many are asked for", "stream", o.GetStreamId(), "server", o.GetServerAddress(), "limit", cap(s.opens))
		return
	}
	s.bulk.Go(func() {
		defer func() { <-s.opens }()
		if err := s.attach(ctx, o); err != nil && ctx.Err() == nil && !errors.Is(err, io.EOF) { // EOF: its caller went
			s.deps.Log.Warn("stream failed", "stream", o.GetStreamId(), "uid", o.GetUid(), "server", o.GetServerAddress(), "err", err)
		}
	})
}

func (s *Session) attach(ctx context.Context, o *redoubtv1.StreamOpen) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := s.pool.get(o.GetServerAddress(), o.GetServerId())
	if err != nil {
		return err
	}
	defer s.pool.put(conn)
	// Until the server is reached, this must not take long.
	watch := time.AfterFunc(s.cfg.Contact, cancel)
	stream, err := redoubtv1.NewAgentServiceClient(conn).Attach(ctx)
	if err != nil {
		return err
	}
	if err := stream.Send(&redoubtv1.AttachRequest{Message: &redoubtv1.AttachRequest_StreamId{StreamId: o.GetStreamId()}}); err != nil {
		return err
	}
	if o.GetConfirms() {
		paired, err := confirmed(stream)
		if err != nil || !paired {
			return err
		}
	}
	watch.Stop()

	out := &outlet{stream: stream}
	slots, kind := s.streams, "log and forward streams"
	if o.GetExec() != nil {
		slots, kind = s.execs, "execs"
	}
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
		err = s.serve(ctx, cancel, stream, out, o)
	default:
		err = status.Errorf(codes.ResourceExhausted, "node %s serves %d %s already, its limit: end some, or try again later", s.cfg.Node, cap(slots), kind)
	}
	if ctx.Err() != nil {
		// The caller has gone, or this agent ends. A stream that is cut off must
		// not end as one does that has said everything.
		return ctx.Err()
	}
	if err != nil {
		st := toStatus(err)
		err = out.send(&redoubtv1.AttachRequest{Message: &redoubtv1.AttachRequest_Error{Error: &redoubtv1.AttachError{
			Code: uint32(st.Code()), Message: st.Message(),
		}}})
		if err != nil {
			return err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	// The server ends the stream once it has passed everything on; closing
	// before would cut off what is still on its way.
	linger := time.AfterFunc(30*time.Second, cancel)
	defer linger.Stop()
	out.drained(stream)
	return nil
}

// confirmed waits for the server's word that a caller is there. A caller that
// went while this agent dialled must not have begun anything.
func confirmed(stream grpc.BidiStreamingClient[redoubtv1.AttachRequest, redoubtv1.AttachResponse]) (bool, error) {
	m, err := stream.Recv()
	switch {
	case errors.Is(err, io.EOF) || status.Code(err) == codes.NotFound:
		return false, nil // the caller has gone
	case err != nil:
		return false, err
	case !m.GetPaired():
		return false, fmt.Errorf("the server's first message on a stream is %T, not that it is paired", m.GetMessage())
	}
	return true, nil
}

func (s *Session) serve(ctx context.Context, cancel context.CancelFunc, stream grpc.BidiStreamingClient[redoubtv1.AttachRequest, redoubtv1.AttachResponse], out *outlet, o *redoubtv1.StreamOpen) error {
	switch {
	case o.GetLogs() != nil:
		return s.logs(ctx, cancel, stream, out, o)
	case o.GetForward() != nil:
		return s.forward(ctx, cancel, stream, out, o)
	case o.GetExec() != nil:
		return s.exec(ctx, cancel, stream, out, o)
	case o.GetEgress() != nil:
		counts, err := s.deps.Bulk.Egress(ctx, o.GetUid())
		if err != nil {
			return err
		}
		return out.send(&redoubtv1.AttachRequest{Message: &redoubtv1.AttachRequest_Egress{Egress: counts}})
	}
	return status.Error(codes.Unimplemented, "this agent does not know that kind of stream")
}

func (s *Session) logs(ctx context.Context, cancel context.CancelFunc, stream grpc.BidiStreamingClient[redoubtv1.AttachRequest, redoubtv1.AttachResponse], out *outlet, o *redoubtv1.StreamOpen) error {
	out.receiver.Go(func() { // the server ends it by ending the stream
		for {
			if _, err := stream.Recv(); err != nil {
				cancel()
				return
			}
		}
	})
	r := o.GetLogs()
	opts := LogOptions{From: -1, Tail: int(r.GetTail()), Follow: r.GetFollow(), Previous: r.GetPrevious(), SinceAgo: r.GetSinceAgo().AsDuration()}
	if r.GetSince() != nil {
		opts.Since = r.GetSince().AsTime()
	}
	for _, p := range r.GetResume() {
		if p.GetUid() == o.GetUid() && p.GetOffset() <= math.MaxInt64 {
			opts.From = int64(p.GetOffset())
		}
	}
	err := s.deps.Bulk.Logs(ctx, o.GetUid(), opts, func(c LogChunk) error {
		for first := true; first || len(c.Data) > 0; first = false {
			part := c.Data[:min(len(c.Data), chunk)]
			c.Data = c.Data[len(part):]
			m := &redoubtv1.AttachRequest{Message: &redoubtv1.AttachRequest_Logs{Logs: part}}
			if r.GetPositions() {
				l := &redoubtv1.LogsResponse{Data: part, Position: &redoubtv1.LogPosition{Uid: o.GetUid(), Offset: uint64(max(0, c.Offset-int64(len(c.Data))))}}
				if !c.Time.IsZero() {
					l.Time = timestamppb.New(c.Time)
				}
				if first {
					l.Dropped = uint64(max(0, c.Dropped))
				}
				m.Message = &redoubtv1.AttachRequest_Log{Log: l}
			}
			if err := out.send(m); err != nil {
				return err
			}
		}
		return nil
	})
	if ctx.Err() != nil {
		return nil // nobody reads any more
	}
	return err
}

func (s *Session) exec(ctx context.Context, cancel context.CancelFunc, stream grpc.BidiStreamingClient[redoubtv1.AttachRequest, redoubtv1.AttachResponse], out *outlet, o *redoubtv1.StreamOpen) error {
	e := o.GetExec()
	stdinR, stdinW := io.Pipe()
	resize, signals := make(chan [2]uint16, 4), make(chan string, 4)
	input := make(chan []byte, 16) // nil ends it
	var workers sync.WaitGroup
	defer workers.Wait()
	defer stdinR.Close()
	execCtx, stop := context.WithCancel(ctx)
	defer stop()
	workers.Go(func() {
		for {
			select {
			case p := <-input:
				if p == nil {
					stdinW.Close()
					return
				}
				if _, err := stdinW.Write(p); err != nil {
					return
				}
			case <-execCtx.Done():
				stdinW.CloseWithError(io.ErrUnexpectedEOF)
				return
			}
		}
	})
	out.receiver.Go(func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				cancel() // the user is gone, or the server
				return
			}
			switch r := m.GetExec().GetMessage().(type) {
			case *redoubtv1.ExecRequest_Stdin:
				if len(r.Stdin) == 0 {
					continue
				}
				select {
				case input <- r.Stdin:
				case <-execCtx.Done():
				}
			case *redoubtv1.ExecRequest_CloseStdin:
				select {
				case input <- nil:
				case <-execCtx.Done():
				}
			case *redoubtv1.ExecRequest_Resize:
				select {
				case resize <- [2]uint16{uint16(r.Resize.GetWidth()), uint16(r.Resize.GetHeight())}:
				default: // the next one counts
				}
			case *redoubtv1.ExecRequest_Signal:
				select {
				case signals <- r.Signal:
				case <-execCtx.Done():
				}
			}
		}
	})
	spec := driver.ExecSpec{
		Command: e.GetCommand(), WorkingDir: e.GetWorkingDir(), User: e.GetUser(), Terminal: e.GetTerminal(),
		Width: uint16(e.GetSize().GetWidth()), Height: uint16(e.GetSize().GetHeight()),
	}
	for _, v := range e.GetEnv() {
		spec.Env = append(spec.Env, v.GetName()+"="+v.GetValue())
	}
	reply := func(r *redoubtv1.ExecResponse) *redoubtv1.AttachRequest {
		return &redoubtv1.AttachRequest{Message: &redoubtv1.AttachRequest_Exec{Exec: r}}
	}
	code, err := s.deps.Bulk.Exec(execCtx, o.GetUid(), spec, driver.Streams{
		Stdin: stdinR,
		Stdout: writerFunc(func(p []byte) *redoubtv1.AttachRequest {
			return reply(&redoubtv1.ExecResponse{Message: &redoubtv1.ExecResponse_Stdout{Stdout: p}})
		}, out),
		Stderr: writerFunc(func(p []byte) *redoubtv1.AttachRequest {
			return reply(&redoubtv1.ExecResponse{Message: &redoubtv1.ExecResponse_Stderr{Stderr: p}})
		}, out),
		Resize: resize, Signals: signals,
	}, func(instance string) {
		_ = out.send(reply(&redoubtv1.ExecResponse{Message: &redoubtv1.ExecResponse_Started{Started: instance}}))
	})
	if err != nil {
		return err
	}
	return out.send(reply(&redoubtv1.ExecResponse{Message: &redoubtv1.ExecResponse_ExitCode{ExitCode: int32(code)}}))
}

// outlet serialises sends; it blocks while the reader does not read.
type outlet struct {
	mu       sync.Mutex
	stream   grpc.BidiStreamingClient[redoubtv1.AttachRequest, redoubtv1.AttachResponse]
	receiver sync.WaitGroup
}

func (o *outlet) send(m *redoubtv1.AttachRequest) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.stream.Send(m)
}

// drained waits until the server has ended the stream.
func (o *outlet) drained(stream grpc.BidiStreamingClient[redoubtv1.AttachRequest, redoubtv1.AttachResponse]) {
	o.receiver.Wait()
	for {
		if _, err := stream.Recv(); err != nil {
			return
		}
	}
}

type chunkWriter struct {
	wrap func([]byte) *redoubtv1.AttachRequest
	out  *outlet
}

func writerFunc(wrap func([]byte) *redoubtv1.AttachRequest, out *outlet) io.Writer {
	return chunkWriter{wrap, out}
}

func (w chunkWriter) Write(p []byte) (int, error) {
	n := 0
	for len(p) > 0 {
		part := p[:min(len(p), chunk)]
		// gRPC has encoded the message when Send returns; p may be reused.
		if err := w.out.send(w.wrap(part)); err != nil {
			return n, err
		}
		n, p = n+len(part), p[len(part):]
	}
	return n, nil
}

func toStatus(err error) *status.Status {
	if st, ok := status.FromError(err); ok {
		return st
	}
	code := codes.Internal
	switch {
	case errors.Is(err, driver.ErrNotFound):
		code = codes.NotFound
	case errors.Is(err, driver.ErrNotRunning):
		code = codes.FailedPrecondition
	case errors.Is(err, driver.ErrUnavailable):
		code = codes.Unavailable
	case errors.Is(err, context.DeadlineExceeded):
		code = codes.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		code = codes.Canceled
	}
	return status.New(code, fmt.Sprint(err))
}
