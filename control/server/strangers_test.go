package server

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// TestStrangersHoldLittle: who has no certificate opens so many connections and
// no more, keeps none that it does not use, and says little.
func TestStrangersHoldLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Server{admission: newAdmission(), metrics: NewMetrics(), refusals: rate.NewLimiter(1, 20), log: slog.New(slog.DiscardHandler)}
		g := s.limitedServer(insecure.NewCredentials(), s.admission.enrol, forStrangers()...)
		redoubtv1.RegisterEnrollmentServiceServer(g, &enrollAPI{Server: s})
		l := bufconn.Listen(1 << 20)
		done := make(chan error)
		go func() { done <- g.Serve(l) }()
		defer func() { g.Stop(); <-done }()

		dial := func() (conn net.Conn, open bool) {
			conn, err := l.Dial()
			if err != nil {
				t.Fatal(err)
			}
			// The server speaks first, once the connection is admitted.
			_, err = io.ReadFull(conn, make([]byte, 9))
			return conn, err == nil
		}
		speak := func(conn net.Conn) {
			if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
				t.Fatal(err)
			}
			if err := http2.NewFramer(conn, nil).WriteSettings(); err != nil {
				t.Fatal(err)
			}
		}
		closed := func(conn net.Conn, within time.Duration) {
			t.Helper()
			_ = conn.SetReadDeadline(time.Now().Add(within))
			if _, err := io.Copy(io.Discard, conn); err != nil {
				t.Errorf("it is open after %s: %v", within, err)
			}
		}
		var held []net.Conn
		for i := range maxStrangersEach {
			conn, open := dial()
			if !open {
				t.Fatalf("connection %d is refused", i)
			}
			speak(conn)
			held = append(held, conn)
		}
		if _, open := dial(); open {
			t.Errorf("one address has more than %d connections", maxStrangersEach)
		}
		begun := time.Now()
		for _, conn := range held {
			closed(conn, 2*strangerIdle)
		}
		if took := time.Since(begun); took < strangerIdle || took > 2*strangerIdle {
			t.Errorf("idle connections are closed after %s", took)
		}

		client, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return l.Dial() }))
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		_, err = redoubtv1.NewEnrollmentServiceClient(client).EnrollNode(context.Background(), &redoubtv1.EnrollNodeRequest{Token: strings.Repeat("x", maxEnrolMessage)})
		if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "larger than max") {
			t.Errorf("a long message is answered with %v", err)
		}

		if conn, open := dial(); !open {
			t.Error("what was closed still counts")
		} else {
			conn.Close()
		}
	})
	a := newAdmission()
	for i := range maxStrangers {
		if err := a.meet(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 32)); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.meet(netip.MustParsePrefix("10.9.9.9/32")); err == nil {
		t.Error("many addresses together open any number of connections")
	}
	a.part(netip.MustParsePrefix("10.0.0.0/32"))
	if err := a.meet(netip.MustParsePrefix("10.9.9.9/32")); err != nil {
		t.Errorf("after one was closed: %v", err)
	}
}
