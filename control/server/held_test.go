package server

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// talk writes frames as one side says them.
func talk(say func(*http2.Framer)) []byte {
	var b bytes.Buffer
	say(http2.NewFramer(&b, nil))
	return b.Bytes()
}

func prefix(size int) []byte { return binary.BigEndian.AppendUint32([]byte{0}, uint32(size)) }

// TestWhatACallerHoldsIsCounted: byte for byte, in whatever pieces it comes, and
// all of it is given back.
func TestWhatACallerHoldsIsCounted(t *testing.T) {
	a := newAdmission()
	ann := caller(t, "spiffe://t.redoubt/user/ann")
	u := a.of(ann, time.Now())
	w := newWire(a, u)
	fromClient := func(p []byte) {
		t.Helper()
		for len(p) > 0 {
			n := 1 + rand.N(min(len(p), 700))
			if err := w.read(p[:n]); err != nil {
				t.Fatal(err)
			}
			p = p[n:]
		}
	}
	fromServer := func(p []byte) {
		for len(p) > 0 {
			n := 1 + rand.N(min(len(p), 700))
			w.wrote(p[:n])
			p = p[n:]
		}
	}
	holds := func(unread, untaken, streams int64) {
		t.Helper()
		if u.held.unread.Load() != unread || a.unread.Load() != unread || u.held.untaken.Load() != untaken || u.held.streams.Load() != streams {
			t.Fatalf("unread %d (of all %d), untaken %d, streams %d; want %d, %d, %d", u.held.unread.Load(), a.unread.Load(), u.held.untaken.Load(), u.held.streams.Load(), unread, untaken, streams)
		}
	}
	open := func(fr *http2.Framer, id uint32) {
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: make([]byte, 100), EndHeaders: true})
	}
	fromClient([]byte(http2.ClientPreface))
	fromClient(talk(func(fr *http2.Framer) {
		_ = fr.WriteSettings()
		open(fr, 1)
		_ = fr.WriteData(1, false, append(prefix(100_000), make([]byte, 10_000)...))
		open(fr, 3)
		_ = fr.WriteDataPadded(3, false, append(prefix(20), make([]byte, 20)...), make([]byte, 200))
	}))
	// A stream's padding counts against its window, until that is given back.
	holds(10_005+226, 0, 2)
	w.begins()
	w.begins()
	// The server reads, and gives room for the whole message at once: what is
	// there of it is in memory all the same.
	fromServer(talk(func(fr *http2.Framer) {
		_ = fr.WriteSettings()
		_ = fr.WriteWindowUpdate(1, 100_000)
		_ = fr.WriteWindowUpdate(3, 226)
		_ = fr.WriteWindowUpdate(0, 1<<20)
	}))
	holds(10_005, 0, 2)
	fromClient(talk(func(fr *http2.Framer) {
		for range 9 {
			_ = fr.WriteData(1, false, make([]byte, 10_000))
		}
	}))
	holds(5, 0, 2) // it is whole; five bytes are not given back
	if err := w.owe(40_000_000, false); err != nil {
		t.Fatal(err)
	}
	if err := w.owe(40_000_000, false); err == nil || !strings.Contains(err.Error(), "wait for this caller to read them") {
		t.Errorf("an answer too much: %v", err)
	}
	if err := w.owe(1000, true); err != nil {
		t.Errorf("a small message of a stream: %v", err)
	}
	holds(5, 40_000_000, 2)
	fromServer(talk(func(fr *http2.Framer) {
		_ = fr.WriteData(1, false, make([]byte, 11_000)) // 1000 of them the stream's
	}))
	holds(5, 39_990_000, 2)
	w.ends()
	// The caller gives its answer up: nobody waits for any more.
	fromClient(talk(func(fr *http2.Framer) { _ = fr.WriteRSTStream(1, http2.ErrCodeCancel) }))
	holds(0, 0, 1)
	fromServer(talk(func(fr *http2.Framer) {
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: make([]byte, 10), EndHeaders: true, EndStream: true})
	}))
	holds(0, 0, 0)
	fromClient(talk(func(fr *http2.Framer) {
		_ = fr.WriteData(3, false, make([]byte, 10_000)) // gRPC throws it away
		open(fr, 5)
		_ = fr.WriteData(5, false, append(prefix(1<<20), make([]byte, 10_000)...))
	}))
	holds(10_005, 0, 1)
	w.close()
	holds(0, 0, 0)

	// A whole window in each of all the streams that one may have is no reason
	// to be cut off; a message more in each of some is.
	w = newWire(a, u)
	w.in.skip = 0
	var err error
	full := talk(func(fr *http2.Framer) {
		open(fr, 1)
		_ = fr.WriteData(1, false, append(prefix(streamWindow), make([]byte, streamWindow-5)...))
	})
	more := talk(func(fr *http2.Framer) { _ = fr.WriteData(1, false, make([]byte, 1<<20)) })
	say := func(id uint32, p []byte, heads ...int) error {
		for _, at := range heads {
			binary.BigEndian.PutUint32(p[at+5:], id)
		}
		return w.read(p)
	}
	for id := uint32(1); id < 2*maxCallsEach && err == nil; id += 2 {
		err = say(id, full, 0, 9+100)
	}
	if err != nil {
		t.Fatalf("who is only slow is cut off: %v", err)
	}
	for id := uint32(1); id < 400 && err == nil; id += 2 {
		err = say(id, more, 0)
	}
	if err == nil || !strings.Contains(err.Error(), "user ann has sent 32") {
		t.Errorf("with %d MiB: %v", u.held.unread.Load()>>20, err)
	}
}

