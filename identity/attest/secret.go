package attest

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
)

// secretSize is the length of a token's secret in bytes.
const secretSize = 32

// redacted is all that a Secret ever prints.
const redacted = "[secret]"

// Secret is the secret of a join token. It cannot be printed: fmt, JSON, text
// and slog all show "[secret]". The zero value is no secret.
type Secret struct {
	// Where fmt may not call methods, in an unexported field, it prints what is
	// there. It follows one pointer to an array, for a verb that does not fit,
	// but never two.
	b **[secretSize]byte
}

// NewSecret makes a random secret.
func NewSecret() Secret {
	var b [secretSize]byte
	rand.Read(b[:]) // never fails
	p := &b
	return Secret{b: &p}
}

// SecretFromBytes takes a secret off the wire.
func SecretFromBytes(raw []byte) (Secret, error) {
	if len(raw) != secretSize {
		return Secret{}, fmt.Errorf("the secret of a join token has %d bytes, not %d", secretSize, len(raw))
	}
	b := [secretSize]byte(raw)
	p := &b
	return Secret{b: &p}, nil
}

// Reveal returns a copy of the bytes, to be put on an authenticated connection
// and nowhere else; nil for the zero value.
func (s Secret) Reveal() []byte {
	if s.b == nil {
		return nil
	}
	return append([]byte(nil), (*s.b)[:]...)
}

// IsZero says whether there is no secret.
func (s Secret) IsZero() bool { return s.b == nil }

// HashSecret is what servers store of a secret: "sha256:" and hex. The secret
// is random and long, so a plain hash does not let anyone guess it.
func HashSecret(s Secret) string {
	h := sha256.New()
	io.WriteString(h, "redoubt join token secret v1\x00")
	if s.b != nil {
		h.Write((*s.b)[:])
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

// matches compares in constant time.
func (s Secret) matches(hash string) bool {
	return s.b != nil && subtle.ConstantTimeCompare([]byte(HashSecret(s)), []byte(hash)) == 1
}

// Format implements fmt.Formatter, for every verb.
func (s Secret) Format(f fmt.State, _ rune) { io.WriteString(f, redacted) }

// String implements fmt.Stringer.
func (s Secret) String() string { return redacted }

// GoString implements fmt.GoStringer.
func (s Secret) GoString() string { return redacted }

// MarshalText implements encoding.TextMarshaler, and so covers JSON and YAML.
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalJSON implements json.Marshaler.
func (s Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// LogValue implements slog.LogValuer.
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }
