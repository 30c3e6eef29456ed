package identity

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Kind is what an identity stands for.
type Kind uint8

const (
	// KindUnknown is the kind of the zero ID.
	KindUnknown Kind = iota
	// KindServer is a control server: spiffe://TD/server/ID.
	KindServer
	// KindNode is a node agent: spiffe://TD/node/ID.
	KindNode
	// KindUser is a person or an automation: spiffe://TD/user/NAME.
	KindUser
	// KindWorkload is a workload: spiffe://TD/ns/NS/workload/NAME.
	KindWorkload
)

var kindNames = [...]string{"unknown", "server", "node", "user", "workload"}

// String returns the word for k that ids and messages use.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// ParseKind reads the word of a real kind.
func ParseKind(s string) (Kind, error) {
	for k := KindServer; k <= KindWorkload; k++ {
		if s == k.String() {
			return k, nil
		}
	}
	return KindUnknown, fmt.Errorf("kind of identity %q is none of server, node, user, workload", s)
}

// MaxName is the longest name that an id may carry, in bytes.
const MaxName = 63

// maxTrustDomain is the limit that the SPIFFE standard sets.
const maxTrustDomain = 255

// ErrInvalidID is wrapped by every error that refuses the text of an id.
var ErrInvalidID = errors.New("not an identity of this system")

// ID is an identity. It is comparable and cannot be invalid: what the
// constructors and parsers return is well formed. The zero value is no
// identity.
type ID struct {
	td        spiffeid.TrustDomain
	kind      Kind
	namespace string // only for workloads
	name      string
}

// ServerID returns the identity of a control server.
func ServerID(td spiffeid.TrustDomain, name string) (ID, error) {
	return newID(td, KindServer, "", name)
}

// NodeID returns the identity of a node.
func NodeID(td spiffeid.TrustDomain, name string) (ID, error) {
	return newID(td, KindNode, "", name)
}

// UserID returns the identity of a user.
func UserID(td spiffeid.TrustDomain, name string) (ID, error) {
	return newID(td, KindUser, "", name)
}

// WorkloadID returns the identity of a workload in a namespace.
func WorkloadID(td spiffeid.TrustDomain, namespace, name string) (ID, error) {
	return newID(td, KindWorkload, namespace, name)
}

// New returns the identity of a kind that lives outside namespaces.
func New(td spiffeid.TrustDomain, kind Kind, name string) (ID, error) {
	switch kind {
	case KindServer, KindNode, KindUser:
		return newID(td, kind, "", name)
	}
	return ID{}, fmt.Errorf("identity of kind %s needs more than a name: %w", kind, ErrInvalidID)
}

func newID(td spiffeid.TrustDomain, kind Kind, namespace, name string) (ID, error) {
	if err := checkTrustDomain(td); err != nil {
		return ID{}, err
	}
	if kind == KindWorkload {
		if err := CheckName(namespace); err != nil {
			return ID{}, fmt.Errorf("namespace: %w", err)
		}
	}
	if err := CheckName(name); err != nil {
		return ID{}, fmt.Errorf("%s name: %w", kind, err)
	}
	return ID{td: td, kind: kind, namespace: namespace, name: name}, nil
}

func checkTrustDomain(td spiffeid.TrustDomain) error {
	switch {
	case td.IsZero():
		return fmt.Errorf("trust domain is empty: %w", ErrInvalidID)
	case len(td.Name()) > maxTrustDomain:
		return fmt.Errorf("trust domain has %d characters, at most %d are allowed: %w", len(td.Name()), maxTrustDomain, ErrInvalidID)
	}
	return nil
}

// CheckName says whether s may name a server, node, user, namespace or
// workload: 1 to 63 of a-z, 0-9 and "-", beginning and ending with a letter or
// a digit.
func CheckName(s string) error {
	switch {
	case s == "":
		return fmt.Errorf("the name is empty: %w", ErrInvalidID)
	case len(s) > MaxName:
		return fmt.Errorf("%q has %d characters, at most %d are allowed: %w", s[:MaxName]+"…", len(s), MaxName, ErrInvalidID)
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
		case c == '-' && i > 0 && i < len(s)-1:
		case c == '-':
			return fmt.Errorf("%q may not begin or end with \"-\": %w", s, ErrInvalidID)
		default:
			return fmt.Errorf("%q may hold only a-z, 0-9 and \"-\": %w", s, ErrInvalidID)
		}
	}
	return nil
}

// Parse reads the text form, for example "spiffe://example.org/node/edge-1".
func Parse(s string) (ID, error) {
	sid, err := spiffeid.FromString(s)
	if err != nil {
		return ID{}, fmt.Errorf("parse identity %q: %w: %w", shorten(s), ErrInvalidID, err)
	}
	return FromSPIFFE(sid)
}

// FromSPIFFE reads a SPIFFE id that has one of the four forms of this system.
func FromSPIFFE(sid spiffeid.ID) (ID, error) {
	bad := func(err error) (ID, error) {
		return ID{}, fmt.Errorf("parse identity %q: %w", shorten(sid.String()), err)
	}
	parts := strings.Split(strings.TrimPrefix(sid.Path(), "/"), "/")
	var id ID
	var err error
	switch {
	case len(parts) == 2 && parts[0] == "server":
		id, err = ServerID(sid.TrustDomain(), parts[1])
	case len(parts) == 2 && parts[0] == "node":
		id, err = NodeID(sid.TrustDomain(), parts[1])
	case len(parts) == 2 && parts[0] == "user":
		id, err = UserID(sid.TrustDomain(), parts[1])
	case len(parts) == 4 && parts[0] == "ns" && parts[2] == "workload":
		id, err = WorkloadID(sid.TrustDomain(), parts[1], parts[3])
	default:
		err = fmt.Errorf("the path is none of /server/ID, /node/ID, /user/NAME, /ns/NS/workload/NAME: %w", ErrInvalidID)
	}
	if err != nil {
		return bad(err)
	}
	return id, nil
}

func shorten(s string) string {
	const most = 120
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

// Kind returns what the identity stands for.
func (id ID) Kind() Kind { return id.kind }

// TrustDomain returns the trust domain; zero for the zero ID.
func (id ID) TrustDomain() spiffeid.TrustDomain { return id.td }

// Namespace returns the namespace of a workload, else "".
func (id ID) Namespace() string { return id.namespace }

// Name returns the last part: the server's, node's or workload's id or the
// user's name.
func (id ID) Name() string { return id.name }

// IsZero says whether id is no identity.
func (id ID) IsZero() bool { return id == ID{} }

// SPIFFE returns the SPIFFE id; zero for the zero ID.
func (id ID) SPIFFE() spiffeid.ID {
	if id.IsZero() {
		return spiffeid.ID{}
	}
	// A valid ID has a valid path, so this cannot fail.
	sid, _ := spiffeid.FromPath(id.td, id.path())
	return sid
}

func (id ID) path() string {
	if id.kind == KindWorkload {
		return "/ns/" + id.namespace + "/workload/" + id.name
	}
	return "/" + id.kind.String() + "/" + id.name
}

// String returns the text form; "" for the zero ID.
func (id ID) String() string {
	if id.IsZero() {
		return ""
	}
	return "spiffe://" + id.td.Name() + id.path()
}

// MarshalText returns the text form.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads the text form; empty text gives the zero ID.
func (id *ID) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*id = ID{}
		return nil
	}
	parsed, err := Parse(string(b))
	if err != nil {
		return err
	}
	*id = parsed
	return nil
}
