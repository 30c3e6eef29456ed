package identity

import (
	"crypto/x509"
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
)

// Authorizer decides whether a peer, whose chain is verified already, may have
// the connection. What the peer may then do is decided for each call.
type Authorizer = tlsconfig.Authorizer

// AuthorizeServers lets in the control servers of td.
func AuthorizeServers(td spiffeid.TrustDomain) Authorizer {
	return AuthorizeKinds(td, KindServer)
}

// AuthorizeKinds lets in identities of td that are of one of the kinds. With no
// kind it lets in nobody.
func AuthorizeKinds(td spiffeid.TrustDomain, kinds ...Kind) Authorizer {
	words := make([]string, len(kinds))
	allowed := map[Kind]bool{}
	for i, k := range kinds {
		words[i] = k.String()
		allowed[k] = k != KindUnknown
	}
	return func(sid spiffeid.ID, _ [][]*x509.Certificate) error {
		id, err := FromSPIFFE(sid)
		if err != nil {
			return err
		}
		if id.TrustDomain() != td {
			return fmt.Errorf("%s is of another trust domain than %s", id, td.Name())
		}
		if !allowed[id.Kind()] {
			return fmt.Errorf("%s is a %s; here only these may connect: %s", id, id.Kind(), strings.Join(words, ", "))
		}
		return nil
	}
}

// AuthorizeIDs lets in exactly these identities.
func AuthorizeIDs(ids ...ID) Authorizer {
	allowed := map[spiffeid.ID]bool{}
	for _, id := range ids {
		if !id.IsZero() {
			allowed[id.SPIFFE()] = true
		}
	}
	return func(sid spiffeid.ID, _ [][]*x509.Certificate) error {
		if !allowed[sid] {
			return fmt.Errorf("%s is not the identity that is expected here", sid)
		}
		return nil
	}
}
