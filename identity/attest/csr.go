package attest

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"fmt"

	"redoubt.dev/redoubt/identity"
)

// NewCSR returns a signing request (DER) that proves possession of key. It
// carries nothing else: the authority decides the identity.
func NewCSR(key crypto.Signer) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("make a signing request: %w", err)
	}
	return der, nil
}

// KeyHash names a public key: "sha256:" and hex, as pins do.
func KeyHash(pub crypto.PublicKey) (string, error) { return identity.KeyHash(pub) }

// CSRKey checks that the request (DER) is signed by the key that it names and
// returns that key's KeyHash.
func CSRKey(csr []byte) (string, error) {
	req, err := checkCSR(csr)
	if err != nil {
		return "", err
	}
	return KeyHash(req.PublicKey)
}

func checkCSR(csr []byte) (*x509.CertificateRequest, error) {
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		// The parser's own words are of its insides.
		return nil, fmt.Errorf("the signing request of %d bytes is no PKCS #10 request in DER: make one with the redoubt command", len(csr))
	}
	if err := req.CheckSignature(); err != nil {
		return nil, fmt.Errorf("signing request: the requester does not hold the key: %w", err)
	}
	return req, nil
}
