package cli

import (
	"bytes"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/timestamppb"
)

func TestAPrefixerHoldsNoLineForEver(t *testing.T) {
	var b bytes.Buffer
	p := &lineWriter{w: &b, prefix: true}
	for range 80 {
		if err := p.write("a-1", bytes.Repeat([]byte("x"), 1024), nil); err != nil {
			t.Fatal(err)
		}
	}
	if b.Len() < 64<<10 {
		t.Errorf("%d bytes were written of a line of 80 KiB", b.Len())
	}
	if err := p.write("b-1", []byte("one\ntwo"), nil); err != nil {
		t.Fatal(err)
	}
	if err := p.flush(); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), "b-1  one\n") || !strings.HasSuffix(b.String(), "b-1  two\n") {
		t.Errorf("it ends in %q", b.String()[b.Len()-40:])
	}
}

func TestLinesBearNamesAndTimes(t *testing.T) {
	at := func(s int) *timestamppb.Timestamp { return &timestamppb.Timestamp{Seconds: 1_700_000_000 + int64(s)} }
	var b bytes.Buffer
	p := &lineWriter{w: &b, times: true, colour: true}
	for _, w := range []struct {
		instance, data string
		at             *timestamppb.Timestamp
	}{{"a-1", "one\ntw", at(0)}, {"a-1", "o\n", at(1)}, {"b-1", "three\n", at(2)}, {"a-1", "four\npart", at(3)}, {"b-1", "unknown\n", nil}} {
		if err := p.write(w.instance, []byte(w.data), w.at); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.cut("a-1"); err != nil {
		t.Fatal(err)
	}
	// A line has the time of its beginning. Names come with the second instance.
	want := "2023-11-14T22:13:20Z  one\n2023-11-14T22:13:20Z  two\n" +
		"\x1b[33mb-1\x1b[0m  2023-11-14T22:13:22Z  three\n" +
		"\x1b[36ma-1\x1b[0m  2023-11-14T22:13:23Z  four\n" +
		"\x1b[33mb-1\x1b[0m  -                     unknown\n" +
		"\x1b[36ma-1\x1b[0m  2023-11-14T22:13:23Z  part\n"
	if b.String() != want {
		t.Errorf("it prints\n%s, want\n%s", b.String(), want)
	}
}
