// Package ca is the embedded SPIFFE authority of one server.
//
// Each server makes its own key, which never leaves its directory; what other
// servers and nodes get is the certificate, through the replicated trust
// bundle. An authority signs for others only after it has seen its certificate
// in that bundle (Activate), because until then every peer would refuse what
// it signs.
//
// It decides nothing about who may have which identity: the caller does, and
// hands over the id. From a signing request it takes the public key and
// nothing else. It keeps no record and has no revocation: SVIDs are short.
//
// An Authority may be used from several goroutines. Its file is written once.
package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"redoubt.dev/redoubt/identity"
)

// Validity is how long an authority's certificate is valid.
const Validity = 10 * 365 * 24 * time.Hour

// file holds key and certificate together, so that one rename makes both.
const file = "authority.pem"

var (
	// ErrExists: there is an authority in the directory already.
	ErrExists = errors.New("there is an authority already")
	// ErrRequest: a signing request is refused; what wraps it says why.
	ErrRequest = errors.New("signing request refused")
)

// Authority signs SVIDs of one trust domain.
type Authority struct {
	td     spiffeid.TrustDomain
	key    crypto.Signer
	cert   *x509.Certificate
	active atomic.Bool
}

var _ identity.Issuer = (*Authority)(nil)

// Create makes a key and a certificate for it and stores them in dir. It never
// replaces an authority that is there: ErrExists.
func Create(dir string, td spiffeid.TrustDomain) (*Authority, error) {
	if td.IsZero() {
		return nil, errors.New("create authority: the trust domain is empty")
	}
	if err := identity.MakePrivateDir(dir); err != nil {
		return nil, fmt.Errorf("create authority: %w", err)
	}
	path := filepath.Join(dir, file)
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("create authority in %s: %w", dir, ErrExists)
	}
	key, err := identity.NewKey()
	if err != nil {
		return nil, fmt.Errorf("create authority: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, fmt.Errorf("create authority: %w", err)
	}
	now := time.Now()
	tmpl := &x509.Certificate{
		SerialNumber: serial,
		// The serial makes the subjects of a fleet's authorities differ, for
		// verifiers that look authorities up by subject.
		Subject:               pkix.Name{Organization: []string{"Redoubt"}, CommonName: "Redoubt authority", SerialNumber: serial.Text(16)},
		NotBefore:             now.Add(-identity.Backdate),
		NotAfter:              now.Add(Validity),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
		URIs:                  []*url.URL{td.ID().URL()},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("create authority: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("create authority: %w", err)
	}
	data := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	data = append(data, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	a, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("create authority: %w", err)
	}
	if err := identity.WriteFile(path, data); err != nil {
		return nil, fmt.Errorf("create authority: %w", err)
	}
	return a, nil
}

// Load reads the authority that Create stored in dir. The error wraps
// fs.ErrNotExist where there is none.
func Load(dir string) (*Authority, error) {
	path := filepath.Join(dir, file)
	data, err := identity.ReadPrivate(path)
	if err != nil {
		return nil, fmt.Errorf("load authority: %w", err)
	}
	a, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("load authority: %s is damaged: %w; restore it from a backup", path, err)
	}
	return a, nil
}

func parse(data []byte) (*Authority, error) {
	keyPEM, rest := pem.Decode(data)
	if keyPEM == nil || keyPEM.Type != "PRIVATE KEY" {
		return nil, errors.New("it holds no private key")
	}
	certPEM, _ := pem.Decode(rest)
	if certPEM == nil || certPEM.Type != "CERTIFICATE" {
		return nil, errors.New("it holds no certificate")
	}
	raw, err := x509.ParsePKCS8PrivateKey(keyPEM.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := raw.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("its key is a %T, not an ECDSA key", raw)
	}
	cert, err := x509.ParseCertificate(certPEM.Bytes)
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("its key and its certificate do not belong together")
	}
	if !cert.IsCA || len(cert.URIs) != 1 {
		return nil, errors.New("its certificate is not one of a SPIFFE authority")
	}
	td, err := spiffeid.TrustDomainFromURI(cert.URIs[0])
	if err != nil {
		return nil, err
	}
	return &Authority{td: td, key: key, cert: cert}, nil
}

// TrustDomain returns the trust domain that the authority signs for.
func (a *Authority) TrustDomain() spiffeid.TrustDomain { return a.td }

// Certificate returns the self-signed certificate, which belongs into the
// trust bundle. It must not be changed.
func (a *Authority) Certificate() *x509.Certificate { return a.cert }

// Pin returns Pin of the authority's certificate.
func (a *Authority) Pin() string { return Pin(a.cert) }

// Pin names an authority's key, as join tokens carry it: "sha256:" and the hash
// of the SubjectPublicKeyInfo in hex.
func Pin(cert *x509.Certificate) string { return identity.CertificatePin(cert) }

