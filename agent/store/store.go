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
