package identity_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"

	"redoubt.dev/redoubt/identity"
)

// refusals collects what a server refused and why.
type refusals struct {
	mu   sync.Mutex
	errs []error
}

func (r *refusals) add(_ net.Addr, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.errs = append(r.errs, err)
}

// text waits for the first refusal: the client may know before the server says.
func (r *refusals) text() string {
	for range 500 {
		r.mu.Lock()
		err := errors.Join(r.errs...)
		r.mu.Unlock()
		if err != nil {
			return err.Error()
		}
		time.Sleep(10 * time.Millisecond)
	}
	return "nothing was refused"
}

// expired returns an SVID that has expired by the time it is returned.
func expired(t *testing.T, sign func(ttl time.Duration) *x509svid.SVID) *x509svid.SVID {
	s := sign(time.Second) // certificates carry whole seconds
	time.Sleep(time.Until(s.Certificates[0].NotAfter) + 10*time.Millisecond)
	return s
}

// clientFor presents own without looking at it first, so that it is the other
// side that must refuse it.
func clientFor(own *x509svid.SVID, trusted identity.Source) *tls.Config {
	c := identity.TLSClientConfig(trusted, identity.AuthorizeServers(td))
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &tls.Certificate{Certificate: [][]byte{own.Certificates[0].Raw}, PrivateKey: own.PrivateKey}, nil
	}
	c.NextProtos = []string{"h2"}
	return c
}

func TestServersRefuseBadPeersWithTheReason(t *testing.T) {
	a, trust := authority(t, td)
	rogue, _ := authority(t, td)
	far, _ := authority(t, foreign)
	server := identity.NewMemorySource(sign(t, a, "spiffe://fleet.test/server/s1", time.Hour), trust)
	nodeSVID := func(ttl time.Duration) *x509svid.SVID { return sign(t, a, "spiffe://fleet.test/node/n1", ttl) }

	for _, c := range []struct {
		name, reason string
		svid         *x509svid.SVID // nil: none
	}{
		{"expired", "certificate has expired", expired(t, nodeSVID)},
		{"foreign trust domain", `trust domain "elsewhere.test" is not trusted here`, sign(t, far, "spiffe://elsewhere.test/node/n1", time.Hour)},
		{"unknown authority of the same trust domain", "signed by unknown authority", sign(t, rogue, "spiffe://fleet.test/node/n1", time.Hour)},
		{"wrong kind", "spiffe://fleet.test/user/u1 is a user; here only these may connect: node", sign(t, a, "spiffe://fleet.test/user/u1", time.Hour)},
		{"workload", "is a workload", sign(t, a, "spiffe://fleet.test/ns/default/workload/w", time.Hour)},
		{"no certificate", "client didn't provide a certificate", nil},
		{"good", "", nodeSVID(time.Hour)},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Run("grpc", func(t *testing.T) {
				l, refused, called := listen(t), &refusals{}, make(chan identity.ID, 1)
				serve(t, l, server, identity.AuthorizeKinds(td, identity.KindNode), &health{check: func(ctx context.Context) error {
					id, err := identity.PeerID(ctx)
					called <- id
					return err
				}}, identity.OnRefused(refused.add))
				cfg := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}
				if c.svid != nil {
					cfg = clientFor(c.svid, server)
				}
				cc, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(cfg)))
				if err != nil {
					t.Fatal(err)
				}
				defer cc.Close()
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				_, err = healthpb.NewHealthClient(cc).Check(ctx, &healthpb.HealthCheckRequest{})
				judge(t, err, c.reason, refused.text)
				select {
				case id := <-called:
					if c.reason != "" || id != mustID(t, "spiffe://fleet.test/node/n1") {
						t.Fatalf("the service was reached by %v", id)
					}
				default:
					if c.reason == "" {
						t.Fatal("the service was not reached")
					}
				}
			})
			t.Run("raft", func(t *testing.T) {
				l := listen(t)
				defer l.Close()
				result := make(chan error, 1)
				go func() {
					raw, err := l.Accept()
					if err != nil {
						result <- err
						return
					}
					conn, err := identity.Server(context.Background(), raw, server, identity.AuthorizeKinds(td, identity.KindNode))
					if err == nil {
						io.Copy(conn, conn)
						conn.Close()
					}
					result <- err
				}()
				cfg := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}
				if c.svid != nil {
					cfg = clientFor(c.svid, server)
				}
				conn, err := tls.Dial("tcp", l.Addr().String(), cfg)
				if err == nil {
					conn.SetDeadline(time.Now().Add(10 * time.Second))
					if _, err = conn.Write([]byte("x")); err == nil {
						_, err = io.ReadFull(conn, make([]byte, 1))
					}
					conn.Close()
				}
				serverErr := <-result
				judge(t, err, c.reason, func() string { return serverErr.Error() })
			})
		})
	}
}

