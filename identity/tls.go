package identity

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"

	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// TLSServerConfig is for a listener that speaks another protocol than gRPC.
// It presents whatever SVID src holds at each handshake. It does not limit
// connections to the validity of the SVIDs: use Server, which does.
func TLSServerConfig(src Source, authorizer Authorizer) *tls.Config {
	return harden(tlsconfig.MTLSServerConfig(src, src, authorizer))
}

// TLSClientConfig is TLSServerConfig for the side that dials; see Client.
func TLSClientConfig(src Source, authorizer Authorizer) *tls.Config {
	return harden(tlsconfig.MTLSClientConfig(src, src, authorizer))
}

func harden(c *tls.Config) *tls.Config {
	c.MinVersion = tls.VersionTLS13
	c.SessionTicketsDisabled = true
	c.ClientSessionCache = nil
	return c
}

// TLSConn is an authenticated connection that ends no later than the SVIDs of
// both sides.
type TLSConn struct {
	*tls.Conn
	peer Peer
}

// Peer returns who is on the other side. The owner should have moved to a new
// connection by Peer().DrainAt; at Peer().NotAfter it is closed.
func (c *TLSConn) Peer() Peer { return c.peer }

// Server performs the server's side of the handshake over raw and returns the
// limited connection. raw is closed on error. The handshake takes as long as
// the peer does: bound it by ctx.
func Server(ctx context.Context, raw net.Conn, src Source, authorizer Authorizer) (*TLSConn, error) {
	return handshake(ctx, raw, src, func(own *x509svid.SVID, lc *limitConn) *tls.Conn {
		return tls.Server(lc, harden(tlsconfig.MTLSServerConfig(own, src, authorizer)))
	})
}

// Client is Server for the side that dialled.
func Client(ctx context.Context, raw net.Conn, src Source, authorizer Authorizer) (*TLSConn, error) {
	return handshake(ctx, raw, src, func(own *x509svid.SVID, lc *limitConn) *tls.Conn {
		return tls.Client(lc, harden(tlsconfig.MTLSClientConfig(own, src, authorizer)))
	})
}

func handshake(ctx context.Context, raw net.Conn, src Source, wrap func(*x509svid.SVID, *limitConn) *tls.Conn) (*TLSConn, error) {
	fail := func(err error) (*TLSConn, error) {
		raw.Close()
		return nil, fmt.Errorf("TLS with %s: %w", raw.RemoteAddr(), err)
	}
	own, err := ownSVID(src)
	if err != nil {
		return fail(err)
	}
	lc := &limitConn{Conn: raw}
	conn := wrap(own, lc)
	if err := conn.HandshakeContext(ctx); err != nil {
		return fail(explain(src, err))
	}
	p, err := establish(own, lc, conn.ConnectionState())
	if err != nil {
		return fail(err)
	}
	return &TLSConn{Conn: conn, peer: p}, nil
}
