package identity_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"redoubt.dev/redoubt/identity"
	"redoubt.dev/redoubt/identity/ca"
)

var (
	td      = spiffeid.RequireTrustDomainFromString("fleet.test")
	foreign = spiffeid.RequireTrustDomainFromString("elsewhere.test")
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// authority returns one that is active, and the bundle that holds it.
func authority(t testing.TB, td spiffeid.TrustDomain) (*ca.Authority, *x509bundle.Bundle) {
	t.Helper()
	a, err := ca.Create(t.TempDir(), td)
	if err != nil {
		t.Fatal(err)
	}
	b := x509bundle.FromX509Authorities(td, certificates(a))
	if err := a.Activate(b); err != nil {
		t.Fatal(err)
	}
	return a, b
}

func mustID(t testing.TB, s string) identity.ID {
	t.Helper()
	id, err := identity.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// sign returns a new SVID with a new key.
func sign(t testing.TB, a *ca.Authority, id string, ttl time.Duration) *x509svid.SVID {
	t.Helper()
	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr := newCSR(t, key)
	chain, err := a.SignSVID(csr, mustID(t, id), ttl)
	if err != nil {
		t.Fatal(err)
	}
	svid, err := identity.NewSVID(key, chain)
	if err != nil {
		t.Fatal(err)
	}
	return svid
}

// health answers Check with a status and notes who called; Watch sends until
// the caller goes away.
type health struct {
	healthpb.UnimplementedHealthServer
	check func(ctx context.Context) error
}

func (h *health) Check(ctx context.Context, _ *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	if h.check != nil {
		if err := h.check(ctx); err != nil {
			return nil, err
		}
	}
	return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_SERVING}, nil
}

func (h *health) Watch(_ *healthpb.HealthCheckRequest, s healthpb.Health_WatchServer) error {
	for {
		if err := s.Send(&healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_SERVING}); err != nil {
			return err
		}
		select {
		case <-s.Context().Done():
			return s.Context().Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// serve runs a gRPC server on l until the test ends.
func serve(t testing.TB, l net.Listener, src identity.Source, authorizer identity.Authorizer, h *health, opts ...identity.CredentialsOption) {
	t.Helper()
	s := grpc.NewServer(grpc.Creds(identity.ServerCredentials(src, authorizer, opts...)))
	healthpb.RegisterHealthServer(s, h)
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-done })
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}
func certificates(as ...*ca.Authority) []*x509.Certificate {
	var certs []*x509.Certificate
	for _, a := range as {
		certs = append(certs, a.Certificate())
	}
	return certs
}

func newCSR(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}
