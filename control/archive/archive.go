// Package archive is the file that `redoubt operator snapshot save` writes: a
// gzipped tar with meta.json and state.bin, which holds a snapshot of the
// replicated state as control/state writes it.
//
// It promises that what Read hands out is what Write was given, or an error:
// state.bin is held against the length and the SHA-256 in meta.json, and its
// reader must not use what it read before Read has returned.
//
// It leaves to others what the state means, and who may have it: it holds no
// private key, but it holds gossip keys and hashes of join tokens.
package archive

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

const (
	// Format is the newest that is written and read.
	Format = 1
	// MaxState bounds the state in a file, bytes.
	MaxState = 4 << 30
	maxMeta  = 64 << 10

	metaName, stateName = "meta.json", "state.bin"
)

// Meta says what a file holds.
type Meta struct {
	Format      int    `json:"format"`
	ClusterID   string `json:"cluster_id"`
	TrustDomain string `json:"trust_domain"`
	// Index and Term of the last log entry that is in it.
	Index uint64 `json:"index"`
	Term  uint64 `json:"term"`
	// Server that wrote it, its version and its feature level.
	Server       string    `json:"server"`
	Version      string    `json:"version"`
	FeatureLevel uint32    `json:"feature_level"`
	Created      time.Time `json:"created"`
	// Size and SHA256 of the state, bytes and hexadecimal.
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// ErrDamaged: the file is not what was written.
var ErrDamaged = errors.New("the snapshot file is damaged")

// ErrNewer: the file is of a newer version, which must read it.
var ErrNewer = errors.New("the snapshot is of a newer version")

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s; use another copy", ErrDamaged, fmt.Sprintf(format, args...))
}

// Write writes a file of m and the state, which must have m's size and hash.
func Write(w io.Writer, m Meta, state io.Reader) error {
	m.Format = Format
	meta, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	if m.Size < 0 || m.Size > MaxState {
		return fmt.Errorf("write snapshot: a state of %d bytes: at most %d", m.Size, int64(MaxState))
	}
	z := gzip.NewWriter(w)
	t := tar.NewWriter(z)
	if err := t.WriteHeader(&tar.Header{Name: metaName, Mode: 0o600, Size: int64(len(meta)), ModTime: m.Created}); err != nil {
		return err
	}
	if _, err := t.Write(meta); err != nil {
		return err
	}
	if err := t.WriteHeader(&tar.Header{Name: stateName, Mode: 0o600, Size: m.Size, ModTime: m.Created}); err != nil {
		return err
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(t, sum), io.LimitReader(state, m.Size+1))
	if err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	if n != m.Size || hex.EncodeToString(sum.Sum(nil)) != m.SHA256 {
		return damaged("%d bytes of state arrived, with another hash than the server sent", n)
	}
	return errors.Join(t.Close(), z.Close())
}

// Read reads a file. It gives the state to restore, which reads it to its end;
// only when Read returns without an error was it whole. A file of a feature level
// above level is ErrNewer, and its state is not touched.
func Read(r io.Reader, level uint32, restore func(io.Reader) error) (Meta, error) {
	var m Meta
	z, err := gzip.NewReader(r)
	if err != nil {
		return m, damaged("it is no gzip file (%v)", err)
	}
	t := tar.NewReader(z)
	h, err := t.Next()
	if err != nil || h.Name != metaName || h.Size > maxMeta {
		return m, damaged("it does not begin with %s (%v)", metaName, err)
	}
	meta, err := io.ReadAll(t)
	if err != nil {
		return m, damaged("%v", err)
	}
	if err := json.Unmarshal(meta, &m); err != nil {
		return m, damaged("%s: %v", metaName, err)
	}
	if m.Format != Format {
		return m, fmt.Errorf("the snapshot file has format %d, this version reads %d", m.Format, Format)
	}
	if m.FeatureLevel > level {
		return m, fmt.Errorf("%w: %.40q, of feature level %d; this one knows %d: install that version or a newer one", ErrNewer, m.Version, m.FeatureLevel, level)
	}
	h, err = t.Next()
	if err != nil || h.Name != stateName || h.Size != m.Size || m.Size > MaxState {
		return m, damaged("%s is missing or of another length (%v)", stateName, err)
	}
	sum := sha256.New()
	state := io.TeeReader(t, sum)
	if err := restore(state); err != nil {
		return m, damaged("%s: %v", stateName, err)
	}
	if _, err := io.Copy(io.Discard, state); err != nil {
		return m, damaged("%s: %v", stateName, err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != m.SHA256 {
		return m, damaged("%s has SHA-256 %s, it was written with %s", stateName, got, m.SHA256)
	}
	return m, nil
}
