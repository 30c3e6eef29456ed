package consensus

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"net"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"redoubt.dev/redoubt/identity"
	"redoubt.dev/redoubt/identity/ca"
)

func svid(t *testing.T, a *ca.Authority, id string) *x509svid.SVID {
	t.Helper()
	sid, err := spiffeid.FromString(id)
	if err != nil {
		t.Fatal(err)
	}
	who, err := identity.FromSPIFFE(sid)
	if err != nil {
		t.Fatal(err)
	}
	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	chain, err := a.SignServer(key.Public(), who, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	s, err := identity.NewSVID(key, chain)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func trusted(t *testing.T, td spiffeid.TrustDomain) (*ca.Authority, *x509bundle.Bundle) {
	t.Helper()
	a, err := ca.Create(t.TempDir(), td)
	if err != nil {
		t.Fatal(err)
	}
	b := x509bundle.New(td)
	b.AddX509Authority(a.Certificate())
	if err := a.Activate(b); err != nil {
		t.Fatal(err)
	}
	return a, b
}

func TestOnlyServersOfTheFleetSpeakRaft(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("fleet.test")
	a, bundle := trusted(t, td)
	mine := identity.NewMemorySource(svid(t, a, "spiffe://fleet.test/server/s1"), bundle)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	layer := NewLayer(ln, MutualTLS(mine, identity.AuthorizeServers(td)), nil)
	foreign, _ := trusted(t, td)
	for id, c := range map[string]struct {
		by    *ca.Authority
		heard bool
	}{
		"spiffe://fleet.test/server/s2": {a, true},
		"spiffe://fleet.test/server/s3": {foreign, false},
		"spiffe://fleet.test/node/n1":   {a, false},
		"spiffe://fleet.test/user/ann":  {a, false},
	} {
		got := make(chan error, 1)
		go func() {
			conn, err := layer.Accept()
			if err == nil {
				_, err = conn.Read(make([]byte, 1))
				conn.Close()
			}
			got <- err
		}()
		theirs := NewLayer(ln, MutualTLS(identity.NewMemorySource(anySVID(t, c.by, id), bundle), identity.AuthorizeServers(td)), nil)
		conn, err := theirs.Dial(raft.ServerAddress(ln.Addr().String()), 5*time.Second)
		if err == nil {
			// The dialler has finished its handshake before the server judges it.
			conn.Write([]byte("x"))
			if theirs.security.DrainAt(conn.(*layerConn).secure).IsZero() {
				t.Errorf("%s: its connection never drains", id)
			}
			defer conn.Close()
		}
		if err := <-got; (err == nil) != c.heard {
			t.Errorf("%s: heard %v, want %v (%v)", id, err == nil, c.heard, err)
		}
	}
	layer.Close()
	layer.wait()
}

// anySVID has the authority sign a server's or, by a request, anybody's.
func anySVID(t *testing.T, a *ca.Authority, id string) *x509svid.SVID {
	t.Helper()
	sid := spiffeid.RequireFromString(id)
	who, err := identity.FromSPIFFE(sid)
	if err != nil {
		t.Fatal(err)
	}
	if who.Kind() == identity.KindServer {
		return svid(t, a, id)
	}
	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	chain, err := a.SignSVID(request(t, key), who, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	s, err := identity.NewSVID(key, chain)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func request(t *testing.T, key crypto.Signer) []byte {
	t.Helper()
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}
