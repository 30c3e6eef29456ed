package gossip

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"redoubt.dev/redoubt/isolation"
)

var key = bytes.Repeat([]byte{7}, 32)

type member struct {
	*Pool
	mu        sync.Mutex
	hints     []Hint
	conflicts []Conflict
	stop      func()
}

func (m *member) has(k Kind, node isolation.NodeID) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for _, h := range m.hints {
		if h.Kind == k && h.Node == node {
			n++
		}
	}
	return n
}

func (m *member) forget() { m.mu.Lock(); m.hints = nil; m.mu.Unlock() }

func nodeName(i int) isolation.NodeID { return isolation.NodeID(fmt.Sprintf("n%d", i)) }

func (w *web) join(t *testing.T, i int, name isolation.NodeID, keys [][]byte, peers ...int) *member {
	t.Helper()
	m := &member{}
	h := w.host(i)
	var list []string
	for _, p := range peers {
		list = append(list, fmt.Sprintf("10.0.0.%d:7453", p))
	}
	p, err := New(Config{Node: name, Site: "oslo", Bind: "10.0.0.1:7453", Transport: h, Peers: func() []string { return list },
		OnHint:     func(h Hint) { m.mu.Lock(); m.hints = append(m.hints, h); m.mu.Unlock() },
		OnConflict: func(c Conflict) { m.mu.Lock(); m.conflicts = append(m.conflicts, c); m.mu.Unlock() },
		Log:        slog.New(slog.NewTextHandler(io.Discard, nil))}, keys)
	if err != nil {
		t.Fatal(err)
	}
	m.Pool = p
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := p.Run(ctx); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}()
	m.stop = sync.OnceFunc(func() { cancel(); <-done })
	return m
}

func all(n int) (out []int) {
	for i := 1; i <= n; i++ {
		out = append(out, i)
	}
	return out
}

func TestPoolOverALossyNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 5
		w := newWeb(1)
		w.loss = 0.1
		var ms []*member
		for i := 1; i <= n; i++ {
			ms = append(ms, w.join(t, i, nodeName(i), [][]byte{key}, all(n)...))
		}
		defer func() {
			for _, m := range ms {
				m.stop()
			}
			time.Sleep(time.Minute) // memberlist's own stragglers
		}()
		time.Sleep(30 * time.Second)
		for i, m := range ms {
			if got := m.Members(); len(got) != n {
				t.Fatalf("n%d sees %v", i+1, got)
			}
		}

		// A changed generation is heard by all.
		if err := ms[0].SetDigest(Digest{Generation: 9, Classes: ClassSet(0).With(isolation.ClassSandbox), KVM: isolation.KVMParavirtual}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		for i, m := range ms[1:] {
			if m.has(Changed, "n1") == 0 {
				t.Errorf("n%d did not hear of the change", i+2)
			}
		}
		m := ms[1]
		m.mu.Lock()
		last := m.hints[len(m.hints)-1]
		m.mu.Unlock()
		if d := last.Digest; d.Generation != 9 || !d.Classes.Has(isolation.ClassSandbox) || d.KVM != isolation.KVMParavirtual {
			t.Errorf("heard %+v", d)
		}

		// A death is suspected within seconds.
		for _, m := range ms {
			m.forget()
		}
		w.mu.Lock()
		w.cut = func(a, b string) bool { return strings.HasPrefix(a, "10.0.0.5:") || strings.HasPrefix(b, "10.0.0.5:") }
		w.mu.Unlock()
		began := time.Now()
		for ms[0].has(Suspect, "n5") == 0 && time.Since(began) < time.Minute {
			time.Sleep(100 * time.Millisecond)
		}
		if d := time.Since(began); d > 6*time.Second {
			t.Errorf("suspected after %s", d)
		} else {
			t.Logf("suspected after %s", d)
		}

		// The cut heals.
		w.mu.Lock()
		w.cut = nil
		w.mu.Unlock()
		time.Sleep(40 * time.Second)
		if ms[0].has(Alive, "n5") == 0 || len(ms[4].Members()) != n {
			t.Errorf("not together again: n5 sees %v", ms[4].Members())
		}

		// Who leaves in good order is not suspected, where its word of that
		// arrives: it is datagrams, so a lossy network may lose it.
		w.mu.Lock()
		w.loss = 0
		w.mu.Unlock()
		time.Sleep(5 * time.Second)
		ms[1].forget()
		ms[3].stop()
		time.Sleep(20 * time.Second)
		if ms[1].has(Suspect, "n4") != 0 {
			t.Error("a member that left was suspected")
		}
	})
}

