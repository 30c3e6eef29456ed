package gossip

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
)

// TestAMemberThatInventsNodesFillsNoMemory: names are learned so fast and so
// many, and what is remembered of them is bounded.
func TestAMemberThatInventsNodesFillsNoMemory(t *testing.T) {
	p, err := New(Config{Node: "n1", OnHint: func(Hint) {}, Log: slog.New(slog.DiscardHandler)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	d := delegate{p}
	node := func(name, digestOf string) *memberlist.Node {
		meta, err := Digest{Node: nodeName(0), Generation: 1}.Encode()
		if err != nil {
			t.Fatal(err)
		}
		meta = bytes.Replace(meta, []byte("n0"), []byte(digestOf), 1)
		meta[2] = byte(len(digestOf))
		return &memberlist.Node{Name: name, Meta: meta, Addr: net.IPv4(10, 0, 0, 1)}
	}
	taken := 0
	for i := range 5 * maxMembers {
		name := fmt.Sprint("invented-", i)
		n := node(name, name)
		if d.NotifyAlive(n) == nil {
			taken++
			d.NotifyJoin(n)
			if i%2 == 0 {
				d.NotifyLeave(n) // and says that it is dead
			}
		}
		_ = d.NotifyAlive(node(name+"-liar", "n9"))
	}
	// The bucket fills while the test runs.
	if taken < maxMembers || taken > 2*maxMembers {
		t.Errorf("%d of %d invented nodes were taken in", taken, 5*maxMembers)
	}
	if len(p.alive) > maxMembers || len(p.heard) > 2*maxMembers || len(p.flagged) > maxMembers {
		t.Errorf("%d alive, %d heard, %d flagged", len(p.alive), len(p.heard), len(p.flagged))
	}
	if p.alive["invented-1"] == "" {
		t.Fatal("the first is not known")
	}
	if err := d.NotifyAlive(node("invented-1", "invented-1")); err != nil {
		t.Errorf("one that is there is refused: %v", err)
	}
}

// TestAFloodLeavesThePoolItsMembers: strangers flood a member's port with packets
// and with streams that announce megabytes; its memory stays, and so do its
// neighbours.
func TestAFloodLeavesThePoolItsMembers(t *testing.T) {
	var addrs []string
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addrs = append(addrs, l.Addr().String())
		l.Close()
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	var pools []*Pool
	for i, a := range addrs {
		p, err := New(Config{Node: nodeName(i), Site: "oslo", Bind: a, Peers: func() []string { return addrs },
			OnHint: func(Hint) {}, Log: slog.New(slog.NewTextHandler(io.Discard, nil))}, [][]byte{key})
		if err != nil {
			t.Fatal(err)
		}
		pools = append(pools, p)
		wg.Go(func() {
			if err := p.Run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	together := func() bool { return len(pools[0].Members()) == 2 && len(pools[1].Members()) == 2 }
	for deadline := time.Now().Add(20 * time.Second); !together(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the two do not find each other")
		}
	}
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc >> 20
	}
	before := heap()
	udp, err := net.Dial("udp", addrs[0])
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	// The label is no secret: what comes behind it must be read to be refused.
	label := append([]byte{244, byte(len("redoubt/oslo"))}, "redoubt/oslo"...)
	packet := append(bytes.Clone(label), bytes.Repeat([]byte{1}, 1000)...)
	for range 50_000 {
		_, _ = udp.Write(packet)
	}
	stream := binary.BigEndian.AppendUint32(append(bytes.Clone(label), 10), 20<<20-100)
	closed := make(chan bool, 64)
	for i := range 64 {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 5, 0, byte(i+1))}}
		c, err := d.Dial("tcp", addrs[0])
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		wg.Go(func() {
			_ = c.SetDeadline(time.Now().Add(15 * time.Second))
			_, err := c.Write(stream)
			for junk := make([]byte, 1<<20); err == nil; {
				_, err = c.Write(junk)
			}
			closed <- true
		})
	}
	for range 20 {
		if grown := int64(heap()) - int64(before); grown > 200 {
			t.Fatalf("the heap grew by %d MiB", grown)
		}
		time.Sleep(10 * time.Millisecond)
	}
	for range 64 {
		select {
		case <-closed:
		case <-time.After(20 * time.Second):
			t.Fatal("a stream of a stranger is read without end")
		}
	}
	time.Sleep(4 * time.Second) // a death would be known by then
	if !together() {
		t.Errorf("after the flood: %v and %v", pools[0].Members(), pools[1].Members())
	}
}

// TestTheLimitsPageNamesThePoolsLimits: the page says the numbers in force.
func TestTheLimitsPageNamesThePoolsLimits(t *testing.T) {
	page, err := os.ReadFile("../../docs/limits.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []string{
		fmt.Sprintf("| members | %d |", maxMembers), fmt.Sprintf("| new names | %d a second, %d at once |", namesPerSecond, maxMembers),
		fmt.Sprintf("| packets a second | %d in all, %d from one address", packetsPerSecond, packetsPerSecondEach),
		fmt.Sprintf("| streams that others have opened | %d, from one address %d |", maxStreams, maxStreamsEach),
		fmt.Sprintf("| what one stream says | %d MiB |", maxStreamBytes>>20), fmt.Sprintf("| a digest | %d bytes |", MaxDigest),
	} {
		if !bytes.Contains(page, []byte(row)) {
			t.Errorf("docs/limits.md lacks the row %q", row)
		}
	}
}
