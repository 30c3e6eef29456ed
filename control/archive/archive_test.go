package archive

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestANewerVersionsFileIsNotCalledDamaged(t *testing.T) {
	held := []byte("what this version cannot read")
	sum := sha256.Sum256(held)
	var file bytes.Buffer
	if err := Write(&file, Meta{Version: "9.0", FeatureLevel: 8, Size: int64(len(held)), SHA256: hex.EncodeToString(sum[:])}, bytes.NewReader(held)); err != nil {
		t.Fatal(err)
	}
	unreadable := func(r io.Reader) error {
		_, _ = io.Copy(io.Discard, r)
		return errors.New("unknown")
	}
	_, err := Read(bytes.NewReader(file.Bytes()), 7, unreadable)
	if !errors.Is(err, ErrNewer) || errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), `"9.0", of feature level 8; this one knows 7: install`) {
		t.Errorf("it is refused with %v", err)
	}
	if _, err := Read(bytes.NewReader(file.Bytes()), 8, unreadable); !errors.Is(err, ErrDamaged) || errors.Is(err, ErrNewer) {
		t.Errorf("what its own version cannot read: %v", err)
	}
	m, err := Read(bytes.NewReader(file.Bytes()), 8, func(r io.Reader) error {
		got, err := io.ReadAll(r)
		if !bytes.Equal(got, held) {
			t.Errorf("it holds %q", got)
		}
		return err
	})
	if err != nil || m.Version != "9.0" {
		t.Errorf("%+v, %v", m, err)
	}
}
