package state

import (
	"fmt"

	"github.com/hashicorp/go-memdb"

	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/isolation"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// View is the state at one moment. Lists are sorted by key. A getter adds to
// its WatchSet a channel that closes when its answer may have changed.
type View struct {
	txn *memdb.Txn
}

// Index is of the last command that this view includes.
func (v *View) Index() uint64 { return v.meta().index }

// Cluster names the fleet; its ID is empty before InitCluster.
func (v *View) Cluster() Cluster { return v.meta().cluster }

func (v *View) meta() *meta {
	m, ok := first[*meta](v, nil, tableMeta, indexID, key("meta"))
	if !ok {
		panic("state: no meta object")
	}
	return m
}

// Server returns an admitted server.
func (v *View) Server(ws WatchSet, id string) (*fleet.Server, bool) {
	return first[*fleet.Server](v, ws, tableServers, indexID, key(id))
}

// Servers are all admitted servers.
func (v *View) Servers(ws WatchSet) []*fleet.Server {
	return list[*fleet.Server](v, ws, tableServers, prefixed(indexID), nil)
}

// Authorities is the trust bundle: of servers that left, too, since what they
// signed is in use.
func (v *View) Authorities(ws WatchSet) []*fleet.Authority {
	return list[*fleet.Authority](v, ws, tableAuthorities, prefixed(indexID), nil)
}

// Roles are all role bindings.
func (v *View) Roles(ws WatchSet) []*fleet.Role {
	return list[*fleet.Role](v, ws, tableRoles, prefixed(indexID), nil)
}

// RolesOf are the bindings of one user.
func (v *View) RolesOf(user string) []fleet.Role {
	var roles []fleet.Role
	for _, r := range list[*fleet.Role](v, nil, tableRoles, prefixed(indexID), key(user)) {
		roles = append(roles, *r)
	}
	return roles
}

// Token returns a join token.
func (v *View) Token(id string) (*fleet.Token, bool) {
	return first[*fleet.Token](v, nil, tableTokens, indexID, key(id))
}

// Tokens are all join tokens, used and expired ones too.
func (v *View) Tokens(ws WatchSet) []*fleet.Token {
	return list[*fleet.Token](v, ws, tableTokens, prefixed(indexID), nil)
}

// Node returns an enrolled node.
func (v *View) Node(ws WatchSet, id isolation.NodeID) (*fleet.Node, bool) {
	return first[*fleet.Node](v, ws, tableNodes, indexID, key(string(id)))
}

// Nodes are all enrolled nodes.
func (v *View) Nodes(ws WatchSet) []*fleet.Node {
	return list[*fleet.Node](v, ws, tableNodes, prefixed(indexID), nil)
}

// NodesOf are the nodes of one site.
func (v *View) NodesOf(ws WatchSet, site isolation.SiteID) []*fleet.Node {
	return list[*fleet.Node](v, ws, tableNodes, indexSite, key(string(site)))
}

// Workload returns a workload that is not forgotten yet.
func (v *View) Workload(ws WatchSet, namespace, name string) (*fleet.StoredWorkload, bool) {
	return first[*fleet.StoredWorkload](v, ws, tableWorkloads, indexID, key(namespace, name))
}

// Workloads are those of a namespace, or all where it is empty.
func (v *View) Workloads(ws WatchSet, namespace string) []*fleet.StoredWorkload {
	var prefix []byte
	if namespace != "" {
		prefix = key(namespace)
	}
	return list[*fleet.StoredWorkload](v, ws, tableWorkloads, prefixed(indexID), prefix)
}

// Instance returns an instance by its uid.
func (v *View) Instance(ws WatchSet, uid string) (*fleet.Instance, bool) {
	return first[*fleet.Instance](v, ws, tableInstances, indexID, key(uid))
}

// InstanceNamed returns the newest instance that people call name.
func (v *View) InstanceNamed(ws WatchSet, namespace, name string) (*fleet.Instance, bool) {
	var newest *fleet.Instance
	for _, i := range list[*fleet.Instance](v, ws, tableInstances, indexName, key(namespace, name)) {
		if newest == nil || newest.Fence.Compare(i.Fence) < 0 {
			newest = i
		}
	}
	return newest, newest != nil
}

// Instances are all, by uid.
func (v *View) Instances(ws WatchSet) []*fleet.Instance {
	return list[*fleet.Instance](v, ws, tableInstances, prefixed(indexID), nil)
}

// InstancesOf are those assigned to a node, ended and lost ones too.
func (v *View) InstancesOf(ws WatchSet, node isolation.NodeID) []*fleet.Instance {
	return list[*fleet.Instance](v, ws, tableInstances, indexNode, key(string(node)))
}

// InstancesOfWorkload are those of one workload, ended and lost ones too.
func (v *View) InstancesOfWorkload(ws WatchSet, namespace, name string) []*fleet.Instance {
	return list[*fleet.Instance](v, ws, tableInstances, indexWorkload, key(namespace, name))
}

// Allocated sums the reservations of a node's live instances.
func (v *View) Allocated(node isolation.NodeID) (cpuMillis, memoryBytes int64) {
	for _, i := range v.InstancesOf(nil, node) {
		if i.Live() {
			cpuMillis += i.CPUMillis
			memoryBytes += i.MemoryBytes
		}
	}
	return cpuMillis, memoryBytes
}

// SiteKeys returns a site's gossip keys.
func (v *View) SiteKeys(ws WatchSet, site isolation.SiteID) (*fleet.SiteKeys, bool) {
	return first[*fleet.SiteKeys](v, ws, tableSiteKeys, indexID, key(string(site)))
}

// Applied returns what the command with that id did, if it is still known.
func (v *View) Applied(commandID string) (Applied, bool) {
	a, ok := first[*redoubtv1.AppliedCommand](v, nil, tableApplied, indexID, key(commandID))
	if !ok {
		return Applied{}, false
	}
	return Applied{Index: a.GetIndex(), Results: a.GetResults(), Duplicate: true}, true
}

func prefixed(index string) string { return index + "_prefix" }

func first[T any](v *View, ws WatchSet, table, index string, k []byte) (T, bool) {
	var zero T
	ch, obj, err := v.txn.FirstWatch(table, index, k)
	if err != nil {
		panic(fmt.Sprintf("state: read %s: %v", table, err))
	}
	if ws != nil {
		ws.Add(ch)
	}
	if obj == nil {
		return zero, false
	}
	return obj.(T), true
}

func list[T any](v *View, ws WatchSet, table, index string, k []byte) []T {
	it, err := v.txn.Get(table, index, k)
	if err != nil {
		panic(fmt.Sprintf("state: read %s: %v", table, err))
	}
	if ws != nil {
		ws.Add(it.WatchCh())
	}
	var out []T
	for obj := it.Next(); obj != nil; obj = it.Next() {
		out = append(out, obj.(T))
	}
	return out
}

// FeatureLevelOf is what an admitted server declared that it can apply.
func (v *View) FeatureLevelOf(server string) (uint32, bool) {
	s, ok := v.Server(nil, server)
	if !ok {
		return 0, false
	}
	return s.FeatureLevel, true
}
