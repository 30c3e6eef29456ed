package fleet

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	"redoubt.dev/redoubt/isolation"
)

// Diff lists the paths of the fields in which two workloads differ, sorted.
// Defaults count as stated: spelling one out is no change. A list that changed
// its length is named as a whole.
func Diff(a, b Workload) []string {
	var d []string
	diffMessage(&d, "", a.Proto().ProtoReflect(), b.Proto().ProtoReflect())
	slices.Sort(d)
	return d
}

func diffMessage(d *[]string, path string, a, b protoreflect.Message) {
	fields := a.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		at := f.JSONName()
		if path != "" {
			at = path + "." + at
		}
		va, vb := a.Get(f), b.Get(f)
		switch {
		case f.IsMap():
			diffMap(d, at, va.Map(), vb.Map())
		case f.IsList():
			diffList(d, at, f, va.List(), vb.List())
		case a.Has(f) != b.Has(f):
			*d = append(*d, at)
		case f.Message() != nil:
			if a.Has(f) {
				diffMessage(d, at, va.Message(), vb.Message())
			}
		case !va.Equal(vb):
			*d = append(*d, at)
		}
	}
}

func diffMap(d *[]string, path string, a, b protoreflect.Map) {
	a.Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
		if !b.Has(k) || !b.Get(k).Equal(v) {
			*d = append(*d, path+"."+k.String())
		}
		return true
	})
	b.Range(func(k protoreflect.MapKey, _ protoreflect.Value) bool {
		if !a.Has(k) {
			*d = append(*d, path+"."+k.String())
		}
		return true
	})
}

func diffList(d *[]string, path string, f protoreflect.FieldDescriptor, a, b protoreflect.List) {
	if a.Len() != b.Len() {
		*d = append(*d, path)
		return
	}
	for i := range a.Len() {
		at := fmt.Sprintf("%s[%d]", path, i)
		if f.Message() != nil {
			diffMessage(d, at, a.Get(i).Message(), b.Get(i).Message())
		} else if !a.Get(i).Equal(b.Get(i)) {
			*d = append(*d, at)
		}
	}
}

// inPlace are the fields that a running instance need not be replaced for:
// they say how many, where and when, not what runs. A floor that was raised is
// judged by the class that the instance has, see placement.
var inPlace = []string{"labels.", "isolation.", "placement.", "job.", "job", "labels"}

// NeedsRestart lists the changed fields that a running instance of old cannot
// take on: it is replaced by one of new. Of the disconnect rules the agent reads
// stopAfter from its assignment (set if and only if replace is Safe); the leader
// reads the others from the workload.
func NeedsRestart(old, new Workload) []string {
	return slices.DeleteFunc(Diff(old, new), func(path string) bool {
		return path == "disconnect.lostAfter" || path == "disconnect.replace" || slices.ContainsFunc(inPlace, func(p string) bool {
			return path == p || strings.HasSuffix(p, ".") && strings.HasPrefix(path, p)
		})
	})
}

// Allows tells whether the workload's floor lets an instance of class c run.
func (w Workload) Allows(c isolation.Class) bool {
	return c != isolation.ClassUnknown && c >= w.Isolation.Floor
}
