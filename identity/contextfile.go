package identity

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// contextType is the PEM type of the first block of a context file.
const contextType = "REDOUBT CONTEXT"

// File is all that a person needs to reach a fleet.
type File struct {
	Addresses []string // of servers, host:port
	SVID      *x509svid.SVID
	Bundle    *bundle
}

// Source returns a source that serves what the file holds.
func (f File) Source() *MemorySource { return NewMemorySource(f.SVID, f.Bundle) }

type contextHeader struct {
	Addresses   []string `json:"addresses"`
	TrustDomain string   `json:"trustDomain"`
}

// SaveFile writes f as one PEM file, durably and with mode 0600: a header with
// the addresses, the key, its chain, then the authorities.
func SaveFile(path string, f File) error {
	if err := checkSVID(f.SVID); err != nil {
		return fmt.Errorf("save %s: %w", path, err)
	}
	if f.Bundle == nil || f.Bundle.Empty() {
		return fmt.Errorf("save %s: %w", path, ErrEmptyBundle)
	}
	head, err := json.Marshal(contextHeader{Addresses: f.Addresses, TrustDomain: f.Bundle.TrustDomain().Name()})
	if err != nil {
		return fmt.Errorf("save %s: %w", path, err)
	}
	data := pem.EncodeToMemory(&pem.Block{Type: contextType, Bytes: head})
	svid, err := formatSVID(f.SVID)
	if err != nil {
		return fmt.Errorf("save %s: %w", path, err)
	}
	data = append(data, svid...)
	return WriteFile(path, append(data, formatBundles([]*bundle{f.Bundle})...))
}

// LoadFile reads what SaveFile wrote. It refuses a file that others can read.
func LoadFile(path string) (File, error) {
	b, err := ReadPrivate(path)
	if err != nil {
		return File{}, fmt.Errorf("load context: %w", err)
	}
	f, err := parseFile(b)
	if err != nil {
		return File{}, fmt.Errorf("load context %s: %w", path, err)
	}
	return f, nil
}

func parseFile(b []byte) (File, error) {
	if err := wholePEM(b); err != nil {
		return File{}, err
	}
	block, rest := pem.Decode(b)
	if block == nil || block.Type != contextType {
		return File{}, errors.New("it is not a context file of redoubt")
	}
	var head contextHeader
	dec := json.NewDecoder(bytes.NewReader(block.Bytes))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&head); err != nil {
		return File{}, fmt.Errorf("its header: %w", err)
	}
	td, err := spiffeid.TrustDomainFromString(head.TrustDomain)
	if err != nil {
		return File{}, fmt.Errorf("its trust domain: %w", err)
	}
	// Authorities carry a header that the certificates of the SVID do not.
	var own, authorities []byte
	for {
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Headers[trustDomainHeader] != "" {
			authorities = append(authorities, pem.EncodeToMemory(block)...)
		} else {
			own = append(own, pem.EncodeToMemory(block)...)
		}
	}
	svid, err := parseSVID(own)
	if err != nil {
		return File{}, fmt.Errorf("its key and SVID: %w", err)
	}
	bundles, err := parseBundles(authorities)
	if err != nil {
		return File{}, fmt.Errorf("its trust bundle: %w", err)
	}
	if bundles[td] == nil {
		return File{}, fmt.Errorf("its trust bundle has no authority of %s", td.Name())
	}
	return File{Addresses: head.Addresses, SVID: svid, Bundle: bundles[td]}, nil
}
