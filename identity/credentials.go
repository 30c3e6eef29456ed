package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffegrpc/grpccredentials"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// Peer is the other side of a connection, as the handshake established it.
type Peer struct {
	ID ID
	// Certificate is the peer's leaf.
	Certificate *x509.Certificate
	// NotAfter is when the connection is closed at the latest: the earlier of
	// both sides' ends.
	NotAfter time.Time
	// DrainAt is when whoever holds a stream on this connection should have
	// moved to a new one, see the function of that name.
	DrainAt time.Time
}

// A CredentialsOption changes ServerCredentials or ClientCredentials.
type CredentialsOption func(*transport)

// OnRefused has f called for every handshake that fails, with the address of
// the peer and the reason. Under TLS 1.3 the refused side learns little more
// than "bad certificate", so the reason must be logged by the one who refused.
func OnRefused(f func(remote net.Addr, err error)) CredentialsOption {
	return func(t *transport) { t.refused = f }
}

// ServerCredentials returns gRPC credentials that present src's SVID and take
// only peers that src's bundle verifies and authorizer lets in.
func ServerCredentials(src Source, authorizer Authorizer, opts ...CredentialsOption) credentials.TransportCredentials {
	return newTransport(src, authorizer, opts)
}

// ClientCredentials is ServerCredentials for the side that dials. For calls
// that must outlive the SVID's validity use Conn, which dials anew in time.
func ClientCredentials(src Source, authorizer Authorizer, opts ...CredentialsOption) credentials.TransportCredentials {
	return newTransport(src, authorizer, opts)
}

func newTransport(src Source, authorizer Authorizer, opts []CredentialsOption) *transport {
	t := &transport{src: src, authorizer: authorizer}
	for _, o := range opts {
		o(t)
	}
	return t
}

// transport wraps go-spiffe's grpccredentials, made anew for each handshake.
// That gives each connection a tls.Config, and so ticket keys, of its own: a
// ticket can never be redeemed on another connection. It also fixes which SVID
// of ours the connection presents, whose end limits it. What grpccredentials
// leaves open is checked when the handshake is done: TLS 1.3, not resumed.
type transport struct {
	src        Source
	authorizer Authorizer
	refused    func(net.Addr, error)
	// connected, if set, is told of each handshake that succeeded.
	connected func(own *x509svid.SVID, p Peer)
}

type authInfo struct {
	credentials.AuthInfo // go-spiffe's
	credentials.CommonAuthInfo
	peer Peer
}

func (t *transport) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return t.handshake(raw, func(own *x509svid.SVID, lc *limitConn) (net.Conn, credentials.AuthInfo, error) {
		return grpccredentials.MTLSClientCredentials(own, t.src, t.authorizer).ClientHandshake(ctx, authority, lc)
	})
}

func (t *transport) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return t.handshake(raw, func(own *x509svid.SVID, lc *limitConn) (net.Conn, credentials.AuthInfo, error) {
		return grpccredentials.MTLSServerCredentials(own, t.src, t.authorizer).ServerHandshake(lc)
	})
}

func (t *transport) handshake(raw net.Conn, do func(*x509svid.SVID, *limitConn) (net.Conn, credentials.AuthInfo, error)) (net.Conn, credentials.AuthInfo, error) {
	fail := func(err error) (net.Conn, credentials.AuthInfo, error) {
		raw.Close()
		if t.refused != nil {
			t.refused(raw.RemoteAddr(), err)
		}
		return nil, nil, err
	}
	own, err := ownSVID(t.src)
	if err != nil {
		return fail(err)
	}
	lc := &limitConn{Conn: raw}
	conn, info, err := do(own, lc)
	if err != nil {
		return fail(explain(t.src, err))
	}
	// grpc adds a wrapper only for connections that show their descriptor,
	// which limitConn does not; were that to change, refuse.
	state, ok := conn.(interface{ ConnectionState() tls.ConnectionState })
	if !ok {
		return fail(fmt.Errorf("TLS state of a %T cannot be read", conn))
	}
	p, err := establish(own, lc, state.ConnectionState())
	if err != nil {
		return fail(err)
	}
	if t.connected != nil {
		t.connected(own, p)
	}
	return conn, authInfo{
		AuthInfo:       info,
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
		peer:           p,
	}, nil
}

func (t *transport) Info() credentials.ProtocolInfo {
	return grpccredentials.MTLSClientCredentials(t.src, t.src, t.authorizer).Info()
}

func (t *transport) Clone() credentials.TransportCredentials {
	c := *t
	return &c
}

// OverrideServerName does nothing: peers are known by SPIFFE id, not by name.
func (t *transport) OverrideServerName(string) error { return nil }

// ownSVID returns the SVID to present, and refuses one that has expired with
// an error that says so, since the peer would only say "bad certificate".
func ownSVID(src Source) (*x509svid.SVID, error) {
	own, err := src.GetX509SVID()
	if err != nil {
		return nil, err
	}
	if err := usable(own, time.Now()); err != nil {
		return nil, err
	}
	return own, nil
}

// establish checks what the handshake agreed on and sets the connection's end.
func establish(own *x509svid.SVID, lc *limitConn, s tls.ConnectionState) (Peer, error) {
	switch {
	case s.Version < tls.VersionTLS13:
		return Peer{}, fmt.Errorf("peer offers only %s, TLS 1.3 is needed", tls.VersionName(s.Version))
	case s.DidResume:
		return Peer{}, errors.New("TLS session was resumed, which skips the verification of the peer")
	case len(s.PeerCertificates) == 0:
		return Peer{}, errors.New("peer presented no certificate")
	}
	leaf := s.PeerCertificates[0]
	sid, err := x509svid.IDFromCert(leaf)
	if err != nil {
		return Peer{}, fmt.Errorf("identity of peer: %w", err)
	}
	id, err := FromSPIFFE(sid)
	if err != nil {
		return Peer{}, err
	}
	first := leaf
	if mine := own.Certificates[0]; mine.NotAfter.Before(leaf.NotAfter) {
		first = mine
	}
	p := Peer{ID: id, Certificate: leaf, NotAfter: first.NotAfter, DrainAt: DrainAt(first.NotAfter, Lifetime(first))}
	lc.limit(p.NotAfter)
	return p, nil
}

// explain puts a wrong clock before the certificate error that it causes.
func explain(src Source, err error) error {
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		if clock := CheckClock(src, time.Now()); clock != nil {
			return fmt.Errorf("%w: %w", clock, err)
		}
	}
	return err
}

// PeerFromContext returns the peer of the call that ctx belongs to. The error
// means that the call did not come over a connection of this package.
func PeerFromContext(ctx context.Context) (Peer, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Peer{}, errors.New("call has no peer")
	}
	return PeerOf(p)
}

// PeerOf is PeerFromContext for the peer that grpc.Peer hands to a client.
func PeerOf(p *peer.Peer) (Peer, error) {
	if p == nil {
		return Peer{}, errors.New("call has no peer")
	}
	info, ok := p.AuthInfo.(authInfo)
	if !ok {
		return Peer{}, fmt.Errorf("peer %v is not authenticated by SPIFFE", p.Addr)
	}
	return info.peer, nil
}

// PeerID returns the identity of the caller of the call that ctx belongs to.
func PeerID(ctx context.Context) (ID, error) {
	p, err := PeerFromContext(ctx)
	return p.ID, err
}
