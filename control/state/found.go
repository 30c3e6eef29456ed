package state

import (
	"fmt"

	"redoubt.dev/redoubt/control/fleet"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// Found makes the state the beginning of a fleet with one server, at index: for
// recovery, on a store that nothing runs on. Other servers are forgotten, and
// what they signed stays trusted, as does the server's own authority. Everything
// else stays as it is.
func (f *FSM) Found(index uint64, self *redoubtv1.Server, authority *redoubtv1.Authority) error {
	txn := f.store.db.Txn(true)
	defer txn.Abort()
	v := &View{txn: txn}
	m := *v.meta()
	if index < m.index {
		return fmt.Errorf("found a fleet at log index %d: its state is as of %d", index, m.index)
	}
	for _, s := range v.Servers(nil) {
		remove(txn, tableServers, s)
	}
	if _, err := txn.DeleteAll(tableTombstones, indexID+"_prefix", []byte(nil)); err != nil {
		return err
	}
	insert(txn, tableServers, ServerFromProto(self))
	insert(txn, tableAuthorities, AuthorityFromProto(authority))
	m.index, m.floor = index, index
	insert(txn, tableMeta, &m)
	txn.Commit()
	f.store.published(index)
	return nil
}

// Transplant keeps of the state what people asked for, workloads and roles, and
// gives it to another fleet: for recovery where the authorities of the first one
// are lost. Nodes enrol there anew. Jobs keep what they have completed.
func (f *FSM) Transplant(to Cluster, admin string) error {
	txn := f.store.db.Txn(true)
	defer txn.Abort()
	for _, table := range replicated {
		if table == tableRoles || table == tableWorkloads {
			continue
		}
		if _, err := txn.DeleteAll(table, indexID+"_prefix", []byte(nil)); err != nil {
			return err
		}
	}
	if _, err := txn.DeleteAll(tableEventScopes, indexID+"_prefix", []byte(nil)); err != nil {
		return err
	}
	v := &View{txn: txn}
	m := *v.meta()
	m.cluster = to
	m.eventsForgotten = m.eventSequence // they were of the other fleet
	insert(txn, tableMeta, &m)
	insert(txn, tableRoles, &fleet.Role{User: admin, Namespace: fleet.AllNamespaces, Role: fleet.RoleAdmin})
	txn.Commit()
	f.store.published(m.index)
	return nil
}
