package server

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"redoubt.dev/redoubt/identity"
)

func caller(t testing.TB, text string) identity.ID {
	t.Helper()
	id, err := identity.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// TestAdmission: what one caller holds is bounded, costs no other, and comes
// back when it is let go.
func TestAdmission(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ann, bob, peer := caller(t, "spiffe://t.redoubt/user/ann"), caller(t, "spiffe://t.redoubt/user/bob"), caller(t, "spiffe://t.redoubt/server/s2")
		a := newAdmission()
		for i := range maxConnectionsEach {
			if err := a.connect(ann); err != nil {
				t.Fatalf("connection %d: %v", i, err)
			}
		}
		if err := a.connect(ann); err == nil || !strings.Contains(err.Error(), fmt.Sprint(maxConnectionsEach)) {
			t.Errorf("one connection too many: %v", err)
		}
		if err := a.connect(bob); err != nil {
			t.Errorf("another's connection: %v", err)
		}
		a.disconnect(ann)
		if err := a.connect(ann); err != nil {
			t.Errorf("after one was closed: %v", err)
		}
		for range maxConnectionsEach * 2 {
			if err := a.connect(peer); err != nil {
				t.Fatalf("a server's connection: %v", err)
			}
		}

		refused := func(err error, want string) {
			t.Helper()
			if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), want) {
				t.Errorf("refused with %v, want %q", err, want)
			}
		}
		for range callBurst {
			if err := a.begin(ann, false); err != nil {
				t.Fatal(err)
			}
			a.end(ann, false)
		}
		refused(a.begin(ann, false), "slow down")
		if err := a.begin(bob, false); err != nil {
			t.Errorf("another's call: %v", err)
		}
		time.Sleep(time.Second)
		for i := range callsPerSecond {
			if err := a.begin(ann, false); err != nil {
				t.Fatalf("call %d of the next second: %v", i, err)
			}
		}
		refused(a.begin(ann, false), "slow down")
		for n := callsPerSecond; n < maxCallsEach; n++ {
			time.Sleep(time.Second / callsPerSecond)
			if err := a.begin(ann, false); err != nil {
				t.Fatalf("open call %d: %v", n, err)
			}
		}
		time.Sleep(time.Minute)
		refused(a.begin(ann, false), "calls open")
		a.end(ann, false)
		if err := a.begin(ann, false); err != nil {
			t.Errorf("after one ended: %v", err)
		}

		if room("nodes", MaxNodes-1, MaxNodes) != nil {
			t.Error("no room where there is some")
		}
		refused(room("nodes", MaxNodes, MaxNodes), "the fleet holds 20000 nodes")
	})
}

// TestOneCallersStreamsLeaveRoomForOthers: and come back, once each.
func TestOneCallersStreamsLeaveRoomForOthers(t *testing.T) {
	ann, bob := caller(t, "spiffe://t.redoubt/user/ann"), caller(t, "spiffe://t.redoubt/user/bob")
	r := newRendezvous()
	var id string
	var w *waiter
	for i := range maxStreamsEach {
		var err error
		if id, w, err = r.expect(ann, "oslo-1"); err != nil {
			t.Fatalf("stream %d: %v", i, err)
		}
	}
	if _, _, err := r.expect(ann, "oslo-2"); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "user ann has 1536 streams") {
		t.Errorf("one stream too many: %v", err)
	}
	bobs, bobsWaiter, err := r.expect(bob, "oslo-1")
	if err != nil {
		t.Errorf("another's stream: %v", err)
	}
	r.release(id, w)
	r.release(id, w)
	if _, _, err := r.expect(ann, "oslo-1"); err != nil {
		t.Errorf("after one was released: %v", err)
	}
	if _, _, err := r.expect(ann, "oslo-1"); err == nil {
		t.Error("a stream that is released twice makes room for two")
	}
	r.release(bobs, bobsWaiter)
	if len(r.of) != 1 {
		t.Errorf("who has none is remembered: %v", r.of)
	}
}

