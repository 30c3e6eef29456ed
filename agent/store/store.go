package store

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// Sentinels to branch on.
var (
	ErrDamaged = errors.New("agent store is damaged")
	// ErrCluster: the store holds another cluster's assignments.
	ErrCluster = errors.New("data of another cluster")
	// ErrGap: an incremental update does not follow what is held.
	ErrGap = errors.New("assignments do not follow the version held")
)

const (
	fileName = "agent.db"
	format   = 1
)

var (
	bucketMeta        = []byte("meta")
	bucketAssignments = []byte("assignments")
	bucketFacts       = []byte("facts")
	bucketFleet       = []byte("fleet")
)

// meta is what there is one of.
type meta struct {
	Format     int    `json:"format"`
	Node       string `json:"node"`
	Cluster    string `json:"cluster,omitempty"`
	Version    uint64 `json:"version,omitempty"`
	Complete   bool   `json:"complete,omitempty"`
	Generation uint64 `json:"generation,omitempty"`
	// Report is a hash of the report content that Generation stands for.
	Report string `json:"report,omitempty"`
	Lease  Lease  `json:"lease,omitzero"`
}

// Store is an open agent store. Make one with Open.
type Store struct {
	lock *Lock
	db   *bolt.DB
	path string

	reserve *reserve

	mu          sync.Mutex
	full        bool // the last write found no room
	meta        meta
	assignments map[string]*redoubtv1.Assignment
	facts       map[string]Facts
	fleet       *redoubtv1.FleetUpdate
	watchers    map[chan struct{}]struct{}
}

// Open takes dir and reads everything in it. node must be the one that the
// data was written for.
func Open(dir, node string) (*Store, error) {
	lock, err := AcquireLock(dir)
	if err != nil {
		return nil, err
	}
	s := &Store{
		lock: lock, path: filepath.Join(dir, fileName),
		reserve:     &reserve{path: filepath.Join(dir, reserveFile), size: reserveBytes},
		assignments: map[string]*redoubtv1.Assignment{},
		facts:       map[string]Facts{},
		fleet:       &redoubtv1.FleetUpdate{},
		watchers:    map[chan struct{}]struct{}{},
	}
	if err := s.open(node); err != nil {
		_ = lock.Release()
		return nil, err
	}
	s.reserve.make()
	return s, nil
}

func (s *Store) open(node string) (err error) {
	// bbolt panics on pages that make no sense.
	defer func() {
		if p := recover(); p != nil {
			err = s.damaged(fmt.Errorf("%v", p))
		}
		if err != nil && s.db != nil {
			_ = s.db.Close()
		}
	}()
	if fi, err := os.Stat(s.path); err == nil && fi.Size() > 0 && fi.Size() < int64(4*os.Getpagesize()) {
		return s.damaged(fmt.Errorf("the file has only %d bytes", fi.Size()))
	}
	s.db, err = bolt.Open(s.path, 0o600, &bolt.Options{
		Timeout: time.Second, NoFreelistSync: true, FreelistType: bolt.FreelistMapType,
	})
	if err != nil {
		if errno := syscall.Errno(0); errors.As(err, &errno) {
			return fmt.Errorf("open agent store %s: %w", s.path, err)
		}
		return s.damaged(err)
	}
	if err := s.load(); err != nil {
		return err
	}
	if s.meta.Format == 0 {
		return s.write(func(tx *bolt.Tx) error {
			for _, b := range [][]byte{bucketMeta, bucketAssignments, bucketFacts, bucketFleet} {
				if _, err := tx.CreateBucketIfNotExists(b); err != nil {
					return err
				}
			}
			return s.putMeta(tx, meta{Format: format, Node: node})
		}, func() { s.meta = meta{Format: format, Node: node} })
	}
	if s.meta.Format != format {
		return fmt.Errorf("agent store %s has format %d, this version reads %d: use the version that wrote it", s.path, s.meta.Format, format)
	}
	if s.meta.Node != node {
		return fmt.Errorf("agent store %s belongs to node %s, this agent is %s: give it a data directory of its own", s.path, s.meta.Node, node)
	}
	return nil
}

