package store

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// Update is one change of the node's assignments.
type Update struct {
	Complete bool   // replaces everything
	From     uint64 // of an incremental one: the version it applies to
	Version  uint64
	Updated  []*redoubtv1.Assignment
	Removed  []string
}

// MaxAssignments and MaxAssignmentBytes bound what is held, whatever a server
// says: a node runs 253 instances, and stops as many at a time as it is told to.
const MaxAssignments, MaxAssignmentBytes = 4096, 64 << 20

// SaveAssignments makes u durable. An incremental update that does not follow
// what is held is ErrGap and changes nothing.
func (s *Store) SaveAssignments(u Update) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !u.Complete && (!s.meta.Complete || u.From != s.meta.Version) {
		return fmt.Errorf("save assignments: %w: update is from version %d, held is %d", ErrGap, u.From, s.meta.Version)
	}
	next := map[string]*redoubtv1.Assignment{}
	if !u.Complete {
		maps.Copy(next, s.assignments)
	}
	for _, a := range u.Updated {
		if a.GetUid() == "" {
			return fmt.Errorf("save assignments: one of version %d has no uid", u.Version)
		}
		if a.GetNode() != "" && a.GetNode() != s.meta.Node {
			return fmt.Errorf("save assignments: %s is for node %s, this is %s", a.GetUid(), a.GetNode(), s.meta.Node)
		}
		next[a.GetUid()] = proto.CloneOf(a)
	}
	for _, uid := range u.Removed {
		delete(next, uid)
	}
	size := 0
	for _, a := range next {
		size += proto.Size(a)
	}
	if len(next) > MaxAssignments || size > MaxAssignmentBytes {
		return fmt.Errorf("save assignments: version %d is %d of %d MiB; a node takes %d of %d MiB", u.Version, len(next), size>>20, MaxAssignments, MaxAssignmentBytes>>20)
	}
	m := s.meta
	m.Version, m.Complete = u.Version, true
	return s.write(func(tx *bolt.Tx) error {
		b := tx.Bucket(bucketAssignments)
		for uid := range s.assignments {
			if next[uid] == nil {
				if err := b.Delete([]byte(uid)); err != nil {
					return err
				}
			}
		}
		for uid, a := range next {
			if a == s.assignments[uid] {
				continue
			}
			v, err := proto.Marshal(a)
			if err != nil {
				return err
			}
			if err := b.Put([]byte(uid), seal(v)); err != nil {
				return err
			}
		}
		return s.putMeta(tx, m)
	}, func() { s.assignments, s.meta = next, m })
}

// Assignments returns what is held, sorted by uid. The messages are shared:
// they must not be changed.
func (s *Store) Assignments() []*redoubtv1.Assignment {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Values(s.assignments), func(a, b *redoubtv1.Assignment) int {
		return cmp.Compare(a.GetUid(), b.GetUid())
	})
}

// Version of the assignments held; 0 if none were ever saved.
func (s *Store) Version() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.meta.Version
}

// Authoritative reports whether a complete set of assignments was ever saved,
// so that what is not among them is truly not wanted.
func (s *Store) Authoritative() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.meta.Complete
}
