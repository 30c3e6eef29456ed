package gossip

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"

	"redoubt.dev/redoubt/isolation"
)

// MaxDigest is what memberlist carries about a node, in bytes.
const MaxDigest = 512

// Digest is what a node says about itself by gossip: a hint, proven by
// nothing but the pool's key, which every member has.
type Digest struct {
	Node       isolation.NodeID
	Generation uint64 // of its report
	Classes    ClassSet
	KVM        isolation.KVMVerdict
	Load       uint32 // allocated share of memory, thousandths
	// Leaving: its agent stops in good order. It stays inside the pool.
	Leaving bool
}

// A digest in the pool is a byte that says how it is meant, and the message.
const (
	present = 'p'
	leaving = 'l'
)

// ClassSet is a set of verified classes.
type ClassSet uint32

// With returns s with c.
func (s ClassSet) With(c isolation.Class) ClassSet { return s | 1<<c }

// Has reports whether c is in s.
func (s ClassSet) Has(c isolation.Class) bool { return s&(1<<c) != 0 }

// kvm verdicts on the wire; the zero of both is unknown.
var kvmWire = map[isolation.KVMVerdict]redoubtv1.KvmVerdict{
	isolation.KVMAbsent:      redoubtv1.KvmVerdict_KVM_VERDICT_ABSENT,
	isolation.KVMUnusable:    redoubtv1.KvmVerdict_KVM_VERDICT_UNUSABLE,
	isolation.KVMParavirtual: redoubtv1.KvmVerdict_KVM_VERDICT_PARAVIRTUAL,
	isolation.KVMUsable:      redoubtv1.KvmVerdict_KVM_VERDICT_USABLE,
}

// Proto is d as a session carries it.
func (d Digest) Proto() *redoubtv1.Digest {
	return &redoubtv1.Digest{
		Node: string(d.Node), Generation: d.Generation, Classes: uint32(d.Classes), Kvm: kvmWire[d.KVM], Load: d.Load,
	}
}

// DigestFromProto reads what a session or a member carried; unknown values
// become the unknown of their kind.
func DigestFromProto(p *redoubtv1.Digest) Digest {
	d := Digest{Node: isolation.NodeID(p.GetNode()), Generation: p.GetGeneration(), Load: min(p.GetLoad(), 1000)}
	for _, c := range isolation.Classes() {
		if ClassSet(p.GetClasses()).Has(c) {
			d.Classes = d.Classes.With(c)
		}
	}
	for v, w := range kvmWire {
		if w == p.GetKvm() {
			d.KVM = v
		}
	}
	return d
}

// Encode returns at most MaxDigest bytes.
func (d Digest) Encode() ([]byte, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(d.Proto())
	if err != nil {
		return nil, fmt.Errorf("encode digest of %s: %w", d.Node, err)
	}
	mark := byte(present)
	if d.Leaving {
		mark = leaving
	}
	b = append([]byte{mark}, b...)
	if len(b) > MaxDigest {
		return nil, fmt.Errorf("encode digest of %s: %d bytes, at most %d are carried", d.Node, len(b), MaxDigest)
	}
	return b, nil
}

// DecodeDigest reads what Encode wrote. Whatever the bytes are, it is an error
// or a digest with values in their ranges.
func DecodeDigest(b []byte) (Digest, error) {
	if len(b) > MaxDigest {
		return Digest{}, fmt.Errorf("decode digest: %d bytes, at most %d are carried", len(b), MaxDigest)
	}
	if len(b) == 0 || b[0] != present && b[0] != leaving {
		return Digest{}, errors.New("decode digest: it begins with none of the known marks")
	}
	p := &redoubtv1.Digest{}
	if err := proto.Unmarshal(b[1:], p); err != nil {
		return Digest{}, errors.New("decode digest: it is not a message of this kind")
	}
	if p.GetNode() == "" {
		return Digest{}, errors.New("decode digest: it names no node")
	}
	d := DigestFromProto(p)
	d.Leaving = b[0] == leaving
	return d, nil
}