func judge(t *testing.T, err error, reason string, said func() string) {
	t.Helper()
	switch {
	case reason == "" && err != nil:
		t.Fatalf("a good peer was refused: %v", err)
	case reason != "" && err == nil:
		t.Fatal("a bad peer was let in")
	case reason != "" && !strings.Contains(said(), reason):
		t.Fatalf("refused because %q, want %q", said(), reason)
	}
}

func TestClientsRefuseBadServersWithTheReason(t *testing.T) {
	a, trust := authority(t, td)
	rogue, rogueTrust := authority(t, td)
	far, farTrust := authority(t, foreign)
	client := identity.NewMemorySource(sign(t, a, "spiffe://fleet.test/node/n1", time.Hour), trust)
	for _, c := range []struct {
		name, reason string
		src          *identity.MemorySource
	}{
		{"unknown authority", "unknown authority", identity.NewMemorySource(sign(t, rogue, "spiffe://fleet.test/server/s1", time.Hour), rogueTrust)},
		{"foreign", "not trusted here", identity.NewMemorySource(sign(t, far, "spiffe://elsewhere.test/server/s1", time.Hour), farTrust)},
		{"a node that plays server", "is a node; here only these may connect: server", identity.NewMemorySource(sign(t, a, "spiffe://fleet.test/node/n2", time.Hour), trust)},
		{"good", "", identity.NewMemorySource(sign(t, a, "spiffe://fleet.test/server/s1", time.Hour), trust)},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := listen(t)
			if c.src.SetBundle(trust) != nil { // the false server takes our client
				t.Fatal("no bundle")
			}
			serve(t, l, c.src, identity.AuthorizeKinds(td, identity.KindNode), &health{})
			conn, err := identity.NewConn(l.Addr().String(), client, identity.AuthorizeServers(td))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			var p peer.Peer
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			_, err = healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.Peer(&p))
			judge(t, err, c.reason, func() string { return err.Error() })
			if err == nil {
				info, err := identity.PeerOf(&p)
				if err != nil || info.ID.String() != "spiffe://fleet.test/server/s1" || !info.DrainAt.Before(info.NotAfter) {
					t.Fatalf("peer is %+v, %v", info, err)
				}
			}
		})
	}
}

func TestOwnExpiryIsSaidBeforeDialling(t *testing.T) {
	a, trust := authority(t, td)
	src := identity.NewMemorySource(expired(t, func(ttl time.Duration) *x509svid.SVID {
		return sign(t, a, "spiffe://fleet.test/node/n1", ttl)
	}), trust)
	here, there := net.Pipe()
	defer there.Close()
	_, err := identity.Client(t.Context(), here, src, identity.AuthorizeServers(td))
	if !errors.Is(err, identity.ErrExpired) || !strings.Contains(err.Error(), "own SVID spiffe://fleet.test/node/n1 ended at") {
		t.Fatalf("error is %v", err)
	}
	if _, err := there.Read(make([]byte, 1)); err == nil {
		t.Fatal("the connection was left open")
	}
}

func TestTLS12IsRefused(t *testing.T) {
	a, trust := authority(t, td)
	server := identity.NewMemorySource(sign(t, a, "spiffe://fleet.test/server/s1", time.Hour), trust)
	node := sign(t, a, "spiffe://fleet.test/node/n1", time.Hour)
	l, refused := listen(t), &refusals{}
	serve(t, l, server, identity.AuthorizeKinds(td, identity.KindNode), &health{}, identity.OnRefused(refused.add))
	cfg := clientFor(node, server)
	cfg.MinVersion, cfg.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	cc, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(cfg)))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	_, err = healthpb.NewHealthClient(cc).Check(t.Context(), &healthpb.HealthCheckRequest{})
	judge(t, err, "TLS 1.3 is needed", refused.text)
}

