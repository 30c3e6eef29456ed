package network

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
)

// lease is what an instance holds until it is detached.
type lease struct {
	Address  netip.Addr `json:"address,omitzero"`
	Ports    []Port     `json:"ports,omitempty"`
	Hostname string     `json:"hostname,omitempty"`
	None     bool       `json:"none,omitempty"`
	Policy   Policy     `json:"policy,omitzero"`
}

// record is what the ledger keeps on disk.
type record struct {
	Node   string       `json:"node"`
	Subnet netip.Prefix `json:"subnet,omitzero"`
	// Last is the address that was handed out last.
	Last   netip.Addr       `json:"last,omitzero"`
	Leases map[string]lease `json:"leases,omitempty"`
	// Sysctls are the host's settings as they were before they were changed,
	// in the order in which to put them back.
	Sysctls []setting `json:"sysctls,omitempty"`
	// Translators are the nft tables of others that gave traffic another source
	// before Sysctls were changed. One that came later may need forwarding.
	Translators []string `json:"translators,omitempty"`
	// Scope names the boot and the namespace that Sysctls belong to; elsewhere
	// they mean nothing.
	Scope string `json:"scope,omitempty"`
}

// ledger is the durable memory of a node's network. A change is on disk before
// it is in the ledger, so what was read from it survives a crash or a power
// cut. The caller serialises.
type ledger struct {
	record
	path string
	// write makes data durable at path; tests make it fail.
	write func(path string, data []byte) error
}

func openLedger(path, node string) (*ledger, error) {
	l := &ledger{record: record{Node: node}, path: path, write: writeDurably}
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return l, nil
	case err != nil:
		return nil, fmt.Errorf("read network state: %w", err)
	}
	if l.record, err = decodeRecord(data); errors.Is(err, errNewer) {
		return nil, fmt.Errorf("network state %s: %w", path, err)
	} else if err != nil {
		return nil, fmt.Errorf("network state %s is damaged: %w; stop this node's instances, remove the file and start again", path, err)
	}
	if l.Node != node {
		return nil, fmt.Errorf("network state %s belongs to node %s, not to %s; use another directory", path, l.Node, node)
	}
	return l, nil
}

// errNewer: left out, a limit of an instance would not hold.
var errNewer = errors.New("a newer version has written it: install that one again, or stop this node's instances first")

// UnmarshalJSON takes nothing of a lease that it does not understand. What a newer
// version notes beside the leases is no reason not to begin.
func (l *lease) UnmarshalJSON(data []byte) error {
	type plain lease
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	err := d.Decode((*plain)(l))
	if err != nil && json.Unmarshal(data, new(plain)) == nil {
		return fmt.Errorf("%w (%w)", errNewer, err)
	}
	return err
}

// decodeRecord accepts only leases that this package could have written.
func decodeRecord(data []byte) (record, error) {
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return record{}, err
	}
	if r.Subnet.IsValid() {
		if err := (Config{Node: r.Node, Dir: "-", Subnet: r.Subnet}).validate(); err != nil {
			return record{}, err
		}
	}
	if r.Last.IsValid() && !r.Last.Is4() {
		return record{}, fmt.Errorf("last address %s is not IPv4", r.Last)
	}
	held := map[netip.Addr]string{}
	for id, l := range r.Leases {
		if err := validID("instance id", id); err != nil {
			return record{}, err
		}
		if err := l.Policy.check(); err != nil {
			return record{}, fmt.Errorf("instance %s: %w", id, err)
		}
		if l.None {
			continue
		}
		if !l.Address.Is4() || !r.Subnet.Contains(l.Address) || l.Address == gateway(r.Subnet) {
			return record{}, fmt.Errorf("instance %s holds %s, which %s does not give out", id, l.Address, r.Subnet)
		}
		if other, ok := held[l.Address]; ok {
			return record{}, fmt.Errorf("instances %s and %s both hold %s", other, id, l.Address)
		}
		held[l.Address] = id
	}
	return r, nil
}

// update applies change to a copy, makes the copy durable and only then keeps it.
func (l *ledger) update(change func(*record)) error {
	next := l.record
	next.Leases = maps.Clone(l.Leases)
	if next.Leases == nil {
		next.Leases = map[string]lease{}
	}
	change(&next)
	data, err := json.MarshalIndent(next, "", "  ")
	if err != nil {
		return fmt.Errorf("encode network state: %w", err)
	}
	if err := l.write(l.path, append(data, '\n')); err != nil {
		return fmt.Errorf("store network state: %w", err)
	}
	l.record = next
	return nil
}

// reserve gives the instance its lease: the address it has, or a free one.
func (l *ledger) reserve(spec Spec) (lease, error) {
	next := lease{Ports: spec.Ports, Hostname: spec.Hostname, None: spec.None, Policy: spec.Policy}
	last := l.Last
	if !spec.None {
		if old := l.Leases[spec.Instance]; old.Address.IsValid() {
			next.Address = old.Address
		} else {
			taken := make(map[netip.Addr]bool, len(l.Leases))
			for _, o := range l.Leases {
				taken[o.Address] = true
			}
			a, err := nextAddress(l.Subnet, l.Last, func(a netip.Addr) bool { return taken[a] })
			if err != nil {
				return lease{}, err
			}
			next.Address, last = a, a
		}
	}
	err := l.update(func(r *record) { r.Leases[spec.Instance], r.Last = next, last })
	return next, err
}

// release forgets the instance.
func (l *ledger) release(instance string) error {
	if _, ok := l.Leases[instance]; !ok {
		return nil
	}
	return l.update(func(r *record) { delete(r.Leases, instance) })
}

// writeDurably replaces path so that after a crash or a power cut it holds
// either the old content or the new.
func writeDurably(path string, data []byte) (err error) {
	dir := filepath.Dir(path)
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(tmp)
		}
	}()
	if _, err = f.Write(data); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(tmp, path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
