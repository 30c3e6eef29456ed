package state

import (
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
)

// apply is one command being applied. Its View reads what the operations before
// have written.
type apply struct {
	View
	index uint64
	now   time.Time // the leader's stamp
}

func (a *apply) put(table string, obj any)    { insert(a.txn, table, obj) }
func (a *apply) delete(table string, obj any) { remove(a.txn, table, obj) }

// Limits of what enters the state; whoever proposes checks them earlier and
// more politely.
const (
	maxID          = 128
	maxText        = 2048
	maxReport      = 64 << 10
	maxFindings    = 64
	maxCertificate = 16 << 10
	maxAuthorities = 8 // of one server
	maxSiteKeys    = 4
	maxTokenHash   = 64
)

// segment checks an id or name: what is also a segment of a SPIFFE path.
func segment(what, s string) error {
	if s == "" {
		return refuse(codes.InvalidArgument, "%s is empty", what)
	}
	if len(s) > maxID || s == "." || s == ".." {
		return refuse(codes.InvalidArgument, "%s %.40q is no name: at most %d letters, digits, '-', '_' and '.'", what, s, maxID)
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.':
		default:
			return refuse(codes.InvalidArgument, "%s %q is no name: at most %d letters, digits, '-', '_' and '.'", what, s, maxID)
		}
	}
	return nil
}

// segments checks pairs of what and value.
func segments(pairs ...string) error {
	for i := 0; i < len(pairs); i += 2 {
		if err := segment(pairs[i], pairs[i+1]); err != nil {
			return err
		}
	}
	return nil
}

// texts checks pairs of what and a free text.
func texts(pairs ...string) error {
	for i := 0; i < len(pairs); i += 2 {
		if n := len(pairs[i+1]); n > maxText {
			return refuse(codes.InvalidArgument, "%s is %d bytes long, at most %d are kept", pairs[i], n, maxText)
		}
	}
	return nil
}

// instanceUID checks the shape of a minted uid: 20 of [a-z0-9], and not the
// word that breaks a runtime's command line.
func instanceUID(uid string) error {
	ok := len(uid) == 20
	for i := range len(uid) {
		ok = ok && ('a' <= uid[i] && uid[i] <= 'z' || '0' <= uid[i] && uid[i] <= '9')
		ok = ok && !(i+6 <= len(uid) && uid[i:i+6] == "detach")
	}
	if !ok {
		return refuse(codes.InvalidArgument, "uid %.40q is not 20 characters of [a-z0-9]", uid)
	}
	return nil
}

func mebibytes(b int64) string { return fmt.Sprintf("%d MiB", b>>20) }
