package identity

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Files in the directory of a DiskSource. Each has a sibling ".prev" with what
// it held before the last write.
const (
	svidFile   = "svid.pem"   // private key and chain
	bundleFile = "bundle.pem" // authorities, each with its trust domain
	keyFile    = "key.pem"    // the key to enrol with, made once
	prevSuffix = ".prev"
)

// trustDomainHeader says in a bundle whose authority a certificate is.
const trustDomainHeader = "Trust-Domain"

// DiskSource is a Source that lives in a directory, so that a cold start needs
// no network. A Set that returned nil is on disk. Nobody else may write there.
type DiskSource struct {
	MemorySource
	dir string
	log *slog.Logger

	write sync.Mutex // serialises writers; taken before MemorySource.mu
}

// OpenDisk opens or makes the directory and loads what it holds. A file that
// is damaged is logged and its previous content used; with neither left the
// source starts without, as if not enrolled, except that a damaged bundle with
// no previous one is an error: with it, whom to trust would be lost silently.
func OpenDisk(dir string, log *slog.Logger) (*DiskSource, error) {
	if err := MakePrivateDir(dir); err != nil {
		return nil, fmt.Errorf("open identity directory: %w", err)
	}
	d := &DiskSource{dir: dir, log: log}
	svid, err := loadEither(d, svidFile, parseSVID)
	if err != nil {
		return nil, err
	}
	bundles, err := loadEither(d, bundleFile, parseBundles)
	if err != nil {
		return nil, err
	}
	d.svid = svid
	d.bundles = bundles
	return d, nil
}

// loadEither reads a file, or the previous one where the file is damaged or
// missing. It returns the zero T when there never was one.
func loadEither[T any](d *DiskSource, name string, parse func([]byte) (T, error)) (T, error) {
	var zero T
	path := filepath.Join(d.dir, name)
	read := func(p string) (T, error) {
		b, err := ReadPrivate(p)
		if err != nil {
			return zero, err
		}
		v, err := parse(b)
		if err != nil {
			return zero, fmt.Errorf("%s is damaged: %w", p, err)
		}
		return v, nil
	}
	v, err := read(path)
	if err == nil {
		return v, nil
	}
	prev, prevErr := read(path + prevSuffix)
	switch {
	case prevErr == nil:
		d.log.Warn("identity file is unusable, its previous content is used", "file", path, "error", err)
		return prev, nil
	case notExist(err) && notExist(prevErr):
		return zero, nil
	case notExist(err):
		err = prevErr
	}
	return zero, fmt.Errorf("load identity: %w; restore it from a backup, or remove %s to enrol this host anew", err, d.dir)
}

// keep writes name and keeps what it held as its previous content.
func (d *DiskSource) keep(name string, data []byte) error {
	path := filepath.Join(d.dir, name)
	prev := path + prevSuffix
	// Only a sound file may become the fallback.
	if b, err := ReadPrivate(path); err == nil && sound(name, b) {
		if err := os.Remove(prev); err != nil && !notExist(err) {
			return fmt.Errorf("keep previous %s: %w", path, err)
		}
		if err := os.Link(path, prev); err != nil {
			return fmt.Errorf("keep previous %s: %w", path, err)
		}
	}
	return WriteFile(path, data)
}

func sound(name string, b []byte) bool {
	var err error
	if name == bundleFile {
		_, err = parseBundles(b)
	} else {
		_, err = parseSVID(b)
	}
	return err == nil
}

// Dir returns the directory.
func (d *DiskSource) Dir() string { return d.dir }

// Set stores svid durably, then serves it.
func (d *DiskSource) Set(svid *x509svid.SVID) error {
	if err := checkSVID(svid); err != nil {
		return fmt.Errorf("store SVID: %w", err)
	}
	data, err := formatSVID(svid)
	if err != nil {
		return fmt.Errorf("store SVID: %w", err)
	}
	d.write.Lock()
	defer d.write.Unlock()
	if err := d.keep(svidFile, data); err != nil {
		return err
	}
	return d.MemorySource.Set(svid)
}

// SetBundle stores the bundle of b's trust domain durably, then serves it.
// Bundles of other trust domains stay. An empty one is refused with
// ErrEmptyBundle; one that is served already is not written again.
func (d *DiskSource) SetBundle(b *x509bundle.Bundle) error {
	if b == nil || b.Empty() {
		return fmt.Errorf("store trust bundle: %w", ErrEmptyBundle)
	}
	d.write.Lock()
	defer d.write.Unlock()
	all := d.allBundles()
	i := slices.IndexFunc(all, func(o *x509bundle.Bundle) bool { return o.TrustDomain() == b.TrustDomain() })
	switch {
	case i >= 0 && all[i].Equal(b):
		return nil
	case i >= 0:
		all[i] = b
	default:
		all = append(all, b)
	}
	if err := d.keep(bundleFile, formatBundles(all)); err != nil {
		return err
	}
	return d.MemorySource.SetBundle(b)
}

