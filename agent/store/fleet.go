package store

import (
	"errors"
	"fmt"
	"time"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

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