// A client that collects tickets and tries to resume meets a full handshake
// every time, on the gRPC credentials as on the plain configuration.
func TestSessionsAreNeverResumed(t *testing.T) {
	a, trust := authority(t, td)
	server := identity.NewMemorySource(sign(t, a, "spiffe://fleet.test/server/s1", time.Hour), trust)
	node := sign(t, a, "spiffe://fleet.test/node/n1", time.Hour)
	allow := identity.AuthorizeKinds(td, identity.KindNode)

	// The control shows that this client does resume where a server lets it.
	open := identity.TLSServerConfig(server, allow)
	open.SessionTicketsDisabled = false
	for name, c := range map[string]struct {
		handshake func(net.Conn) (net.Conn, error)
		resumes   bool
	}{
		"control": {func(raw net.Conn) (net.Conn, error) { c := tls.Server(raw, open); return c, c.Handshake() }, true},
		"config": {func() func(net.Conn) (net.Conn, error) {
			cfg := identity.TLSServerConfig(server, allow)
			return func(raw net.Conn) (net.Conn, error) { c := tls.Server(raw, cfg); return c, c.Handshake() }
		}(), false},
		"raft": {func(raw net.Conn) (net.Conn, error) {
			return identity.Server(context.Background(), raw, server, allow)
		}, false},
		"grpc": {func() func(net.Conn) (net.Conn, error) {
			creds := identity.ServerCredentials(server, allow)
			return func(raw net.Conn) (net.Conn, error) { c, _, err := creds.ServerHandshake(raw); return c, err }
		}(), false},
	} {
		t.Run(name, func(t *testing.T) {
			l := listen(t)
			defer l.Close()
			go func() {
				for {
					raw, err := l.Accept()
					if err != nil {
						return
					}
					go func() {
						conn, err := c.handshake(raw)
						if err != nil {
							return
						}
						conn.Write([]byte("x"))
						io.Copy(io.Discard, conn)
						conn.Close()
					}()
				}
			}()
			cfg := clientFor(node, server)
			cfg.SessionTicketsDisabled = false
			cfg.ClientSessionCache = tls.NewLRUClientSessionCache(8)
			cfg.ServerName = "server"
			resumed := false
			for range 3 {
				conn, err := tls.Dial("tcp", l.Addr().String(), cfg)
				if err != nil {
					t.Fatal(err)
				}
				conn.SetDeadline(time.Now().Add(10 * time.Second))
				if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil { // takes the ticket in
					t.Fatal(err)
				}
				resumed = resumed || conn.ConnectionState().DidResume
				conn.Close()
			}
			if resumed != c.resumes {
				t.Fatalf("resumed: %v", resumed)
			}
		})
	}
}

func TestConnectionEndsWithTheShorterSVID(t *testing.T) {
	a, trust := authority(t, td)
	server := identity.NewMemorySource(sign(t, a, "spiffe://fleet.test/server/s1", time.Hour), trust)
	node := identity.NewMemorySource(sign(t, a, "spiffe://fleet.test/node/n1", 2*time.Second), trust)
	l := listen(t)
	defer l.Close()
	type ended struct {
		at  time.Time
		err error
	}
	serverEnd := make(chan ended, 1)
	go func() {
		raw, err := l.Accept()
		if err != nil {
			return
		}
		conn, err := identity.Server(context.Background(), raw, server, identity.AuthorizeKinds(td, identity.KindNode))
		if err == nil {
			_, err = io.Copy(conn, conn)
			if err == nil {
				err = os.ErrClosed
			}
		}
		serverEnd <- ended{time.Now(), err}
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := identity.Client(t.Context(), raw, node, identity.AuthorizeServers(td))
	if err != nil {
		t.Fatal(err)
	}
	notAfter := conn.Peer().NotAfter
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	conn.SetReadDeadline(notAfter.Add(5 * time.Second))
	_, err = conn.Read(make([]byte, 1)) // idle until the end
	at := time.Now()
	if at.Before(notAfter) || at.After(notAfter.Add(time.Second)) {
		t.Fatalf("the client's side ended %s after the SVID", at.Sub(notAfter))
	}
	if err == nil {
		t.Fatal("a read after the end succeeded")
	}
	if _, err := conn.Write([]byte("x")); err == nil {
		t.Fatal("a write after the end succeeded")
	}
	end := <-serverEnd
	if end.at.After(notAfter.Add(time.Second)) {
		t.Fatalf("the server's side ended %s after the SVID: %v", end.at.Sub(notAfter), end.err)
	}
}