// EnrolmentKey returns the key that this host enrols with, made and stored at
// the first call. It stays the same, so that an enrolment that was cut off can
// be repeated: a join token binds to the first key that it sees.
func (d *DiskSource) EnrolmentKey() (crypto.Signer, error) {
	d.write.Lock()
	defer d.write.Unlock()
	path := filepath.Join(d.dir, keyFile)
	b, err := ReadPrivate(path)
	switch {
	case err == nil:
		key, err := parseKey(b)
		if err != nil {
			return nil, fmt.Errorf("load enrolment key %s: %w; remove %s to enrol this host anew", path, err, d.dir)
		}
		return key, nil
	case !notExist(err):
		return nil, fmt.Errorf("load enrolment key: %w", err)
	}
	key, err := NewKey()
	if err != nil {
		return nil, err
	}
	block, err := keyBlock(key)
	if err != nil {
		return nil, err
	}
	if err := WriteFile(path, pem.EncodeToMemory(block)); err != nil {
		return nil, err
	}
	return key, nil
}

func keyBlock(key crypto.Signer) (*pem.Block, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return &pem.Block{Type: "PRIVATE KEY", Bytes: der}, nil
}

func parseKey(b []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("no private key in it")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a %T cannot sign", key)
	}
	return signer, nil
}

func formatSVID(svid *x509svid.SVID) ([]byte, error) {
	chain, key, err := svid.Marshal()
	if err != nil {
		return nil, err
	}
	return append(key, chain...), nil
}

func parseSVID(b []byte) (*x509svid.SVID, error) {
	if err := wholePEM(b); err != nil {
		return nil, err
	}
	svid, err := x509svid.Parse(b, b)
	if err != nil {
		return nil, err
	}
	return svid, checkSVID(svid)
}

// formatBundles is deterministic: trust domains sorted, authorities in order.
func formatBundles(all []*x509bundle.Bundle) []byte {
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b *x509bundle.Bundle) int {
		return strings.Compare(a.TrustDomain().Name(), b.TrustDomain().Name())
	})
	var buf bytes.Buffer
	for _, b := range all {
		for _, ca := range b.X509Authorities() {
			// Writing to a buffer and a valid header cannot fail.
			_ = pem.Encode(&buf, &pem.Block{
				Type:    "CERTIFICATE",
				Headers: map[string]string{trustDomainHeader: b.TrustDomain().Name()},
				Bytes:   ca.Raw,
			})
		}
	}
	return buf.Bytes()
}

func parseBundles(b []byte) (map[spiffeid.TrustDomain]*x509bundle.Bundle, error) {
	if err := wholePEM(b); err != nil {
		return nil, err
	}
	all := map[spiffeid.TrustDomain]*x509bundle.Bundle{}
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			return all, nil
		}
		td, err := spiffeid.TrustDomainFromString(block.Headers[trustDomainHeader])
		if err != nil {
			return nil, fmt.Errorf("trust domain of an authority: %w", err)
		}
		ca, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		if all[td] == nil {
			all[td] = x509bundle.New(td)
		}
		all[td].AddX509Authority(ca)
	}
}

// wholePEM refuses what is empty or has text outside whole blocks: pem.Decode
// skips a block that is cut off, and a bundle would shrink unnoticed. A cut
// exactly between blocks shows in no way; the rename rules it out.
func wholePEM(b []byte) error {
	rest := bytes.TrimSpace(b)
	if len(rest) == 0 {
		return errors.New("the file is empty")
	}
	for len(rest) > 0 {
		if !bytes.HasPrefix(rest, []byte("-----BEGIN ")) {
			return errors.New("there is something between its PEM blocks")
		}
		block, after := pem.Decode(rest)
		if block == nil {
			return errors.New("it is cut off or not PEM")
		}
		// Decode skips over a broken block to the next good one.
		if used := rest[:len(rest)-len(after)]; bytes.Count(used, []byte("-----BEGIN ")) != 1 {
			return errors.New("one of its PEM blocks is broken")
		}
		rest = bytes.TrimSpace(after)
	}
	return nil
}