// TestWhoHoldsMostGoesFirst: where all callers together leave no room, who sends
// little is not the one who is cut off.
func TestWhoHoldsMostGoesFirst(t *testing.T) {
	a := newAdmission()
	var wires []*wire
	for _, name := range []string{"ann", "bob", "cid", "dan"} {
		id := caller(t, "spiffe://t.redoubt/user/"+name)
		wires = append(wires, newWire(a, a.of(id, time.Now())))
	}
	for i, mib := range []int64{300, 310, 305, 108} {
		if err := a.hold(wires[i].caller, mib<<20); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.hold(wires[3].caller, 2<<20); err != nil {
		t.Errorf("the smallest is refused: %v", err)
	}
	if err := a.hold(wires[1].caller, 1<<20); err == nil || !strings.Contains(err.Error(), "user bob has most") {
		t.Errorf("the largest is told %v", err)
	}
}

// TestTheCodecLooksBeforeItReads: a message that would become large is refused
// before it is made.
func TestTheCodecLooksBeforeItReads(t *testing.T) {
	c := newCodec()
	for _, tt := range []struct {
		name string
		m    proto.Message
		want string
	}{
		{"an ordinary workload", &redoubtv1.ApplyWorkloadRequest{Workload: &redoubtv1.Workload{Name: "web", Containers: []*redoubtv1.Container{{Args: make([]string, 10_000)}}}}, ""},
		{"empty texts", &redoubtv1.ApplyWorkloadRequest{Workload: &redoubtv1.Workload{Containers: []*redoubtv1.Container{{Args: make([]string, 30_000)}}}}, "more than 20000 parts"},
		{"a full session's statuses", &redoubtv1.SessionRequest{Message: &redoubtv1.SessionRequest_Status{Status: &redoubtv1.StatusBatch{Statuses: many(10_000, &redoubtv1.InstanceStatus{Uid: strings.Repeat("u", 36)})}}}, ""},
		{"statuses of nothing", &redoubtv1.SessionRequest{Message: &redoubtv1.SessionRequest_Status{Status: &redoubtv1.StatusBatch{Statuses: many(300_000, &redoubtv1.InstanceStatus{})}}}, "more than 200000 parts"},
		{"two megabytes", &redoubtv1.ApplyWorkloadRequest{CommandId: strings.Repeat("x", 2<<20)}, "at most 1114112 are taken"},
		{"a megabyte for a command's input", &redoubtv1.ExecRequest{Message: &redoubtv1.ExecRequest_Stdin{Stdin: make([]byte, 1<<20)}}, "at most 262144 are taken"},
	} {
		data, err := proto.Marshal(tt.m)
		if err != nil {
			t.Fatal(err)
		}
		err = c.Unmarshal(mem.BufferSlice{mem.SliceBuffer(data)}, tt.m.ProtoReflect().New().Interface())
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

func many[T any](n int, v T) (out []T) {
	for range n {
		out = append(out, v)
	}
	return out
}

// FuzzFrames: whatever a caller sends, in whatever pieces, what it holds is never
// less than nothing, never more than it sent, and given back at the end.
func FuzzFrames(f *testing.F) {
	f.Add(talk(func(fr *http2.Framer) {
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: make([]byte, 10), EndHeaders: true})
		_ = fr.WriteDataPadded(1, false, append(prefix(30), make([]byte, 20)...), make([]byte, 9))
		_ = fr.WriteRSTStream(1, http2.ErrCodeCancel)
	}), []byte{0, 0, 4, 8, 0, 0, 0, 0, 1, 0, 0, 1, 0}, uint16(3))
	f.Add([]byte{0, 0, 0, 0, 0x8, 0, 0, 0, 1}, []byte{}, uint16(1))
	id := caller(f, "spiffe://t.redoubt/user/ann")
	f.Fuzz(func(t *testing.T, client, server []byte, piece uint16) {
		a := newAdmission()
		u := a.of(id, time.Now())
		w := newWire(a, u)
		w.in.skip = 0
		sent := 0
		for len(client) > 0 || len(server) > 0 {
			n := min(len(client), int(piece%97)+1)
			sent += n
			_ = w.read(client[:n])
			m := min(len(server), int(piece%89)+1)
			w.wrote(server[:m])
			client, server = client[n:], server[m:]
			if held := u.held.unread.Load(); held < 0 || held > int64(sent) || held != a.unread.Load() {
				t.Fatalf("%d bytes are held of %d that were sent, of all %d", held, sent, a.unread.Load())
			}
		}
		w.close()
		if u.held.unread.Load() != 0 || u.held.streams.Load() != 0 || u.held.untaken.Load() != 0 {
			t.Fatalf("not given back: %d, %d, %d", u.held.unread.Load(), u.held.streams.Load(), u.held.untaken.Load())
		}
	})
}
