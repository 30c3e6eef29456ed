package server

import (
	"encoding/binary"

	"golang.org/x/net/http2"
)

// frames follows one direction of an HTTP/2 connection, in whatever pieces it
// comes. It judges nothing: what is malformed gRPC refuses.
type frames struct {
	skip int // of the preface, which only clients send
	head [9]byte
	have int // of head
	left int // of the payload
	pad  int // padding at the payload's end; -1: its length has not come yet
	at   frame
}

// frame is the one that is being read.
type frame struct {
	kind   http2.FrameType
	flags  http2.Flags
	stream uint32
	value  uint32 // the last four bytes of the payload so far: of a WINDOW_UPDATE, its increment
}

// feed hands over what p has of each frame: first its head, with size 0, then
// its payload in parts. data is the part without padding, size with it; last is
// set when nothing of the frame is to come.
func (f *frames) feed(p []byte, hand func(at frame, data []byte, size int, last bool)) {
	n := min(f.skip, len(p))
	f.skip, p = f.skip-n, p[n:]
	for len(p) > 0 {
		if f.have < len(f.head) {
			n := copy(f.head[f.have:], p)
			f.have, p = f.have+n, p[n:]
			if f.have < len(f.head) {
				return
			}
			f.left, f.pad = int(f.head[0])<<16|int(f.head[1])<<8|int(f.head[2]), 0
			f.at = frame{kind: http2.FrameType(f.head[3]), flags: http2.Flags(f.head[4]), stream: binary.BigEndian.Uint32(f.head[5:]) & (1<<31 - 1)}
			if f.at.kind == http2.FrameData && f.at.flags.Has(http2.FlagDataPadded) {
				f.pad = -1
			}
			if f.left == 0 {
				f.have = 0
			}
			hand(f.at, nil, 0, f.left == 0)
			continue
		}
		part := p[:min(f.left, len(p))]
		f.left, p = f.left-len(part), p[len(part):]
		data := part
		if f.pad < 0 {
			f.pad, data = int(part[0]), part[1:]
		}
		if cut := f.pad - f.left; cut > 0 {
			data = data[:max(0, len(data)-cut)]
		}
		if f.at.kind == http2.FrameWindowUpdate {
			for _, b := range data {
				f.at.value = f.at.value<<8 | uint32(b)
			}
		}
		if f.left == 0 {
			f.have = 0
		}
		hand(f.at, data, len(part), f.left == 0)
	}
}
