package consensus

import (
	"testing"
	"time"
)

// Every proposal asks whether the server lives on its reserve. It must not wait
// for the reserve's making, which may sync 32 MB.
func TestNobodyWaitsForTheReservesMaking(t *testing.T) {
	r := newReserve(t.TempDir(), 1<<20, quiet())
	r.mu.Lock() // as make holds it
	answered := make(chan bool, 1)
	go func() { answered <- r.inUse() }()
	select {
	case used := <-answered:
		if used {
			t.Error("a reserve that was never given back is in use")
		}
	case <-time.After(10 * time.Second):
		t.Error("who asks for the reserve waits for its making")
	}
	r.mu.Unlock()
	if !r.make() || r.inUse() || !r.give() || !r.inUse() || !r.make() || r.inUse() {
		t.Error("made, given back and made again, it does not say so")
	}
}
