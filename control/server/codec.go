package server

import (
	"context"
	"fmt"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the codec below is made of it
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

const (
	// maxRequest bounds what a user or node says in one message, bytes: a
	// workload is one command of the log at most. Sessions and servers have
	// maxMessage.
	maxRequest = 1<<20 + 64<<10
	// maxStreamed bounds a message of those that a stream has many of.
	maxStreamed = 256 << 10
	// maxElements bounds the messages and texts that one message is made of, and
	// maxElementsMore those of a session or server. Each costs some hundred
	// bytes once it is read, and two on the wire.
	maxElements, maxElementsMore = 20_000, 200_000
)

// mostOf is what a message of a kind may have.
func mostOf(m proto.Message) (bytes, elements int) {
	switch m.(type) {
	case *redoubtv1.SessionRequest, *redoubtv1.ForwardRequest, *redoubtv1.ObserveRequest, *redoubtv1.ProposeRequest:
		return maxMessage, maxElementsMore
	case *redoubtv1.ExecRequest, *redoubtv1.PortForwardRequest, *redoubtv1.AttachRequest:
		return maxStreamed, maxElements
	}
	return maxRequest, maxElements
}

// codec is gRPC's own, that looks at a message before it is made of it: of what
// is small on the wire a large one can be made.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2("proto")} }

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	bytes, elements := mostOf(m)
	if data.Len() > bytes {
		return fmt.Errorf("the message has %d bytes, at most %d are taken of this kind", data.Len(), bytes)
	}
	if data.Len() > elements { // an element has a byte at the least
		buf := data.MaterializeToBuffer(mem.DefaultBufferPool())
		defer buf.Free()
		if left := count(buf.ReadOnlyData(), m.ProtoReflect().Descriptor(), elements, 64); left < 0 {
			return fmt.Errorf("the message is made of more than %d parts", elements)
		}
	}
	return c.CodecV2.Unmarshal(data, v)
}

// count takes the parts of a message from left; below zero it ends.
func count(b []byte, d protoreflect.MessageDescriptor, left, depth int) int {
	for len(b) > 0 && left >= 0 && depth > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return left // it is no message: decoding says so
		}
		b = b[n:]
		if n = protowire.ConsumeFieldValue(number, kind, b); n < 0 {
			return left
		}
		field := d.Fields().ByNumber(number)
		if kind == protowire.BytesType {
			left--
			if value, _ := protowire.ConsumeBytes(b); field != nil && field.Message() != nil {
				left = count(value, field.Message(), left, depth-1)
			}
		}
		b = b[n:]
	}
	return left
}

// holdUnary counts a request until it is answered, and admits its answer.
func holdUnary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	w := wireOf(ctx)
	if w == nil {
		return handler(ctx, req)
	}
	w.begins()
	defer w.ends() // before the answer is given to gRPC
	size := sizeOf(req)
	defer func() { _ = w.admission.hold(w.caller, -size) }()
	if err := w.admission.hold(w.caller, size); err != nil {
		return nil, status.Error(codes.ResourceExhausted, err.Error())
	}
	answer, err := handler(ctx, req)
	if err == nil {
		err = w.owe(sizeOf(answer), false)
	}
	if err != nil {
		return nil, err
	}
	return answer, nil
}

// holdStream counts the message of a stream that is worked on, and admits each
// that goes to its caller.
func holdStream(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	w := wireOf(stream.Context())
	if w == nil {
		return handler(srv, stream)
	}
	w.begins()
	defer w.ends()
	held := &heldStream{ServerStream: stream, wire: w}
	defer func() { _ = held.holds(0) }()
	return handler(srv, held)
}

type heldStream struct {
	grpc.ServerStream
	wire *wire
	size atomic.Int64 // of the message that is worked on
}

// holds gives back what was held of the stream, and holds size.
func (s *heldStream) holds(size int64) error {
	return s.wire.admission.hold(s.wire.caller, size-s.size.Swap(size))
}

func (s *heldStream) RecvMsg(m any) error {
	_ = s.holds(0)
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	if err := s.holds(sizeOf(m)); err != nil {
		return status.Error(codes.ResourceExhausted, err.Error())
	}
	return nil
}

func (s *heldStream) SendMsg(m any) error {
	if err := s.wire.owe(sizeOf(m), true); err != nil {
		return err
	}
	return s.ServerStream.SendMsg(m)
}

func sizeOf(m any) int64 {
	if m, ok := m.(proto.Message); ok {
		return int64(proto.Size(m)) + 5 // gRPC's own prefix
	}
	return 0
}
