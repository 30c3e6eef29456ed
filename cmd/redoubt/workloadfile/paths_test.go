package workloadfile

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// allPaths adds the path of every field that a message can have.
func allPaths(path string, m proto.Message, into map[string]bool) {
	descend(path, m.ProtoReflect().Descriptor(), into)
}

func descend(path string, d protoreflect.MessageDescriptor, into map[string]bool) {
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		at := join(path, f.JSONName())
		into[at] = true
		if f.Message() != nil && !f.IsMap() {
			descend(at, f.Message(), into)
		}
	}
}

// setPaths removes those that are set.
func setPaths(path string, m proto.Message, from map[string]bool) {
	m.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		at := join(path, f.JSONName())
		delete(from, at)
		switch {
		case f.IsMap() || f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				setPaths(at, v.List().Get(i).Message().Interface(), from)
			}
		default:
			setPaths(at, v.Message().Interface(), from)
		}
		return true
	})
}