// Activate lets the authority sign for others if the replicated bundle b holds
// its certificate, and stops it if b does not: call it with each new bundle.
// It returns identity.ErrNotTrusted where the authority may not sign.
func (a *Authority) Activate(b *x509bundle.Bundle) error {
	ok := b != nil && b.TrustDomain() == a.td && b.HasX509Authority(a.cert)
	a.active.Store(ok)
	if !ok {
		return fmt.Errorf("activate authority %s: %w", a.Pin(), identity.ErrNotTrusted)
	}
	return nil
}

// Active says whether the authority signs for others.
func (a *Authority) Active() bool { return a.active.Load() }

// SignSVID returns the chain of an SVID for id with the key that csr (DER)
// proves possession of. Everything else that the request asks for is ignored.
// The SVID begins identity.Backdate before now and ends ttl from now, but never
// after the authority. Errors wrap ErrRequest where the request is at fault,
// and identity.ErrNotTrusted before Activate.
func (a *Authority) SignSVID(csr []byte, id identity.ID, ttl time.Duration) ([]*x509.Certificate, error) {
	if !a.Active() {
		return nil, fmt.Errorf("sign SVID for %s: %w", id, identity.ErrNotTrusted)
	}
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, fmt.Errorf("sign SVID for %s: %w: %w", id, ErrRequest, err)
	}
	if err := req.CheckSignature(); err != nil {
		return nil, fmt.Errorf("sign SVID for %s: %w: the requester does not hold the key: %w", id, ErrRequest, err)
	}
	return a.sign(req.PublicKey, id, ttl)
}

// SignServer implements identity.Issuer: it signs the own SVID of the server
// that owns the authority, also before Activate.
func (a *Authority) SignServer(pub crypto.PublicKey, id identity.ID, ttl time.Duration) ([]*x509.Certificate, error) {
	if id.Kind() != identity.KindServer {
		return nil, fmt.Errorf("sign own SVID: %q is not a server", id)
	}
	return a.sign(pub, id, ttl)
}

func (a *Authority) sign(pub crypto.PublicKey, id identity.ID, ttl time.Duration) ([]*x509.Certificate, error) {
	fail := func(err error) ([]*x509.Certificate, error) {
		return nil, fmt.Errorf("sign SVID for %s: %w", id, err)
	}
	switch {
	case id.IsZero():
		return nil, errors.New("sign SVID: the identity is empty")
	case id.TrustDomain() != a.td:
		return fail(fmt.Errorf("this authority is of trust domain %s", a.td.Name()))
	case ttl <= 0:
		return fail(fmt.Errorf("its lifetime is %s, it must be positive", ttl))
	}
	if err := checkKey(pub); err != nil {
		return fail(err)
	}
	now := time.Now()
	end := now.Add(ttl)
	if !now.Before(a.cert.NotAfter) {
		return fail(fmt.Errorf("the authority ended at %s: add a server with a new authority and remove this one", a.cert.NotAfter.UTC().Format(time.RFC3339)))
	}
	if end.After(a.cert.NotAfter) {
		end = a.cert.NotAfter
	}
	serial, err := newSerial()
	if err != nil {
		return fail(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		NotBefore:             now.Add(-identity.Backdate),
		NotAfter:              end,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{id.SPIFFE().URL()},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, pub, a.key)
	if err != nil {
		return fail(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return fail(err)
	}
	return []*x509.Certificate{leaf}, nil
}

// checkKey allows P-256, P-384, Ed25519 and RSA from 2048 to 8192 bits; larger
// ones make every handshake a burden on the verifier.
func checkKey(pub crypto.PublicKey) error {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() || k.Curve == elliptic.P384() {
			return nil
		}
		return fmt.Errorf("%w: curve %s is not allowed, use P-256 or P-384", ErrRequest, k.Curve.Params().Name)
	case ed25519.PublicKey:
		return nil
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < 2048 || n > 8192 {
			return fmt.Errorf("%w: an RSA key of %d bits is not allowed, use 2048 to 8192", ErrRequest, n)
		}
		return nil
	}
	return fmt.Errorf("%w: a key of type %T is not allowed, use ECDSA P-256", ErrRequest, pub)
}

// newSerial returns 127 random bits, never zero.
func newSerial() (*big.Int, error) {
	most := new(big.Int).Lsh(big.NewInt(1), 127)
	n, err := rand.Int(rand.Reader, most.Sub(most, big.NewInt(1)))
	if err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}

// Proof returns a signing request (DER) by the authority's own key. It shows a
// fleet that admits the authority that the one who asks holds the key.
func (a *Authority) Proof() ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, a.key)
	if err != nil {
		return nil, fmt.Errorf("prove possession of authority %s: %w", a.Pin(), err)
	}
	return der, nil
}