// TestASessionIsReadNoFasterThanItsLimit: the flood waits at the agent.
func TestASessionIsReadNoFasterThanItsLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, size := range []int{10, 100 << 10} {
			p, begun, n := newPace(), time.Now(), 0
			for time.Since(begun) < 10*time.Second {
				if err := p.wait(context.Background(), size); err != nil {
					t.Fatal(err)
				}
				n++
			}
			if most := sessionMessageBurst + 10*sessionMessages; n > most+1 {
				t.Errorf("%d messages of %d bytes in ten seconds, at most %d", n, size, most)
			}
			if most := sessionByteBurst + 10*sessionBytes; n*size > most+size {
				t.Errorf("%d bytes in ten seconds, at most %d", n*size, most)
			}
		}
	})
}

// TestTheLimitsPageIsComplete: docs/limits.md says every number that is in force.
func TestTheLimitsPageIsComplete(t *testing.T) {
	page, err := os.ReadFile("../../docs/limits.md")
	if err != nil {
		t.Fatal(err)
	}
	mib := func(n int) string { return fmt.Sprintf("%d MiB", n>>20) }
	kib := func(n int) string { return fmt.Sprintf("%d KiB", n>>10) }
	seconds := func(d time.Duration) string { return fmt.Sprintf("%d s", d/time.Second) }
	for what, text := range map[string]string{
		"message to a server": mib(maxMessage), "answer of a server": mib(maxAnswer), "metadata of a call": kib(maxHeaders),
		"calls at once on one connection": fmt.Sprint(maxStreams), "connections to a server": fmt.Sprint(maxConnections),
		"connections of one node or user": fmt.Sprint(maxConnectionsEach), "connections being opened": fmt.Sprint(maxHandshakes),
		"from one address": fmt.Sprint(maxHandshakesEach), "kept for servers' addresses": fmt.Sprint(keptHandshakes),
		"connections being opened to enrolment": fmt.Sprint(maxEnrolHandshakes), "from one address to it": fmt.Sprint(maxEnrolHandshakesEach),
		"a handshake": seconds(handshakeWithin), "calls at once of one node or user": fmt.Sprint(maxCallsEach),
		"of them that are no streams":                   fmt.Sprint(maxUnaryEach),
		"sent by one node or user and not taken in yet": mib(maxUnread), "of all nodes and users": "1 GiB",
		"answers that wait for one node or user to read them": fmt.Sprintf("%s, or one; %d of them", mib(maxUntaken), maxUnanswered),
		"what a user or node says in one":                     fmt.Sprintf("1 MiB and 64 KiB, of %d parts; a session %s, of %d", maxElements, mib(maxMessage), maxElementsMore),
		"a message of exec, port-forward and their agents":    kib(maxStreamed),
		"calls a second of one node or user":                  fmt.Sprint(callsPerSecond), "burst of calls": fmt.Sprint(callBurst),
		"messages a second of a session": fmt.Sprint(sessionMessages), "bytes a second of a session": kib(sessionBytes),
		"connections without a certificate": fmt.Sprint(maxStrangers), "of them from one address": fmt.Sprint(maxStrangersEach),
		"message to enrolment": kib(maxEnrolMessage), "enrolments at once on one connection": fmt.Sprint(maxEnrolStreams),
		"a connection without a certificate, idle": seconds(strangerIdle), "the same, in all": seconds(strangerAge),
		"enrolments a second": fmt.Sprint(enrolmentsPerSecond), "servers": fmt.Sprint(MaxServers), "nodes": fmt.Sprint(MaxNodes),
		"workloads": fmt.Sprint(MaxWorkloads), "join tokens": fmt.Sprint(MaxTokens),
		"streams waiting or open on a server": fmt.Sprint(maxPendingStreams), "of them of one caller": fmt.Sprint(maxStreamsEach), "snapshots at a time": fmt.Sprint(maxSnapshots),
		"messages waiting for a slow agent": fmt.Sprint(sessionQueue), "statuses unacknowledged": fmt.Sprint(maxPendingStatuses),
		"report": kib(maxReport), "hints of a session": fmt.Sprint(maxHints),
	} {
		row := []byte("| " + what + " | " + text)
		if !bytes.Contains(page, row) {
			t.Errorf("docs/limits.md lacks the row %q", row)
		}
	}
}
