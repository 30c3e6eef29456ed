package server

import (
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// refuseUnknown refuses a request that changes something, or that asks what a
// change would do, if it says more than this build knows: left out, a limit that
// a newer command asked for would silently not hold. The server that serves the
// call judges, never one that only forwards it.
func (s *Server) refuseUnknown(method string, request proto.Message) error {
	if request == nil || readOnly[method] && method != fleetService+"PlanWorkload" {
		return nil
	}
	in, number, found := unknownField(request.ProtoReflect())
	if !found {
		return nil
	}
	return status.Errorf(codes.FailedPrecondition,
		"server %s (%s) is older than what asks it: it knows no field %d of %s and would leave it out; upgrade the servers first (`redoubt operator raft list` shows their versions), or do without what is new",
		s.cfg.ID, s.cfg.Version, number, in)
}

// unknownField finds a field that is not in this build's schema, at any depth.
func unknownField(m protoreflect.Message) (in protoreflect.FullName, number protowire.Number, found bool) {
	if raw := m.GetUnknown(); len(raw) > 0 {
		number, _, _ = protowire.ConsumeTag(raw)
		return m.Descriptor().FullName(), number, true
	}
	look := func(v protoreflect.Value) bool {
		in, number, found = unknownField(v.Message())
		return !found
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap():
			if f.MapValue().Message() != nil {
				v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool { return look(v) })
			}
		case f.Message() == nil:
		case f.IsList():
			for i := 0; i < v.List().Len() && !found; i++ {
				look(v.List().Get(i))
			}
		default:
			look(v)
		}
		return !found
	})
	return in, number, found
}
