package identity

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// Issuer signs a server's own SVID; identity/ca has one.
type Issuer interface {
	// Certificate is the authority's certificate.
	Certificate() *x509.Certificate
	// SignServer returns an SVID for the server id with the key pub, also
	// before the authority signs for others.
	SignServer(pub crypto.PublicKey, id ID, ttl time.Duration) ([]*x509.Certificate, error)
}

// ErrNotTrusted: an authority's certificate is not in the trust bundle, so what
// it signs would be refused.
var ErrNotTrusted = errors.New("the authority is not in the trust bundle")

// SelfSource is the Source of a server. It signs its own short-lived SVID with
// its own authority, with a new key each time, and keeps bundles on disk.
//
// Until its authority is in the bundle on disk (a server that is joining) it
// serves the SVID that the disk holds, which another server signed.
type SelfSource struct {
	*DiskSource
	issuer Issuer
	id     ID
	ttl    time.Duration
	log    *slog.Logger
}

// NewSelfSource returns the source of the server id. It owns disk from now on.
// If the bundle on disk holds the issuer already, the source can be used at
// once; else after SetBundle or Set. Run must be running for renewal.
func NewSelfSource(disk *DiskSource, issuer Issuer, id ID, ttl time.Duration, log *slog.Logger) (*SelfSource, error) {
	if id.Kind() != KindServer {
		return nil, fmt.Errorf("own identity of a server cannot be %q", id)
	}
	if ttl <= 0 {
		return nil, fmt.Errorf("lifetime of SVIDs is %s, it must be positive", ttl)
	}
	s := &SelfSource{DiskSource: disk, issuer: issuer, id: id, ttl: ttl, log: log}
	if err := s.renew(); err != nil && !errors.Is(err, ErrNotTrusted) {
		return nil, err
	}
	return s, nil
}

// SetBundle stores the bundle and, once it holds the own authority, moves to
// an SVID that the own authority signed.
func (s *SelfSource) SetBundle(b *bundle) error {
	if err := s.DiskSource.SetBundle(b); err != nil {
		return err
	}
	if svid, err := s.GetX509SVID(); err == nil && svid.Certificates[0].CheckSignatureFrom(s.issuer.Certificate()) == nil {
		return nil
	}
	if err := s.renew(); err != nil && !errors.Is(err, ErrNotTrusted) {
		return err
	}
	return nil
}

// renew signs and serves a new SVID. It is not written to disk: a restart
// signs another, without network.
func (s *SelfSource) renew() error {
	b, err := s.GetX509BundleForTrustDomain(s.id.TrustDomain())
	if err != nil || !b.HasX509Authority(s.issuer.Certificate()) {
		return fmt.Errorf("sign own SVID of %s: %w", s.id, ErrNotTrusted)
	}
	key, err := NewKey()
	if err != nil {
		return err
	}
	chain, err := s.issuer.SignServer(key.Public(), s.id, s.ttl)
	if err != nil {
		return fmt.Errorf("sign own SVID of %s: %w", s.id, err)
	}
	svid, err := NewSVID(key, chain)
	if err != nil {
		return err
	}
	return s.MemorySource.Set(svid)
}

// retry is how long Run waits after a renewal that failed.
const retry = 5 * time.Second

// Run renews the SVID at half of its life until ctx ends.
func (s *SelfSource) Run(ctx context.Context) error {
	for {
		changed := s.Updated()
		wait := time.Duration(0)
		if svid, err := s.GetX509SVID(); err == nil {
			wait = RenewIn(svid, time.Now())
		} else if errors.Is(err, ErrClosed) {
			return nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-changed:
			timer.Stop()
			continue
		case <-timer.C:
		}
		err := s.renew()
		if err == nil {
			continue
		}
		// A server that has not joined yet waits for its bundle.
		if !errors.Is(err, ErrNotTrusted) {
			s.log.Error("own SVID was not renewed", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-time.After(retry):
		}
	}
}
