package attest

import (
	"errors"
	"fmt"
	"time"

	"redoubt.dev/redoubt/identity"
)

// Reasons to refuse an enrolment. What the host is told is the error's text.
var (
	// ErrUnknownToken: no such token, or its secret is wrong. The two are not
	// told apart, so that ids of tokens cannot be guessed.
	ErrUnknownToken = errors.New("the join token is not known here: make a new one with: redoubt node join-token")
	// ErrTokenExpired: the token's time is over.
	ErrTokenExpired = errors.New("the join token has expired: make a new one with: redoubt node join-token")
	// ErrRevoked: an operator withdrew the token or the key.
	ErrRevoked = errors.New("it was revoked")
	// ErrOtherKey: another key has enrolled with the token.
	ErrOtherKey = errors.New("the join token was used by another key: make a new one with: redoubt node join-token; if nobody else should have used it, revoke what joined with it")
	// ErrOtherName: the token is for, or was used under, another name.
	ErrOtherName = errors.New("the join token is for another name")
	// ErrRole: the token is for another kind of member.
	ErrRole = errors.New("the join token is for another role")
)

// Stored is what servers replicate of a token. It holds nothing secret.
type Stored struct {
	ID         string
	SecretHash string
	Role       identity.Kind
	Name       string // "" while any name may join
	Site       string
	Expires    time.Time
	Revoked    bool
	// BoundKey is the KeyHash that enrolled, "" before; it never changes after.
	BoundKey string
	// BoundName is the name that BoundKey enrolled under.
	BoundName string
}

// Presented is what a host shows to enrol.
type Presented struct {
	TokenID string
	Secret  Secret
	KeyHash string // of the key that the CSR proves possession of
	Role    identity.Kind
	Name    string
}

// Verify says whether the host may enrol now; nil means yes. It does not bind
// the key: propose that, and let Bind decide when it is applied.
func Verify(stored Stored, p Presented, now time.Time) error {
	// The secret comes first: without it nothing about the token is told.
	if p.TokenID != stored.ID || !p.Secret.matches(stored.SecretHash) {
		return fmt.Errorf("enrol %s: %w", p.Name, ErrUnknownToken)
	}
	switch {
	case stored.Revoked:
		return fmt.Errorf("enrol %s: join token %s: %w", p.Name, stored.ID, ErrRevoked)
	case !now.Before(stored.Expires):
		return fmt.Errorf("enrol %s: join token %s ended at %s: %w", p.Name, stored.ID, stored.Expires.UTC().Format(time.RFC3339), ErrTokenExpired)
	case p.Role != stored.Role:
		return fmt.Errorf("enrol %s as a %s: join token %s is for a %s: %w", p.Name, p.Role, stored.ID, stored.Role, ErrRole)
	}
	_, err := stored.Bind(p.KeyHash, p.Name)
	return err
}

// Bind returns s bound to the key and name, or the reason why it cannot be. It
// depends on its arguments alone, so that replicated state may call it. Binding
// again what is bound changes nothing.
func (s Stored) Bind(keyHash, name string) (Stored, error) {
	if _, err := parsePin(keyHash); err != nil {
		return s, fmt.Errorf("enrol %s: key of the request: %w", name, err)
	}
	if err := identity.CheckName(name); err != nil {
		return s, fmt.Errorf("enrol: %w", err)
	}
	switch {
	case s.Revoked:
		return s, fmt.Errorf("enrol %s: join token %s: %w", name, s.ID, ErrRevoked)
	case s.BoundKey != "" && s.BoundKey != keyHash:
		return s, fmt.Errorf("enrol %s: join token %s: %w", name, s.ID, ErrOtherKey)
	case s.Name != "" && s.Name != name:
		return s, fmt.Errorf("enrol %s: join token %s is for %s: %w", name, s.ID, s.Name, ErrOtherName)
	case s.BoundName != "" && s.BoundName != name:
		return s, fmt.Errorf("enrol %s: join token %s was used for %s: %w", name, s.ID, s.BoundName, ErrOtherName)
	}
	s.BoundKey, s.BoundName = keyHash, name
	return s, nil
}
