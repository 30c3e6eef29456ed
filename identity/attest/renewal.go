package attest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"redoubt.dev/redoubt/identity"
)

var (
	// ErrChallenge: the challenge is not one of this server, or is too old.
	// The host asks for a new one.
	ErrChallenge = errors.New("the challenge is not from this server or too old: ask for a new one")
	// ErrNotEnrolled: the key is not the one that enrolled.
	ErrNotEnrolled = errors.New("this key has not enrolled: join anew with a token from: redoubt node join-token")
	// ErrWindow: the SVID expired too long ago.
	ErrWindow = errors.New("the SVID expired too long ago to renew: join anew with a token from: redoubt node join-token")
)

const (
	challengeTTL   = time.Minute
	challengeRand  = 16
	challengeSize  = challengeRand + 8 + sha256.Size
	renewalContext = "redoubt renewal after expiry v1\x00"
)

// Challenger issues challenges and knows its own again, without keeping them.
// A challenge can be used more than once within its minute: replaying a proof
// gains a certificate for a key that the replayer does not have.
type Challenger struct{ key [32]byte }

// NewChallenger returns a challenger with a random key. Challenges do not
// survive it.
func NewChallenger() *Challenger {
	c := &Challenger{}
	rand.Read(c.key[:]) // never fails
	return c
}

// Issue returns a challenge for the member id.
func (c *Challenger) Issue(id identity.ID, now time.Time) []byte {
	nonce := make([]byte, challengeRand, challengeSize)
	rand.Read(nonce) // never fails
	nonce = binary.BigEndian.AppendUint64(nonce, uint64(now.Add(challengeTTL).UnixNano()))
	return append(nonce, c.mac(nonce, id)...)
}

func (c *Challenger) mac(head []byte, id identity.ID) []byte {
	m := hmac.New(sha256.New, c.key[:])
	m.Write(head)
	m.Write([]byte(id.String()))
	return m.Sum(nil)
}

// Check says whether this challenger issued the challenge for id and it is
// still good.
func (c *Challenger) Check(challenge []byte, id identity.ID, now time.Time) error {
	if len(challenge) != challengeSize {
		return ErrChallenge
	}
	head := challenge[:challengeSize-sha256.Size]
	if !hmac.Equal(challenge[len(head):], c.mac(head, id)) {
		return ErrChallenge
	}
	if end := int64(binary.BigEndian.Uint64(head[challengeRand:])); now.UnixNano() >= end {
		return ErrChallenge
	}
	return nil
}

// Renewal is what a host sends to renew after its SVID expired.
type Renewal struct {
	// Chain is the expired SVID, leaf first, DER: it says who asks and when
	// the SVID ended, in the fleet's own words.
	Chain     [][]byte
	CSR       []byte // with the key of Chain
	Challenge []byte
	// Signature, by that key, over the challenge and the request.
	Signature []byte
}

// NewRenewal answers a challenge with the SVID that expired and its key.
func NewRenewal(expired *x509svid.SVID, challenge []byte) (Renewal, error) {
	fail := func(err error) (Renewal, error) {
		return Renewal{}, fmt.Errorf("renew SVID of %s: %w", expired.ID, err)
	}
	csr, err := NewCSR(expired.PrivateKey)
	if err != nil {
		return fail(err)
	}
	r := Renewal{CSR: csr, Challenge: challenge}
	for _, cert := range expired.Certificates {
		r.Chain = append(r.Chain, cert.Raw)
	}
	digest := renewalMessage(challenge, csr)
	if _, ok := expired.PrivateKey.Public().(ed25519.PublicKey); ok {
		r.Signature, err = expired.PrivateKey.Sign(rand.Reader, digest, crypto.Hash(0))
	} else {
		r.Signature, err = expired.PrivateKey.Sign(rand.Reader, digest, crypto.SHA256)
	}
	if err != nil {
		return fail(err)
	}
	return r, nil
}

// renewalMessage is the SHA-256 of what is signed. The context keeps the
// signature from meaning anything elsewhere.
func renewalMessage(challenge, csr []byte) []byte {
	h := sha256.New()
	h.Write([]byte(renewalContext))
	for _, part := range [][]byte{challenge, csr} {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
		h.Write(part)
	}
	return h.Sum(nil)
}

// Window is how long after its SVID's expiry a member may renew. Zero allows
// none.
type Window time.Duration

// Within returns the window of d.
func Within(d time.Duration) Window { return Window(d) }

// Allows says whether an SVID that ended at notAfter may be renewed now.
func (w Window) Allows(notAfter, now time.Time) error {
	if now.After(notAfter.Add(time.Duration(w))) {
		return fmt.Errorf("the SVID ended at %s and the window is %s: %w", notAfter.UTC().Format(time.RFC3339), time.Duration(w), ErrWindow)
	}
	return nil
}

// Enrolled is what the servers know of a member.
type Enrolled struct {
	ID      identity.ID
	KeyHash string // of the key that enrolled
	Revoked bool
}

// RenewingID returns whom r says it is from, unverified, so that the server can
// look up what it knows of it.
func RenewingID(r Renewal) (identity.ID, error) {
	certs, err := parseChain(r.Chain)
	if err != nil {
		return identity.ID{}, err
	}
	sid, err := x509svid.IDFromCert(certs[0])
	if err != nil {
		return identity.ID{}, fmt.Errorf("renew: identity of the expired SVID: %w", err)
	}
	return identity.FromSPIFFE(sid)
}

// VerifyRenewal says whether r may have a new SVID for who.ID; nil means yes.
// It checks that the fleet signed the expired SVID, that it is of the key that
// enrolled, that the requester holds this key now, and the window.
func VerifyRenewal(r Renewal, who Enrolled, bundle x509bundle.Source, challenger *Challenger, window Window, now time.Time) error {
	fail := func(err error) error { return fmt.Errorf("renew SVID of %s: %w", who.ID, err) }
	if who.Revoked {
		return fail(ErrRevoked)
	}
	certs, err := parseChain(r.Chain)
	if err != nil {
		return fail(err)
	}
	leaf := certs[0]
	// Judged at the last moment of its validity, which leaves everything but
	// the expiry to be checked.
	sid, _, err := x509svid.Verify(certs, bundle, x509svid.WithTime(leaf.NotAfter))
	if err != nil {
		return fail(err)
	}
	if sid != who.ID.SPIFFE() || who.ID.IsZero() {
		return fail(fmt.Errorf("the expired SVID is of %s", sid))
	}
	req, err := checkCSR(r.CSR)
	if err != nil {
		return fail(err)
	}
	csrKey, err := KeyHash(req.PublicKey)
	if err != nil {
		return fail(err)
	}
	if csrKey != who.KeyHash || identity.CertificatePin(leaf) != who.KeyHash {
		return fail(ErrNotEnrolled)
	}
	if err := challenger.Check(r.Challenge, who.ID, now); err != nil {
		return fail(err)
	}
	if !signedBy(req.PublicKey, renewalMessage(r.Challenge, r.CSR), r.Signature) {
		return fail(errors.New("the challenge is not signed by the enrolled key"))
	}
	if err := window.Allows(leaf.NotAfter, now); err != nil {
		return fail(err)
	}
	return nil
}

func signedBy(pub crypto.PublicKey, digest, sig []byte) bool {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(k, digest, sig)
	case ed25519.PublicKey:
		return ed25519.Verify(k, digest, sig)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(k, crypto.SHA256, digest, sig) == nil
	}
	return false
}

func parseChain(raw [][]byte) ([]*x509.Certificate, error) {
	if len(raw) == 0 || len(raw) > 8 {
		return nil, fmt.Errorf("renew: the chain of the expired SVID has %d certificates", len(raw))
	}
	certs := make([]*x509.Certificate, len(raw))
	for i, der := range raw {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("renew: expired SVID: %w", err)
		}
		certs[i] = cert
	}
	return certs, nil
}
