package consensus

import (
	"context"
	"net"
	"time"

	"redoubt.dev/redoubt/identity"
)

// MutualTLS is the Security of a fleet: both sides show an SVID, authorizer
// (identity.AuthorizeServers) lets in the other, and a connection ends with the
// SVIDs that made it.
func MutualTLS(src identity.Source, authorizer identity.Authorizer) Security {
	return Security{
		Server: func(ctx context.Context, raw net.Conn) (net.Conn, error) {
			c, err := identity.Server(ctx, raw, src, authorizer)
			if err != nil {
				return nil, err
			}
			return c, nil
		},
		Client: func(ctx context.Context, raw net.Conn) (net.Conn, error) {
			c, err := identity.Client(ctx, raw, src, authorizer)
			if err != nil {
				return nil, err
			}
			return c, nil
		},
		DrainAt: func(conn net.Conn) time.Time {
			if c, ok := conn.(*identity.TLSConn); ok {
				return c.Peer().DrainAt
			}
			return time.Time{}
		},
	}
}
