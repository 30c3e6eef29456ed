package state

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/hashicorp/go-memdb"

	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/isolation"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

const (
	tableMeta        = "meta"
	tableServers     = "servers"
	tableAuthorities = "authorities"
	tableRoles       = "roles"
	tableTokens      = "tokens"
	tableNodes       = "nodes"
	tableWorkloads   = "workloads"
	tableInstances   = "instances"
	tableSiteKeys    = "site-keys"
	tableApplied     = "applied"
	tableEvents      = "events"
	// tableTombstones is derived and in no snapshot: which assignments were
	// removed from which node, within the last TombstoneWindow log entries.
	tableTombstones = "tombstones"
	// tableEventScopes is derived and in no snapshot: how many events are kept
	// of what has a bound.
	tableEventScopes = "event-scopes"

	indexID       = "id"
	indexSite     = "site"
	indexNode     = "node"
	indexWorkload = "workload"
	indexName     = "name"
	indexLog      = "log"
	indexObject   = "object"
	indexSpace    = "namespace"
	indexSame     = "same"
)

// replicated are the tables of a snapshot, in its order.
var replicated = []string{
	tableServers, tableAuthorities, tableRoles, tableTokens, tableNodes,
	tableWorkloads, tableInstances, tableSiteKeys, tableApplied, tableEvents,
}

// meta is the one object of tableMeta.
type meta struct {
	index   uint64
	cluster Cluster
	// floor: removals at or before this index are no longer known.
	floor uint64
	// events: they are kept. The sequence is of the newest one; those up to
	// eventsForgotten may be gone.
	events                         bool
	eventSequence, eventsForgotten uint64
}

type tombstone struct {
	node  isolation.NodeID
	uid   string
	index uint64
}

// key joins parts so that none is a prefix of another's key; parts hold no NUL
// (validSegment).
func key(parts ...string) []byte {
	n := 0
	for _, p := range parts {
		n += len(p) + 1
	}
	k := make([]byte, 0, n)
	for _, p := range parts {
		k = append(append(k, p...), 0)
	}
	return k
}

func logKey(i uint64, parts ...string) []byte {
	return append(binary.BigEndian.AppendUint64(nil, i), key(parts...)...)
}

func authorityKey(a *fleet.Authority) []byte {
	sum := sha256.Sum256(a.Certificate)
	return append(key(a.Server), sum[:]...)
}

// by indexes objects of one type by a key; queries pass ready keys.
type by[T any] func(T) []byte

func (f by[T]) FromObject(obj any) (bool, []byte, error) {
	o, ok := obj.(T)
	if !ok {
		return false, nil, fmt.Errorf("state: indexed %T as %T", obj, o)
	}
	return true, f(o), nil
}

func (f by[T]) FromArgs(args ...any) ([]byte, error) {
	if len(args) == 1 {
		if k, ok := args[0].([]byte); ok {
			return k, nil
		}
	}
	return nil, fmt.Errorf("state: a query takes one ready key, got %v", args)
}

func (f by[T]) PrefixFromArgs(args ...any) ([]byte, error) { return f.FromArgs(args...) }

func unique[T any](f by[T]) map[string]*memdb.IndexSchema {
	return map[string]*memdb.IndexSchema{indexID: {Name: indexID, Unique: true, Indexer: f}}
}

func also[T any](m map[string]*memdb.IndexSchema, name string, uniq bool, f by[T]) map[string]*memdb.IndexSchema {
	m[name] = &memdb.IndexSchema{Name: name, Unique: uniq, Indexer: f}
	return m
}

func schema() *memdb.DBSchema {
	instances := unique(func(i *fleet.Instance) []byte { return key(i.UID) })
	also(instances, indexNode, false, func(i *fleet.Instance) []byte { return key(string(i.Node)) })
	also(instances, indexWorkload, false, func(i *fleet.Instance) []byte { return key(i.Namespace, i.Workload) })
	// Not unique: a workload that was forgotten and made anew counts from 1 again.
	also(instances, indexName, false, func(i *fleet.Instance) []byte { return key(i.Namespace, i.Instance) })

	// Of equal keys the index goes by sequence.
	events := unique[*fleet.Event](eventSequence)
	also[*fleet.Event](events, indexObject, false, eventObject)
	also(events, indexSpace, false, func(e *fleet.Event) []byte { return key(e.Namespace) })
	also[*fleet.Event](events, indexSame, false, sameEvent)

	tables := map[string]map[string]*memdb.IndexSchema{
		tableMeta:        unique(func(*meta) []byte { return key("meta") }),
		tableServers:     unique(func(s *fleet.Server) []byte { return key(s.ID) }),
		tableAuthorities: unique(authorityKey),
		tableRoles:       unique(func(r *fleet.Role) []byte { return key(r.User, r.Namespace) }),
		tableTokens:      unique(func(t *fleet.Token) []byte { return key(t.ID) }),
		tableNodes: also(unique(func(n *fleet.Node) []byte { return key(string(n.ID)) }),
			indexSite, false, func(n *fleet.Node) []byte { return key(string(n.Site)) }),
		tableWorkloads: unique(func(w *fleet.StoredWorkload) []byte { return key(w.Spec.Namespace, w.Spec.Name) }),
		tableInstances: instances,
		tableSiteKeys:  unique(func(k *fleet.SiteKeys) []byte { return key(string(k.Site)) }),
		tableApplied: also(unique(func(a *redoubtv1.AppliedCommand) []byte { return key(a.GetId()) }),
			indexLog, false, func(a *redoubtv1.AppliedCommand) []byte { return logKey(a.GetIndex()) }),
		tableEvents:      events,
		tableEventScopes: unique(func(s *eventScope) []byte { return scopeKey(s.key) }),
		tableTombstones: also(unique(func(t *tombstone) []byte { return append(key(string(t.node)), logKey(t.index, t.uid)...) }),
			indexLog, false, func(t *tombstone) []byte { return logKey(t.index) }),
	}
	s := &memdb.DBSchema{Tables: map[string]*memdb.TableSchema{}}
	for name, indexes := range tables {
		s.Tables[name] = &memdb.TableSchema{Name: name, Indexes: indexes}
	}
	return s
}