func TestKeysRotateWithoutACut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		second := bytes.Repeat([]byte{8}, 32)
		w := newWeb(2)
		a := w.join(t, 1, "n1", [][]byte{key}, 2)
		b := w.join(t, 2, "n2", [][]byte{key}, 1)
		stranger := w.join(t, 3, "n3", [][]byte{bytes.Repeat([]byte{9}, 32)}, 1, 2)
		late := w.join(t, 4, "n4", nil, 1)
		defer func() { a.stop(); b.stop(); stranger.stop(); late.stop(); time.Sleep(time.Minute) }()
		time.Sleep(10 * time.Second)
		want := []isolation.NodeID{"n1", "n2"}
		if got := a.Members(); !slices.Equal(got, want) {
			t.Fatalf("members %v", got)
		}
		for _, step := range [][][]byte{{key, second}, {second, key}, {second}} {
			for _, m := range []*member{a, b} {
				if err := m.SetKeys(step); err != nil {
					t.Fatal(err)
				}
				time.Sleep(5 * time.Second)
			}
			if a.has(Suspect, "n2")+b.has(Suspect, "n1") != 0 {
				t.Fatal("a member was lost by a change of keys")
			}
		}
		if err := late.SetKeys([][]byte{second}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		if got := b.Members(); !slices.Equal(got, append(want, "n4")) {
			t.Fatalf("members %v: the late one joins with the key, the stranger never", got)
		}
		if err := a.SetKeys([][]byte{{1, 2}}); err == nil || strings.Contains(err.Error(), "\x01") {
			t.Errorf("a short key: %v", err)
		}
	})
}

func TestAnotherNodesNameIsFlagged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWeb(3)
		a := w.join(t, 1, "n1", [][]byte{key}, 2)
		b := w.join(t, 2, "n2", [][]byte{key}, 1)
		double := w.join(t, 3, "n2", [][]byte{key}, 1)
		liar := w.join(t, 4, "n4", [][]byte{key}, 1)
		forged, err := Digest{Node: "n1", Generation: 99}.Encode()
		if err != nil {
			t.Fatal(err)
		}
		liar.Pool.mu.Lock()
		liar.meta = forged
		liar.Pool.mu.Unlock()
		liar.update <- struct{}{}
		defer func() { a.stop(); b.stop(); double.stop(); liar.stop(); time.Sleep(time.Minute) }()
		time.Sleep(20 * time.Second)
		a.mu.Lock()
		defer a.mu.Unlock()
		seen := map[isolation.NodeID]bool{}
		for _, c := range a.conflicts {
			seen[c.Node] = true
		}
		if !seen["n2"] || !seen["n4"] {
			t.Errorf("flagged: %v", a.conflicts)
		}
		for _, h := range a.hints {
			if h.Digest.Generation == 99 {
				t.Error("a forged digest became a hint")
			}
		}
	})
}

func TestPoolOnLoopback(t *testing.T) {
	var addrs []string
	for range 3 {
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
	alive := make(chan Hint, 100)
	var pools []*Pool
	for i, a := range addrs {
		p, err := New(Config{Node: nodeName(i), Site: "oslo", Bind: a, Peers: func() []string { return addrs },
			OnHint: func(h Hint) { alive <- h }, Log: slog.New(slog.NewTextHandler(io.Discard, nil))}, [][]byte{key})
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
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if len(pools[0].Members()) == 3 && len(pools[2].Members()) == 3 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("members: %v %v", pools[0].Members(), pools[2].Members())
		}
	}
}

func TestDigestFitsWhateverTheNode(t *testing.T) {
	d := Digest{Node: isolation.NodeID(strings.Repeat("n", 253)), Generation: ^uint64(0), KVM: isolation.KVMUsable, Load: 1000}
	for _, c := range isolation.Classes() {
		d.Classes = d.Classes.With(c)
	}
	b, err := d.Encode()
	if err != nil || len(b) > MaxDigest {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	if got, err := DecodeDigest(b); err != nil || got != d {
		t.Fatalf("round trip: %+v, %v", got, err)
	}
	d.Node = isolation.NodeID(strings.Repeat("n", 600))
	if _, err := d.Encode(); err == nil {
		t.Error("a digest of more than 512 bytes was encoded")
	}
}

func FuzzDecodeDigest(f *testing.F) {
	b, _ := Digest{Node: "n1", Generation: 3, Classes: 6, KVM: isolation.KVMUsable, Load: 5}.Encode()
	f.Add(b)
	f.Add([]byte{})
	f.Add([]byte{present, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := DecodeDigest(b)
		if err != nil {
			return
		}
		if d.Node == "" || d.Load > 1000 || d.KVM > isolation.KVMUsable || d.Classes >= 1<<5 {
			t.Fatalf("out of range: %+v", d)
		}
		again, err := d.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if d2, err := DecodeDigest(again); err != nil || d2 != d {
			t.Fatalf("round trip of %+v: %+v, %v", d, d2, err)
		}
	})
}
