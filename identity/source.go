package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Source holds a process's own SVID and the bundles it trusts, both of which
// change while the process runs.
type Source interface {
	x509svid.Source
	x509bundle.Source
	// Updated returns a channel that is closed at the next change of the SVID
	// or of a bundle. Take the channel before reading what it guards; each
	// change needs a new call. Any number of goroutines may wait.
	Updated() <-chan struct{}
	io.Closer
}

var (
	// ErrNoSVID: the source has no SVID yet; the process has not enrolled.
	ErrNoSVID = errors.New("no identity yet: this host has not enrolled")
	// ErrEmptyBundle refuses a bundle that would trust nobody.
	ErrEmptyBundle = errors.New("a trust bundle may not be empty")
	// ErrClosed is returned by a source after Close.
	ErrClosed = errors.New("identity source is closed")
)

// MemorySource is a Source in memory. The zero value is empty and ready.
type MemorySource struct {
	mu      sync.Mutex
	svid    *x509svid.SVID
	bundles map[spiffeid.TrustDomain]*x509bundle.Bundle
	changed chan struct{} // nil until someone waits
	closed  bool
}

// NewMemorySource returns a source that holds svid and bundle. Either may be
// nil.
func NewMemorySource(svid *x509svid.SVID, bundle *x509bundle.Bundle) *MemorySource {
	m := &MemorySource{svid: svid}
	if bundle != nil && !bundle.Empty() {
		m.bundles = map[spiffeid.TrustDomain]*x509bundle.Bundle{bundle.TrustDomain(): bundle.Clone()}
	}
	return m
}

// Set replaces the SVID.
func (m *MemorySource) Set(svid *x509svid.SVID) error {
	if err := checkSVID(svid); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.svid = svid
	m.announce()
	return nil
}

// SetBundle replaces the bundle of b's trust domain. An empty bundle is
// refused with ErrEmptyBundle. A bundle that equals the present one announces
// nothing.
func (m *MemorySource) SetBundle(b *x509bundle.Bundle) error {
	if b == nil || b.Empty() {
		return ErrEmptyBundle
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if old, ok := m.bundles[b.TrustDomain()]; ok && old.Equal(b) {
		return nil
	}
	if m.bundles == nil {
		m.bundles = map[spiffeid.TrustDomain]*x509bundle.Bundle{}
	}
	m.bundles[b.TrustDomain()] = b.Clone()
	m.announce()
	return nil
}

// announce wakes those who wait; mu is held.
func (m *MemorySource) announce() {
	if m.changed != nil {
		close(m.changed)
		m.changed = nil
	}
}

// GetX509SVID returns the current SVID, also when it has expired: the one who
// dials says so more clearly than a missing identity would.
func (m *MemorySource) GetX509SVID() (*x509svid.SVID, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.closed:
		return nil, ErrClosed
	case m.svid == nil:
		return nil, ErrNoSVID
	}
	return m.svid, nil
}

// GetX509BundleForTrustDomain returns the bundle of td. The caller must not
// change it.
func (m *MemorySource) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, ErrClosed
	}
	b, ok := m.bundles[td]
	if !ok {
		return nil, fmt.Errorf("trust domain %q is not trusted here", td.Name())
	}
	return b, nil
}

// Updated implements Source.
func (m *MemorySource) Updated() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.changed == nil {
		m.changed = make(chan struct{})
		if m.closed {
			close(m.changed)
		}
	}
	return m.changed
}

// Close makes the source refuse further use and wakes those who wait.
func (m *MemorySource) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.closed {
		m.closed = true
		m.announce()
	}
	return nil
}

func (m *MemorySource) allBundles() []*x509bundle.Bundle {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]*x509bundle.Bundle, 0, len(m.bundles))
	for _, b := range m.bundles {
		all = append(all, b)
	}
	return all
}

// NewSVID joins a key and the chain that was signed for it, and checks that
// they belong together.
func NewSVID(key crypto.Signer, chain []*x509.Certificate) (*x509svid.SVID, error) {
	if len(chain) == 0 {
		return nil, errors.New("join key and SVID: the chain is empty")
	}
	sid, err := x509svid.IDFromCert(chain[0])
	if err != nil {
		return nil, fmt.Errorf("join key and SVID: %w", err)
	}
	svid := &x509svid.SVID{ID: sid, Certificates: chain, PrivateKey: key}
	if err := checkSVID(svid); err != nil {
		return nil, err
	}
	return svid, nil
}

func checkSVID(svid *x509svid.SVID) error {
	if svid == nil || len(svid.Certificates) == 0 || svid.PrivateKey == nil {
		return errors.New("SVID is incomplete")
	}
	pub, ok := svid.PrivateKey.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(svid.Certificates[0].PublicKey) {
		return fmt.Errorf("SVID of %s belongs to another key", svid.ID)
	}
	if _, err := FromSPIFFE(svid.ID); err != nil {
		return err
	}
	return nil
}

// NewKey makes a key of the kind that this system prefers: ECDSA P-256.
func NewKey() (crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	return key, nil
}

// KeyHash names a public key: "sha256:" and the hash of its SubjectPublicKeyInfo
// in hex. Pins of authorities have the same form.
func KeyHash(pub crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return "", fmt.Errorf("hash public key: %w", err)
	}
	return hashSPKI(der), nil
}

// CertificatePin is KeyHash of a certificate's key.
func CertificatePin(cert *x509.Certificate) string {
	return hashSPKI(cert.RawSubjectPublicKeyInfo)
}

func hashSPKI(der []byte) string {
	sum := sha256.Sum256(der)
	return "sha256:" + hex.EncodeToString(sum[:])
}
