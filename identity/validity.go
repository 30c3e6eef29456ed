package identity

import (
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Backdate is how long before the moment of signing an SVID begins to be
// valid. Clocks of edge hosts lag by minutes before NTP has caught them, and a
// verifier that lags would take a fresh SVID for one of the future. A key that
// did not exist before the signing gains nothing from it.
const Backdate = 5 * time.Minute

// ErrExpired: an SVID has expired. What it wraps says whose and when.
var ErrExpired = errors.New("identity has expired")

// Lifetime is how long leaf was meant to be used: its validity without the
// backdated part.
func Lifetime(leaf *x509.Certificate) time.Duration {
	full := leaf.NotAfter.Sub(leaf.NotBefore)
	if full > Backdate {
		return full - Backdate
	}
	return full
}

// RenewIn returns how long to wait before renewing svid: until half of its
// lifetime is left, and never more than half a lifetime from now, so that a
// clock that lags does not delay renewal past the expiry that others see.
// Zero means now.
func RenewIn(svid *x509svid.SVID, now time.Time) time.Duration {
	leaf := svid.Certificates[0]
	half := Lifetime(leaf) / 2
	wait := leaf.NotAfter.Add(-half).Sub(now)
	return max(0, min(wait, half))
}

// DrainAt returns when the owner of a connection that ends at notAfter should
// have moved to a new one: at least a quarter of lifetime before, and spread
// over another eighth, so that the clients of one server do not all come back
// at once. It is random within that span: call it once for each connection.
func DrainAt(notAfter time.Time, lifetime time.Duration) time.Time {
	margin := lifetime / 4
	if spread := lifetime / 8; spread > 0 {
		margin += rand.N(spread)
	}
	return notAfter.Add(-margin)
}

// CheckClock returns an error, which names the remedy, when the wall clock
// stands before the moment at which something that src holds was signed: then
// the clock is wrong, and every peer would be refused as not valid yet.
func CheckClock(src Source, now time.Time) error {
	svid, err := src.GetX509SVID()
	if err != nil {
		return nil // nothing to compare with
	}
	newest := svid.Certificates[0].NotBefore
	what := svid.ID.String()
	if b, err := src.GetX509BundleForTrustDomain(svid.ID.TrustDomain()); err == nil {
		for _, ca := range b.X509Authorities() {
			if ca.NotBefore.After(newest) {
				newest, what = ca.NotBefore, "an authority of "+svid.ID.TrustDomain().Name()
			}
		}
	}
	if now.Before(newest) {
		return fmt.Errorf("the clock of this host says %s, before the certificate of %s became valid (%s): set the clock (chronyc makestep, or timedatectl set-ntp true)",
			now.UTC().Format(time.RFC3339), what, newest.UTC().Format(time.RFC3339))
	}
	return nil
}

// usable returns an error that wraps ErrExpired when svid has expired.
func usable(svid *x509svid.SVID, now time.Time) error {
	if leaf := svid.Certificates[0]; now.After(leaf.NotAfter) {
		return fmt.Errorf("own SVID %s ended at %s: %w", svid.ID, leaf.NotAfter.UTC().Format(time.RFC3339), ErrExpired)
	}
	return nil
}
