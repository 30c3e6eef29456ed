package server

import (
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

func TestPlain(t *testing.T) {
	for _, tt := range []struct {
		text string
		most int
		want string
	}{
		{"", 10, ""},
		{"memory limit 64 MiB reached", 100, "memory limit 64 MiB reached"},
		{"Oslo ✓ 日本", 100, "Oslo ✓ 日本"},
		{"a\x1b[2Jb\r\nc\td\x00\x7f", 100, "a [2Jb  c d  "},
		{"c1 \u009b31m", 100, "c1  31m"},
		{"ltr \u202egnp.exe", 100, "ltr  gnp.exe"},
		{"l\u2028p\u2029", 100, "l p "},
		{"1234567890", 10, "1234567890"},
		{"12345678901", 10, "1234567…"},
		{"日本日本日本", 10, "日本…"},
		{strings.Repeat("\x9b", 20), 10, "       …"},
	} {
		if got := plain(tt.text, tt.most); got != tt.want || !utf8.ValidString(got) || len(got) > tt.most {
			t.Errorf("plain(%q, %d) is %q of %d bytes, want %q", tt.text, tt.most, got, len(got), tt.want)
		}
	}
}

// eachText visits every text of m and of the messages that it holds, but for
// those that are compared with what the fleet knows, and refused where they
// differ.
func eachText(m protoreflect.Message, do func(protoreflect.Message, protoreflect.FieldDescriptor)) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case slices.Contains([]protoreflect.Name{"uid", "node", "site", "cluster_id"}, f.Name()) || f.IsMap():
		case f.IsList() && f.Kind() == protoreflect.MessageKind:
			for j := range m.Get(f).List().Len() {
				eachText(m.Get(f).List().Get(j).Message(), do)
			}
		case f.Kind() == protoreflect.MessageKind && m.Has(f):
			eachText(m.Mutable(f).Message(), do)
		case f.Kind() == protoreflect.StringKind:
			do(m, f)
		}
	}
}

// TestWhatAnAgentSaysIsPlain: every text in what an agent says of its instances
// and of itself is short and free of control characters before it goes on.
func TestWhatAnAgentSaysIsPlain(t *testing.T) {
	foul := "\x1b]0;gotcha\x07" + strings.Repeat("x", 10<<10)
	fill := func(m proto.Message) {
		eachText(m.ProtoReflect(), func(m protoreflect.Message, f protoreflect.FieldDescriptor) {
			m.Set(f, protoreflect.ValueOfString(foul))
		})
	}
	check := func(m proto.Message) {
		t.Helper()
		n := 0
		eachText(m.ProtoReflect(), func(m protoreflect.Message, f protoreflect.FieldDescriptor) {
			n++
			if s := m.Get(f).String(); len(s) > maxWords || strings.ContainsAny(s, "\x1b\x07") || s == "" {
				t.Errorf("%s goes on with %d bytes: %.20q", f.FullName(), len(s), s)
			}
		})
		if n == 0 {
			t.Errorf("%s has no text: the test looks in the wrong place", m.ProtoReflect().Descriptor().FullName())
		}
	}
	hello, st := &redoubtv1.Hello{}, &redoubtv1.InstanceStatus{Uid: "u"}
	report := &redoubtv1.Report{
		Node: "oslo-1", Site: "oslo", Host: &redoubtv1.HostFacts{Kvm: &redoubtv1.Kvm{}}, Findings: []*redoubtv1.Finding{{}},
		Labels: map[string]string{"rack": foul, "r\x1bk": "r1"},
	}
	for _, m := range []proto.Message{hello, st, report} {
		fill(m)
	}
	cleanHello(hello)
	s, a := &session{node: "oslo-1", site: "oslo", statuses: map[string]*redoubtv1.InstanceStatus{}}, &agentAPI{}
	for _, m := range []*redoubtv1.SessionRequest{
		{Message: &redoubtv1.SessionRequest_Status{Status: &redoubtv1.StatusBatch{Statuses: []*redoubtv1.InstanceStatus{st}}}},
		{Message: &redoubtv1.SessionRequest_Report{Report: &redoubtv1.ReportUpdate{Report: report}}},
	} {
		if err := a.take(s, m); err != nil {
			t.Fatal(err)
		}
	}
	check(hello)
	check(s.statuses["u"])
	check(s.report)
	if l := s.report.GetLabels(); len(l) != 1 || len(l["rack"]) > maxWords || strings.Contains(l["rack"], "\x1b") {
		t.Errorf("labels go on as %.100q", l)
	}

	err := agentError(&redoubtv1.AttachError{Code: uint32(codes.NotFound), Message: foul})
	if text := status.Convert(err).Message(); status.Code(err) != codes.NotFound || len(text) > maxWords || strings.ContainsAny(text, "\x1b\x07") {
		t.Errorf("an error of a stream goes on as %.100q", err)
	}
	for _, code := range []uint32{0, 17, 1 << 31} {
		if err := agentError(&redoubtv1.AttachError{Code: code}); status.Code(err) != codes.Unknown {
			t.Errorf("an end with code %d is %v", code, err)
		}
	}
}