func (s *Store) damaged(err error) error {
	return fmt.Errorf("%w: %s: %w; move that file away and start again: running containers are left alone, and their assignments come back from the control plane", ErrDamaged, s.path, err)
}

func (s *Store) load() error {
	return s.db.View(func(tx *bolt.Tx) error {
		each := func(bucket []byte, f func(key string, value []byte) error) error {
			b := tx.Bucket(bucket)
			if b == nil {
				return nil
			}
			return b.ForEach(func(k, v []byte) error {
				plain, err := unseal(v)
				if err == nil {
					err = f(string(k), plain)
				}
				if err != nil {
					return s.damaged(fmt.Errorf("%s %q: %w", bucket, k, err))
				}
				return nil
			})
		}
		return errors.Join(
			each(bucketMeta, func(_ string, v []byte) error { return json.Unmarshal(v, &s.meta) }),
			each(bucketFleet, func(_ string, v []byte) error { return proto.Unmarshal(v, s.fleet) }),
			each(bucketFacts, func(k string, v []byte) error {
				var f Facts
				if err := json.Unmarshal(v, &f); err != nil {
					return err
				}
				s.facts[k] = f
				return nil
			}),
			each(bucketAssignments, func(k string, v []byte) error {
				a := &redoubtv1.Assignment{}
				if err := proto.Unmarshal(v, a); err != nil {
					return err
				}
				s.assignments[k] = a
				return nil
			}),
		)
	})
}

// Close gives the data directory back.
func (s *Store) Close() error {
	return errors.Join(s.db.Close(), s.lock.Release())
}

// write runs f in a transaction and, once it is on disk, commit, and tells the
// watchers. The caller holds mu, or is open.
func (s *Store) write(f func(*bolt.Tx) error, commit func()) error {
	err := s.db.Update(f)
	if full(err) && s.reserve.give() {
		err = s.db.Update(f)
	}
	s.full = full(err)
	if err != nil {
		if s.full {
			return fmt.Errorf("write agent store %s: %w: free space on that file system; nothing that was stored is lost", s.path, err)
		}
		return fmt.Errorf("write agent store %s: %w", s.path, err)
	}
	commit()
	for ch := range s.watchers {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
	return nil
}

func (s *Store) putMeta(tx *bolt.Tx, m meta) error {
	v, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return tx.Bucket(bucketMeta).Put([]byte("meta"), seal(v))
}

// setMeta changes what there is one of.
func (s *Store) setMeta(change func(*meta)) error {
	next := s.meta
	change(&next)
	return s.write(func(tx *bolt.Tx) error { return s.putMeta(tx, next) }, func() { s.meta = next })
}

// Watch returns a channel that gets a value soon after any change (values are
// merged), and a function that ends it.
func (s *Store) Watch() (<-chan struct{}, func()) {
	ch := make(chan struct{}, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watchers[ch] = struct{}{}
	return ch, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watchers, ch)
	}
}

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

// PutFacts makes f durable, with the next sequence, and returns it so. Facts
// equal to those held are not written.
func (s *Store) PutFacts(f Facts) (Facts, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	held, ok := s.facts[f.UID]
	f.Sequence = held.Sequence
	if ok && equalFacts(held, f) {
		return held, nil
	}
	f.Sequence++
	v, err := json.Marshal(f)
	if err != nil {
		return held, fmt.Errorf("save facts of %s: %w", f.UID, err)
	}
	err = s.write(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketFacts).Put([]byte(f.UID), seal(v))
	}, func() { s.facts[f.UID] = f })
	if err != nil {
		return held, err
	}
	return f, nil
}

