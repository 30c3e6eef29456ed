package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"redoubt.dev/redoubt/identity"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
	"redoubt.dev/redoubt/proto/tracing"
)

// leaderWait is how long a call waits for an election to end before it says
// that there is no leader: one election with one lost round.
const leaderWait = 5 * time.Second

// forward carries a unary call of caller to the leader and brings its answer
// back. It tries again, within leaderWait, only while it is certain that the
// call was not begun.
func (s *Server) forward(ctx context.Context, caller identity.ID, method string, request proto.Message) (proto.Message, error) {
	body, err := proto.Marshal(request)
	if err != nil {
		return nil, status.Errorf(codes.Internal, "encode %s: %v", short(method), err)
	}
	_, output, err := methodTypes(method)
	if err != nil {
		return nil, status.Error(codes.Unimplemented, err.Error())
	}
	deadline := time.Now().Add(leaderWait)
	for {
		if s.consensus.IsLeader() {
			return s.serveLocally(ctx, caller, method, request)
		}
		if leader, ok := s.leaderRef(); ok {
			answer, begun, err := s.forwardTo(ctx, leader, caller, method, body)
			if err == nil {
				out := output.New().Interface()
				if len(answer.GetStatus()) > 0 {
					var st spb.Status
					if err := proto.Unmarshal(answer.GetStatus(), &st); err != nil {
						return nil, status.Errorf(codes.Internal, "the leader's answer cannot be read: %v", err)
					}
					return nil, status.ErrorProto(&st)
				}
				if err := proto.Unmarshal(answer.GetResponse(), out); err != nil {
					return nil, status.Errorf(codes.Internal, "the leader's answer cannot be read: %v", err)
				}
				return out, nil
			}
			if begun {
				return nil, status.Errorf(codes.Aborted, "outcome unknown: the connection to the leader %s broke while it worked on the call: %v; look before you repeat it (with the same command id a repeat is harmless)", leader.ID, status.Convert(err).Message())
			}
		}
		if time.Now().After(deadline) {
			return nil, errNoLeader()
		}
		select {
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func errNoLeader() error {
	return status.Error(codes.Unavailable, "the control plane has no leader now: too few servers can reach each other; running workloads go on, changes must wait")
}

// forwardTo makes one try. begun is false only if the leader certainly did not
// begin the call.
func (s *Server) forwardTo(ctx context.Context, leader peerRef, caller identity.ID, method string, body []byte) (answer *redoubtv1.ForwardResponse, begun bool, err error) {
	conn, err := s.peers.conn(leader)
	if err != nil {
		return nil, false, err
	}
	ctx, span := s.traceForward(ctx, method)
	defer func() { endCall(span, err) }()
	answer, err = redoubtv1.NewPeerServiceClient(conn).Forward(tracing.Outgoing(ctx), &redoubtv1.ForwardRequest{
		Caller: caller.String(), Method: method, Request: body,
	})
	if err == nil {
		return answer, true, nil
	}
	switch status.Code(err) {
	case codes.FailedPrecondition, codes.PermissionDenied, codes.Unauthenticated:
		// The peer refused before it began: not the leader any more, or not
		// yet aware of this server.
		return nil, false, err
	case codes.Unavailable:
		// A read may be repeated; a write whose connection broke may not.
		return nil, !readOnly[method], err
	}
	return nil, true, err
}

// readOnly calls may be made twice.
var readOnly = map[string]bool{
	fleetService + "PlanWorkload": true, fleetService + "GetWorkload": true,
	fleetService + "ListWorkloads": true, fleetService + "ExplainWorkload": true,
	fleetService + "ListNodes": true, fleetService + "GetNode": true,
	fleetService + "ListSites": true, fleetService + "ListServers": true,
}

// Forward serves a call that another server authenticated. The caller's rights
// are judged here, from this server's own state: a server's identity grants
// none of them.
func (s *peerAPI) Forward(ctx context.Context, req *redoubtv1.ForwardRequest) (*redoubtv1.ForwardResponse, error) {
	if !s.consensus.IsLeader() {
		return nil, status.Error(codes.FailedPrecondition, "not the leader")
	}
	caller, err := identity.Parse(req.GetCaller())
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "forward: caller: %v", err)
	}
	if r, ok := rules[req.GetMethod()]; !ok || !r.leader || caller.Kind() != r.kind {
		return nil, status.Errorf(codes.InvalidArgument, "%s of %s is not a call to forward", req.GetMethod(), caller)
	}
	input, _, err := methodTypes(req.GetMethod())
	if err != nil {
		return nil, status.Error(codes.Unimplemented, err.Error())
	}
	in := input.New().Interface()
	if err := proto.Unmarshal(req.GetRequest(), in); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "forward %s: %v", short(req.GetMethod()), err)
	}
	ctx, span := s.traceCall(ctx, req.GetMethod())
	out, err := s.serveLocally(ctx, caller, req.GetMethod(), in)
	endCall(span, err)
	if err != nil {
		st, merr := proto.Marshal(status.Convert(toStatus(err)).Proto())
		if merr != nil {
			return nil, err
		}
		return &redoubtv1.ForwardResponse{Status: st}, nil
	}
	body, err := proto.Marshal(out)
	if err != nil {
		return nil, status.Errorf(codes.Internal, "encode the answer of %s: %v", short(req.GetMethod()), err)
	}
	return &redoubtv1.ForwardResponse{Response: body}, nil
}

// serveLocally authorises caller and runs the method's handler on this server.
func (s *Server) serveLocally(ctx context.Context, caller identity.ID, method string, request proto.Message) (proto.Message, error) {
	if err := authorize(s.bindings(), caller, method, request); err != nil {
		return nil, err
	}
	if err := s.refuseUnknown(method, request); err != nil {
		return nil, err
	}
	for _, m := range redoubtv1.FleetService_ServiceDesc.Methods {
		if fleetService+m.MethodName != method {
			continue
		}
		decode := func(in any) error {
			proto.Merge(in.(proto.Message), request)
			return nil
		}
		out, err := m.Handler(s.fleetAPI, withCaller(ctx, caller), decode, nil)
		if err != nil {
			return nil, toStatus(err)
		}
		return out.(proto.Message), nil
	}
	return nil, status.Errorf(codes.Unimplemented, "%s is not a unary call of the fleet API", method)
}

// methodTypes looks the request and response types of a full method name up.
func methodTypes(method string) (input, output protoreflect.MessageType, err error) {
	name := protoreflect.FullName(method[1:])
	for i := len(name) - 1; i >= 0; i-- {
		if name[i] == '/' {
			name = name[:i] + "." + name[i+1:]
			break
		}
	}
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(name)
	if err != nil {
		return nil, nil, fmt.Errorf("no method %s", method)
	}
	md, ok := d.(protoreflect.MethodDescriptor)
	if !ok {
		return nil, nil, fmt.Errorf("%s is not a method", method)
	}
	in, err1 := protoregistry.GlobalTypes.FindMessageByName(md.Input().FullName())
	out, err2 := protoregistry.GlobalTypes.FindMessageByName(md.Output().FullName())
	return in, out, errors.Join(err1, err2)
}

var _ grpc.UnaryServerInterceptor = (*Server)(nil).unaryAuthorizer
