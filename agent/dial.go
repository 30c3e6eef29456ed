package agent

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"

	"redoubt.dev/redoubt/agent/session"
	"redoubt.dev/redoubt/identity"
)

// Identity is who the node is. A source that the agent may write to
// (identity.DiskSource) is renewed by it; any other renews itself.
type Identity = identity.Source

// writable is the part of identity.DiskSource that takes news.
type writable interface {
	Set(*x509svid.SVID) error
	SetBundle(*x509bundle.Bundle) error
}

// DialContext makes the connection under gRPC; nil is TCP.
type DialContext func(ctx context.Context, address string) (net.Conn, error)

func dialOptions(dial DialContext) []grpc.DialOption {
	// Control servers are named by address, not reached through a web proxy.
	opts := []grpc.DialOption{grpc.WithNoProxy(), grpc.WithUserAgent("redoubt-agent"),
		// Fixed, so that an instance that takes nothing holds so much and no more.
		grpc.WithInitialWindowSize(128 << 10), grpc.WithInitialConnWindowSize(1 << 20),
		// A complete set of assignments is one message.
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64 << 20))}
	if dial != nil {
		opts = append(opts, grpc.WithContextDialer(dial))
	}
	return opts
}

func target(address string) string { return "passthrough:///" + address }

// dialer connects to control servers as the node that src says.
func dialer(src identity.Source, dial DialContext) session.Dialer {
	return func(address, serverID string) (session.Conn, error) {
		own, err := src.GetX509SVID()
		if err != nil {
			return nil, err
		}
		td := own.ID.TrustDomain()
		authorizer := identity.AuthorizeServers(td)
		if serverID != "" {
			id, err := identity.ServerID(td, serverID)
			if err != nil {
				return nil, fmt.Errorf("dial %s: %w", address, err)
			}
			authorizer = identity.AuthorizeIDs(id)
		}
		return identity.NewConn(target(address), src, authorizer, dialOptions(dial)...)
	}
}

// moveAt is when a stream should leave its connection.
func moveAt(ctx context.Context) time.Time {
	p, err := identity.PeerFromContext(ctx)
	if err != nil {
		return time.Time{}
	}
	return p.DrainAt
}

// bundleOf reads authorities as they travel.
func bundleOf(td spiffeid.TrustDomain, raw [][]byte) (*x509bundle.Bundle, error) {
	b := x509bundle.New(td)
	for i, der := range raw {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("trust bundle: certificate %d of %d: %w", i+1, len(raw), err)
		}
		b.AddX509Authority(cert)
	}
	return b, nil
}

func chainOf(raw [][]byte) ([]*x509.Certificate, error) {
	var chain []*x509.Certificate
	for i, der := range raw {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("certificate %d of %d: %w", i+1, len(raw), err)
		}
		chain = append(chain, cert)
	}
	return chain, nil
}