func equalFacts(a, b Facts) bool {
	x, err1 := json.Marshal(a)
	y, err2 := json.Marshal(b)
	return err1 == nil && err2 == nil && string(x) == string(y)
}

// Facts returns what is known of every instance, sorted by uid.
func (s *Store) Facts() []Facts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Values(s.facts), func(a, b Facts) int { return cmp.Compare(a.UID, b.UID) })
}

// DropFacts forgets an instance.
func (s *Store) DropFacts(uid string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.facts[uid]; !ok {
		return nil
	}
	return s.write(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketFacts).Delete([]byte(uid))
	}, func() { delete(s.facts, uid) })
}

// Cluster is the id of the cluster that the data is of, "" before any contact.
func (s *Store) Cluster() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.meta.Cluster
}

// BindCluster ties the store to a cluster; another one is ErrCluster.
func (s *Store) BindCluster(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case id == "":
		return errors.New("bind agent store: the cluster has no id")
	case s.meta.Cluster == id:
		return nil
	case s.meta.Cluster != "":
		return fmt.Errorf("bind agent store: %w: %s is of cluster %s, the server is of %s; to join that one, stop what runs here and start with an empty --data-dir",
			ErrCluster, s.path, s.meta.Cluster, id)
	}
	return s.setMeta(func(m *meta) { m.Cluster = id })
}

// SetFleet keeps what a cold start needs. Empty lists do not replace what is
// held: an update that names no server is a fault, not news.
func (s *Store) SetFleet(f *redoubtv1.FleetUpdate) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := proto.CloneOf(f)
	if len(next.Servers) == 0 {
		next.Servers = s.fleet.Servers
	}
	if len(next.EnrollServers) == 0 {
		next.EnrollServers = s.fleet.EnrollServers
	}
	if len(next.Bundle) == 0 {
		next.Bundle = s.fleet.Bundle
	}
	if len(next.GossipKeys) == 0 {
		next.GossipKeys = s.fleet.GossipKeys
	}
	if proto.Equal(next, s.fleet) {
		return nil
	}
	v, err := proto.Marshal(next)
	if err != nil {
		return fmt.Errorf("save fleet: %w", err)
	}
	return s.write(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketFleet).Put([]byte("fleet"), seal(v))
	}, func() { s.fleet = next })
}

// Fleet returns a copy of what SetFleet kept.
func (s *Store) Fleet() *redoubtv1.FleetUpdate {
	s.mu.Lock()
	defer s.mu.Unlock()
	return proto.CloneOf(s.fleet)
}

// Generation returns the generation of a report whose content hashes to sum:
// the one held if the content is the same, else the next, which is durable
// when it returns.
func (s *Store) Generation(sum string) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.meta.Report == sum && s.meta.Generation > 0 {
		return s.meta.Generation, nil
	}
	if err := s.setMeta(func(m *meta) {
		m.Generation++
		if m.Generation == 1 {
			// The fleet may remember generations of a store that was lost, and
			// never takes a lower one. Seconds outrun any number of changes.
			m.Generation = max(1, uint64(time.Now().Unix()))
		}
		m.Report = sum
	}); err != nil {
		return 0, err
	}
	return s.meta.Generation, nil
}

// SetLease keeps when the control plane last acknowledged the node.
func (s *Store) SetLease(l Lease) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.meta.Lease == l {
		return nil
	}
	return s.setMeta(func(m *meta) { m.Lease = l })
}

// Lease returns what SetLease kept.
func (s *Store) Lease() Lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.meta.Lease
}

// seal puts a checksum before a record.
func seal(v []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE(v)), v...)
}

func unseal(v []byte) ([]byte, error) {
	if len(v) < 4 || binary.BigEndian.Uint32(v) != crc32.ChecksumIEEE(v[4:]) {
		return nil, errors.New("checksum is wrong")
	}
	// bbolt's memory is its own; what is decoded may keep references.
	return slices.Clone(v[4:]), nil
}
