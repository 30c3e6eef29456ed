package ca_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"redoubt.dev/redoubt/identity"
	"redoubt.dev/redoubt/identity/ca"
)

var td = spiffeid.RequireTrustDomainFromString("fleet.test")

func node(t *testing.T) identity.ID {
	id, err := identity.NodeID(td, "n1")
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func create(t *testing.T) (*ca.Authority, *x509bundle.Bundle) {
	t.Helper()
	a, err := ca.Create(t.TempDir(), td)
	if err != nil {
		t.Fatal(err)
	}
	return a, x509bundle.FromX509Authorities(td, []*x509.Certificate{a.Certificate()})
}

func request(t *testing.T, key crypto.Signer, tmpl *x509.CertificateRequest) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestAuthorityIsStoredOnceAndPrivately(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	if _, err := ca.Load(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("load of nothing: %v", err)
	}
	a, err := ca.Create(dir, td)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ca.Create(dir, td); !errors.Is(err, ca.ErrExists) {
		t.Fatalf("second create: %v", err)
	}
	b, err := ca.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !a.Certificate().Equal(b.Certificate()) || a.Pin() != b.Pin() || b.TrustDomain() != td || !strings.HasPrefix(a.Pin(), "sha256:") {
		t.Fatalf("loaded %s of %s", b.Pin(), b.TrustDomain())
	}
	c := a.Certificate()
	if !c.IsCA || !c.MaxPathLenZero || len(c.URIs) != 1 || c.URIs[0].String() != "spiffe://fleet.test" || c.NotAfter.Before(time.Now().AddDate(9, 11, 0)) {
		t.Fatalf("certificate: CA %v, URIs %v, until %s", c.IsCA, c.URIs, c.NotAfter)
	}
	path := filepath.Join(dir, "authority.pem")
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode of the key file: %v, %v", info.Mode(), err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ca.Load(dir); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Fatalf("an open key file: %v", err)
	}
	if err := os.WriteFile(path, []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ca.Load(dir); err == nil || !strings.Contains(err.Error(), "is damaged") {
		t.Fatalf("a damaged file: %v", err)
	}
	if _, err := ca.Create(dir, td); !errors.Is(err, ca.ErrExists) {
		t.Fatalf("a damaged authority was replaced: %v", err)
	}
}

func TestSignsForOthersOnlyWhileInTheBundle(t *testing.T) {
	a, trust := create(t)
	_, others := create(t)
	key, _ := identity.NewKey()
	csr := request(t, key, &x509.CertificateRequest{})
	if _, err := a.SignSVID(csr, node(t), time.Hour); !errors.Is(err, identity.ErrNotTrusted) {
		t.Fatalf("before activation: %v", err)
	}
	server, _ := identity.ServerID(td, "s1")
	if _, err := a.SignServer(key.Public(), server, time.Hour); err != nil {
		t.Fatalf("own SVID before activation: %v", err)
	}
	if err := a.Activate(others); !errors.Is(err, identity.ErrNotTrusted) || a.Active() {
		t.Fatalf("activated by another's bundle: %v", err)
	}
	if err := a.Activate(trust); err != nil {
		t.Fatal(err)
	}
	if _, err := a.SignSVID(csr, node(t), time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := a.Activate(others); err == nil {
		t.Fatal("stayed active after it left the bundle")
	}
	if _, err := a.SignSVID(csr, node(t), time.Hour); !errors.Is(err, identity.ErrNotTrusted) {
		t.Fatalf("after it left the bundle: %v", err)
	}
}

func TestRequestGivesOnlyItsKey(t *testing.T) {
	a, trust := create(t)
	if err := a.Activate(trust); err != nil {
		t.Fatal(err)
	}
	key, _ := identity.NewKey()
	evil, _ := url.Parse("spiffe://fleet.test/server/s1")
	caFlag := pkix.Extension{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}}
	csr := request(t, key, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "root"}, URIs: []*url.URL{evil}, DNSNames: []string{"example.org"},
		EmailAddresses: []string{"a@example.org"}, ExtraExtensions: []pkix.Extension{caFlag},
	})
	chain, err := a.SignSVID(csr, node(t), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	leaf := chain[0]
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != "spiffe://fleet.test/node/n1" || len(leaf.DNSNames)+len(leaf.EmailAddresses)+len(leaf.IPAddresses) != 0 ||
		leaf.IsCA || leaf.Subject.CommonName != "" || leaf.KeyUsage != x509.KeyUsageDigitalSignature {
		t.Fatalf("leaf has URIs %v, DNS %v, CA %v, subject %v, usage %v", leaf.URIs, leaf.DNSNames, leaf.IsCA, leaf.Subject, leaf.KeyUsage)
	}
	if _, _, err := x509svid.Verify(chain, trust); err != nil {
		t.Fatal(err)
	}
	if begin := time.Since(leaf.NotBefore); begin < identity.Backdate || begin > identity.Backdate+10*time.Second {
		t.Fatalf("begins %s ago", begin)
	}
	if life := identity.Lifetime(leaf); life != time.Hour {
		t.Fatalf("lifetime is %s", life)
	}
}

func TestBadRequestsAreRefused(t *testing.T) {
	a, trust := create(t)
	if err := a.Activate(trust); err != nil {
		t.Fatal(err)
	}
	p256, _ := identity.NewKey()
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	p521, _ := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	r2048, _ := rsa.GenerateKey(rand.Reader, 2048)
	sign := func(csr []byte) error { _, err := a.SignSVID(csr, node(t), time.Hour); return err }

	for name, key := range map[string]crypto.Signer{"P-256": p256, "P-384": p384, "Ed25519": ed, "RSA 2048": r2048} {
		if err := sign(request(t, key, &x509.CertificateRequest{})); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	good := request(t, p256, &x509.CertificateRequest{})
	forged := append([]byte(nil), good...)
	forged[len(forged)-1] ^= 1
	for name, csr := range map[string][]byte{
		"P-521": request(t, p521, &x509.CertificateRequest{}), "forged signature": forged, "empty": nil, "cut": good[:len(good)/2],
	} {
		if err := sign(csr); !errors.Is(err, ca.ErrRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
	far, _ := identity.NodeID(spiffeid.RequireTrustDomainFromString("elsewhere.test"), "n1")
	for name, c := range map[string]struct {
		id  identity.ID
		ttl time.Duration
	}{"foreign id": {far, time.Hour}, "zero id": {identity.ID{}, time.Hour}, "no lifetime": {node(t), 0}} {
		if _, err := a.SignSVID(good, c.id, c.ttl); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
	chain, err := a.SignSVID(good, node(t), 100*365*24*time.Hour)
	if err != nil || chain[0].NotAfter.After(a.Certificate().NotAfter) {
		t.Errorf("an SVID outlives its authority: %v", err)
	}
}
