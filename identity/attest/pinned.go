package attest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffegrpc/grpccredentials"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/credentials"

	"redoubt.dev/redoubt/identity"
)

// ErrNotPinned: the server that answered was not signed by an authority that
// the token pins.
var ErrNotPinned = errors.New("the server is not one of the fleet that made the join token: check the address, or make a new token if the fleet's authorities have changed")

// PinnedTLS is the client's side of the first contact: no certificate of its
// own, and a server that is authenticated by one of the pinned keys. The
// server must be a control server of td. Use ServerCredentials at the other
// end, which sends the authority along.
func PinnedTLS(td spiffeid.TrustDomain, pins []string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// Names mean nothing here; VerifyPeerCertificate does all of it, and
		// without a session cache it is never skipped.
		InsecureSkipVerify: true,
		VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
			return verifyPinned(raw, td, pins)
		},
	}
}

// PinnedCredentials is PinnedTLS for gRPC.
func PinnedCredentials(td spiffeid.TrustDomain, pins []string) credentials.TransportCredentials {
	return credentials.NewTLS(PinnedTLS(td, pins))
}

func verifyPinned(raw [][]byte, td spiffeid.TrustDomain, pins []string) error {
	pinned := make(map[string]bool, len(pins))
	for _, p := range pins {
		pinned[p] = true
	}
	roots := x509bundle.New(td)
	for _, der := range raw[min(1, len(raw)):] {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("certificate of the server: %w", err)
		}
		if pinned[identity.CertificatePin(cert)] {
			roots.AddX509Authority(cert)
		}
	}
	if roots.Empty() {
		return ErrNotPinned
	}
	return tlsconfig.VerifyPeerCertificate(roots, identity.AuthorizeServers(td))(raw, nil)
}

// BundleCredentials is for a host that has a bundle but no valid SVID, because
// it expired: the server is authenticated by the bundle, the host by what it
// sends.
func BundleCredentials(bundle x509bundle.Source, td spiffeid.TrustDomain) credentials.TransportCredentials {
	return grpccredentials.TLSClientCredentials(bundle, identity.AuthorizeServers(td))
}

// ServerCredentials is the server's side of enrolment: it presents its SVID
// with the authority that signed it, which pinning clients need, and asks for
// no certificate. Serve nothing but enrolment with it: callers are anonymous.
func ServerCredentials(src identity.Source) credentials.TransportCredentials {
	return enrolment{src}
}

// enrolment makes go-spiffe's credentials anew for each handshake, so that no
// session ticket works on another connection.
type enrolment struct{ src identity.Source }

func (e enrolment) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	svid, err := e.chain()
	if err != nil {
		raw.Close()
		return nil, nil, err
	}
	return grpccredentials.TLSServerCredentials(svid).ServerHandshake(raw)
}

// chain returns the SVID with the authority appended.
func (e enrolment) chain() (*x509svid.SVID, error) {
	svid, err := e.src.GetX509SVID()
	if err != nil {
		return nil, err
	}
	leaf := svid.Certificates[0]
	if time.Now().After(leaf.NotAfter) {
		return nil, fmt.Errorf("serve enrolment: own SVID ended at %s: %w", leaf.NotAfter.UTC().Format(time.RFC3339), identity.ErrExpired)
	}
	b, err := e.src.GetX509BundleForTrustDomain(svid.ID.TrustDomain())
	if err != nil {
		return nil, fmt.Errorf("serve enrolment: %w", err)
	}
	top := svid.Certificates[len(svid.Certificates)-1]
	for _, ca := range b.X509Authorities() {
		if top.CheckSignatureFrom(ca) == nil {
			full := *svid
			full.Certificates = append(append([]*x509.Certificate(nil), svid.Certificates...), ca)
			return &full, nil
		}
	}
	return nil, fmt.Errorf("serve enrolment: no authority of the bundle signed the own SVID: %w", identity.ErrNotTrusted)
}

func (e enrolment) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("credentials of the enrolment service are for servers")
}

func (e enrolment) Info() credentials.ProtocolInfo {
	return grpccredentials.TLSServerCredentials(e.src).Info()
}

func (e enrolment) Clone() credentials.TransportCredentials { return e }

func (e enrolment) OverrideServerName(string) error { return nil }
