package server

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"redoubt.dev/redoubt/control/consensus"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
	"redoubt.dev/redoubt/proto/tracing"
)

// traced are the calls that begin or go on with a trace: those that lead to a
// placement.
var traced = map[string]bool{fleetService + "ApplyWorkload": true}

// unaryTracer makes a span of a call that is traced. A caller's context is taken
// whatever it says: it can name a trace, and nothing else.
func (s *Server) unaryTracer(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if !traced[info.FullMethod] {
		return handler(ctx, req)
	}
	ctx, span := s.traceCall(ctx, info.FullMethod)
	resp, err := handler(ctx, req)
	endCall(span, err)
	return resp, err
}

// traceCall begins the span of a call of method that this server was asked for.
func (s *Server) traceCall(ctx context.Context, method string) (context.Context, tracing.Span) {
	if !traced[method] {
		return ctx, tracing.Span{}
	}
	return s.tracer.Start(tracing.Incoming(ctx), tracing.APIApply, tracing.Start{Kind: tracing.Server})
}

// traceForward begins the span of passing a call on to the leader.
func (s *Server) traceForward(ctx context.Context, method string) (context.Context, tracing.Span) {
	if !traced[method] {
		return ctx, tracing.Span{}
	}
	return s.tracer.Start(ctx, tracing.APIForward, tracing.Start{Kind: tracing.Client})
}

// endCall tells only the code of what failed: the words repeat what the caller
// sent, and what that holds is not a collector's business.
func endCall(span tracing.Span, err error) {
	if err != nil {
		span.Fail(status.Code(toStatus(err)).String())
	}
	span.End()
}

// tracedPropose is a part of the trace that ctx is in, if it is in one.
func (s *Server) tracedPropose(ctx context.Context, cmd *redoubtv1.Command) (consensus.Result, error) {
	if !s.tracer.On() || tracing.FromContext(ctx) == "" {
		return s.consensus.Propose(ctx, cmd)
	}
	ctx, span := s.tracer.Start(ctx, tracing.RaftPropose, tracing.Start{})
	defer span.End()
	r, err := s.consensus.Propose(ctx, cmd)
	if err != nil {
		span.Fail(err.Error())
		return r, err
	}
	span.SetInt(tracing.KeyIndex, int64(r.Index))
	return r, nil
}
