package server

import (
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// FuzzCodec: what is looked at first decodes as gRPC's own codec would, or is
// refused.
func FuzzCodec(f *testing.F) {
	seed, _ := proto.Marshal(&redoubtv1.SessionRequest{Message: &redoubtv1.SessionRequest_Hello{Hello: &redoubtv1.Hello{Node: "n"}}})
	f.Add(seed)
	f.Add([]byte{0x0a, 0x80})
	c := newCodec()
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, m := range []proto.Message{&redoubtv1.SessionRequest{}, &redoubtv1.ApplyWorkloadRequest{}, &redoubtv1.ObserveRequest{}} {
			count(data, m.ProtoReflect().Descriptor(), maxElements, 64)
			err, plain := c.Unmarshal(mem.BufferSlice{mem.SliceBuffer(data)}, m), proto.Unmarshal(data, m.ProtoReflect().New().Interface())
			if (err == nil) != (plain == nil) && len(data) < maxElements {
				t.Errorf("%v, and without the look %v", err, plain)
			}
		}
	})
}
