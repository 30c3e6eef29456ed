package attest

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"redoubt.dev/redoubt/identity"
)

const (
	tokenPrefix   = "rdt1_"
	tokenChecksum = 4
	// maxToken bounds what Parse looks at; a token with many pins and
	// addresses stays far below.
	maxToken = 16 << 10
	idSize   = 8
)

var (
	// ErrNotToken: the text is no join token at all.
	ErrNotToken = errors.New("not a join token")
	// ErrDamagedToken: the text is a join token that was cut or altered.
	ErrDamagedToken = errors.New("the join token is damaged")
)

// Token is what a new host needs to join: whom to trust, and what to show.
type Token struct {
	ID          string // names the token, not secret
	Secret      Secret
	TrustDomain spiffeid.TrustDomain
	Pins        []string      // "sha256:…" of every authority's key, at least one
	Role        identity.Kind // server or node
	// Name, if set, is the only name that may join with the token.
	Name string
	// Site, if set, is the site that a node is put in.
	Site    string
	Expires time.Time // whole seconds
	// Addresses of servers to join at, host:port; may be empty.
	Addresses []string
}

// wireToken is the JSON in a token. Field names are short since people paste
// tokens. Within the version that the prefix names, it does not change.
type wireToken struct {
	ID        string   `json:"i"`
	Secret    []byte   `json:"s"`
	Domain    string   `json:"t"`
	Pins      [][]byte `json:"p"`
	Role      string   `json:"r"`
	Name      string   `json:"n,omitempty"`
	Site      string   `json:"l,omitempty"`
	Expires   int64    `json:"x"`
	Addresses []string `json:"a,omitempty"`
}

// NewTokenID makes a random name for a token.
func NewTokenID() string {
	var b [idSize]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// Validate says what is wrong with t, if anything.
func (t Token) Validate() error {
	if err := identity.CheckName(t.ID); err != nil {
		return fmt.Errorf("id of join token: %w", err)
	}
	if t.Secret.IsZero() {
		return errors.New("join token has no secret")
	}
	if t.TrustDomain.IsZero() {
		return errors.New("join token has no trust domain")
	}
	if len(t.Pins) == 0 {
		return errors.New("join token pins no authority")
	}
	for _, p := range t.Pins {
		if _, err := parsePin(p); err != nil {
			return err
		}
	}
	if t.Role != identity.KindServer && t.Role != identity.KindNode {
		return fmt.Errorf("join token is for a %s, it can be for a server or a node", t.Role)
	}
	for _, name := range []string{t.Name, t.Site} {
		if name == "" {
			continue
		}
		if err := identity.CheckName(name); err != nil {
			return fmt.Errorf("name in join token: %w", err)
		}
	}
	if t.Expires.IsZero() {
		return errors.New("join token has no expiry")
	}
	return nil
}

func parsePin(pin string) ([]byte, error) {
	h, ok := strings.CutPrefix(pin, "sha256:")
	raw, err := hex.DecodeString(h)
	if !ok || err != nil || len(raw) != sha256.Size {
		return nil, fmt.Errorf("pin %q is not sha256: and 64 hex digits", pin)
	}
	return raw, nil
}

// Encode returns the text to give to the new host. It holds the secret.
func (t Token) Encode() (string, error) {
	if err := t.Validate(); err != nil {
		return "", err
	}
	w := wireToken{
		ID: t.ID, Secret: t.Secret.Reveal(), Domain: t.TrustDomain.Name(), Role: t.Role.String(),
		Name: t.Name, Site: t.Site, Expires: t.Expires.Unix(), Addresses: t.Addresses,
	}
	for _, p := range t.Pins {
		raw, err := parsePin(p)
		if err != nil {
			return "", err
		}
		w.Pins = append(w.Pins, raw)
	}
	payload, err := json.Marshal(w)
	if err != nil {
		return "", fmt.Errorf("encode join token %s: %w", t.ID, err)
	}
	// The length tells a cut from an alteration, the checksum finds both.
	data := binary.BigEndian.AppendUint16(nil, uint16(len(payload)))
	data = append(data, payload...)
	sum := sha256.Sum256(data)
	text := tokenPrefix + base64.RawURLEncoding.EncodeToString(append(data, sum[:tokenChecksum]...))
	if len(text) > maxToken {
		return "", fmt.Errorf("encode join token %s: it has %d characters with %d pins and %d addresses, at most %d are allowed", t.ID, len(text), len(t.Pins), len(t.Addresses), maxToken)
	}
	return text, nil
}

// ParseToken reads the text of a token. White space, which terminals and mail
// put in, is ignored. Errors wrap ErrNotToken or ErrDamagedToken, say what to
// do, and hold nothing of the text. An expired token parses: the server is who
// judges time.
func ParseToken(text string) (Token, error) {
	if len(text) > 2*maxToken {
		return Token{}, fmt.Errorf("%w: the text is too long; give the one line that join-token printed", ErrNotToken)
	}
	text = strings.Join(strings.Fields(text), "")
	if text == "" {
		return Token{}, fmt.Errorf("%w: the text is empty; make one with: redoubt node join-token", ErrNotToken)
	}
	body, ok := strings.CutPrefix(text, tokenPrefix)
	if !ok {
		if strings.HasPrefix(text, "rdt") {
			if _, _, ok := strings.Cut(text, "_"); ok {
				return Token{}, fmt.Errorf("%w: it is of another version than %s; make one with a server of this host's version", ErrNotToken, strings.TrimSuffix(tokenPrefix, "_"))
			}
		}
		if strings.HasPrefix(tokenPrefix, text) {
			return Token{}, cutOff()
		}
		return Token{}, fmt.Errorf("%w: it does not begin with %s; make one with: redoubt node join-token", ErrNotToken, tokenPrefix)
	}
	data, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if err != nil {
		var at base64.CorruptInputError
		if errors.As(err, &at) && int(at) < len(body) && !isBase64URL(body[at]) {
			return Token{}, fmt.Errorf("%w: character %d cannot be in a token; copy it again", ErrDamagedToken, len(tokenPrefix)+int(at)+1)
		}
		return Token{}, cutOff()
	}
	if len(data) < 2 {
		return Token{}, cutOff()
	}
	size := int(binary.BigEndian.Uint16(data))
	switch want := 2 + size + tokenChecksum; {
	case len(data) < want:
		return Token{}, cutOff()
	case len(data) > want:
		return Token{}, fmt.Errorf("%w: something is appended to it; copy just the token", ErrDamagedToken)
	}
	sum := sha256.Sum256(data[:2+size])
	if !bytes.Equal(sum[:tokenChecksum], data[2+size:]) {
		return Token{}, fmt.Errorf("%w: a character was altered; copy it again", ErrDamagedToken)
	}
	return decodeToken(data[2 : 2+size])
}

func cutOff() error {
	return fmt.Errorf("%w: it is cut off; copy the whole of it", ErrDamagedToken)
}

func isBase64URL(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_'
}

// decodeToken reads the payload of a sound token. Its errors quote nothing.
func decodeToken(payload []byte) (Token, error) {
	malformed := fmt.Errorf("%w: its content is malformed; make a new one with: redoubt node join-token", ErrDamagedToken)
	var w wireToken
	dec := json.NewDecoder(bytes.NewReader(payload))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&w); err != nil {
		return Token{}, malformed
	}
	if _, err := dec.Token(); err != io.EOF {
		return Token{}, malformed
	}
	secret, err := SecretFromBytes(w.Secret)
	if err != nil {
		return Token{}, malformed
	}
	td, err := spiffeid.TrustDomainFromString(w.Domain)
	if err != nil || td.Name() != w.Domain {
		return Token{}, malformed
	}
	role, err := identity.ParseKind(w.Role)
	if err != nil {
		return Token{}, malformed
	}
	t := Token{ID: w.ID, Secret: secret, TrustDomain: td, Role: role, Name: w.Name, Site: w.Site, Expires: time.Unix(w.Expires, 0).UTC(), Addresses: w.Addresses}
	for _, p := range w.Pins {
		t.Pins = append(t.Pins, "sha256:"+hex.EncodeToString(p))
	}
	if err := t.Validate(); err != nil {
		return Token{}, malformed
	}
	return t, nil
}

// String names the token without its secret.
func (t Token) String() string {
	return fmt.Sprintf("join token %s for a %s, expires %s", t.ID, t.Role, t.Expires.UTC().Format(time.RFC3339))
}

// LogValue implements slog.LogValuer.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// Store returns what a server keeps of the token.
func (t Token) Store() Stored {
	return Stored{ID: t.ID, SecretHash: HashSecret(t.Secret), Role: t.Role, Name: t.Name, Site: t.Site, Expires: t.Expires}
}
