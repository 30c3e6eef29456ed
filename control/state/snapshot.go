package state

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/hashicorp/go-memdb"
	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"

	"redoubt.dev/redoubt/control/fleet"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

const (
	snapshotFormat = 1
	// maxRecord bounds one record; a command is at most a mebibyte, its results
	// and the workload in an assignment likewise.
	maxRecord = 8 << 20
)

// Snapshot takes the state as of now; writing it does not hold up Apply.
func (f *FSM) Snapshot() (raft.FSMSnapshot, error) { return &snapshot{f.store.Snapshot()}, nil }

type snapshot struct{ view *View }

func (s *snapshot) Persist(sink raft.SnapshotSink) error {
	if err := s.view.Write(sink); err != nil {
		return errors.Join(fmt.Errorf("write snapshot of log index %d: %w", s.view.Index(), err), sink.Cancel())
	}
	return sink.Close()
}

func (s *snapshot) Release() {}

// Write streams the view as length-delimited SnapshotRecords: a header, every
// object by table and key, a trailer with their count. The same state gives the
// same bytes.
func (v *View) Write(w io.Writer) error {
	buf := bufio.NewWriterSize(w, 64<<10)
	out := protodelim.MarshalOptions{MarshalOptions: proto.MarshalOptions{Deterministic: true}}
	var records uint64
	put := func(r *redoubtv1.SnapshotRecord) error {
		records++
		_, err := out.MarshalTo(buf, r)
		return err
	}
	cluster := v.Cluster()
	if err := put(&redoubtv1.SnapshotRecord{Record: &redoubtv1.SnapshotRecord_Header{Header: &redoubtv1.SnapshotHeader{
		Format: snapshotFormat, ClusterId: cluster.ID, TrustDomain: cluster.TrustDomain, Index: v.Index(),
	}}}); err != nil {
		return err
	}
	if m := v.meta(); m.events {
		if err := put(&redoubtv1.SnapshotRecord{Record: &redoubtv1.SnapshotRecord_EventLog{EventLog: &redoubtv1.EventLog{
			Sequence: m.eventSequence, Forgotten: m.eventsForgotten,
		}}}); err != nil {
			return err
		}
	}
	for _, table := range replicated {
		it, err := v.txn.Get(table, prefixed(indexID), []byte(nil))
		if err != nil {
			return err
		}
		for obj := it.Next(); obj != nil; obj = it.Next() {
			if err := put(record(obj)); err != nil {
				return err
			}
		}
	}
	if err := put(&redoubtv1.SnapshotRecord{Record: &redoubtv1.SnapshotRecord_Trailer{Trailer: &redoubtv1.SnapshotTrailer{
		Records: records - 1, // without the header
	}}}); err != nil {
		return err
	}
	return buf.Flush()
}

func record(obj any) *redoubtv1.SnapshotRecord {
	r := &redoubtv1.SnapshotRecord{}
	switch o := obj.(type) {
	case *fleet.Server:
		r.Record = &redoubtv1.SnapshotRecord_Server{Server: ServerToProto(o)}
	case *fleet.Authority:
		r.Record = &redoubtv1.SnapshotRecord_Authority{Authority: AuthorityToProto(o)}
	case *fleet.Role:
		r.Record = &redoubtv1.SnapshotRecord_Role{Role: RoleToProto(o)}
	case *fleet.Token:
		r.Record = &redoubtv1.SnapshotRecord_Token{Token: TokenToProto(o)}
	case *fleet.Node:
		r.Record = &redoubtv1.SnapshotRecord_Node{Node: NodeToProto(o)}
	case *fleet.StoredWorkload:
		r.Record = &redoubtv1.SnapshotRecord_Workload{Workload: WorkloadToProto(o)}
	case *fleet.Instance:
		r.Record = &redoubtv1.SnapshotRecord_Assignment{Assignment: InstanceToProto(o)}
	case *fleet.SiteKeys:
		r.Record = &redoubtv1.SnapshotRecord_SiteKeys{SiteKeys: SiteKeysToProto(o)}
	case *redoubtv1.AppliedCommand:
		r.Record = &redoubtv1.SnapshotRecord_Applied{Applied: o}
	case *fleet.Event:
		r.Record = &redoubtv1.SnapshotRecord_Event{Event: EventToProto(o)}
	default:
		panic(fmt.Sprintf("state: %T has no snapshot record", obj))
	}
	return r
}

// Restore replaces the whole state by a snapshot's, in one step: until it has
// been read to its end and found whole, nothing changes.
func (f *FSM) Restore(rc io.ReadCloser) error {
	defer rc.Close()
	txn := f.store.db.Txn(true)
	defer txn.Abort()
	index, err := restore(txn, rc)
	if err != nil {
		return fmt.Errorf("restore snapshot: %w", err)
	}
	txn.Commit()
	f.store.published(index)
	return nil
}

func restore(txn *memdb.Txn, r io.Reader) (uint64, error) {
	for _, table := range append([]string{tableTombstones, tableEventScopes}, replicated...) {
		if _, err := txn.DeleteAll(table, indexID+"_prefix", []byte(nil)); err != nil {
			return 0, err
		}
	}
	in := bufio.NewReaderSize(r, 64<<10)
	opts := protodelim.UnmarshalOptions{MaxSize: maxRecord}
	var header *redoubtv1.SnapshotHeader
	for n := uint64(0); ; n++ {
		rec := &redoubtv1.SnapshotRecord{}
		if err := opts.UnmarshalFrom(in, rec); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return 0, fmt.Errorf("record %d: %w", n, err)
		}
		if n == 0 {
			header = rec.GetHeader()
			if header == nil {
				return 0, errors.New("it does not begin with a header")
			}
			if header.GetFormat() != snapshotFormat {
				return 0, fmt.Errorf("it has format %d, this version reads %d", header.GetFormat(), snapshotFormat)
			}
			insert(txn, tableMeta, &meta{
				index: header.GetIndex(), floor: header.GetIndex(),
				cluster: Cluster{ID: header.GetClusterId(), TrustDomain: header.GetTrustDomain()},
			})
			continue
		}
		if t := rec.GetTrailer(); t != nil {
			if t.GetRecords() != n-1 {
				return 0, fmt.Errorf("it has %d records and its trailer says %d", n-1, t.GetRecords())
			}
			if _, err := in.ReadByte(); err != io.EOF {
				return 0, errors.New("there is more behind its trailer")
			}
			return header.GetIndex(), nil
		}
		if l := rec.GetEventLog(); l != nil {
			m := *(&View{txn: txn}).meta()
			m.events, m.eventSequence, m.eventsForgotten = true, l.GetSequence(), l.GetForgotten()
			insert(txn, tableMeta, &m)
			continue
		}
		table, obj, err := object(rec)
		if err != nil {
			return 0, fmt.Errorf("record %d: %w", n, err)
		}
		if err := txn.Insert(table, obj); err != nil {
			return 0, fmt.Errorf("record %d: %w", n, err)
		}
		if e, ok := obj.(*fleet.Event); ok {
			(&View{txn: txn}).countEvent(e, 1)
		}
	}
}

func object(rec *redoubtv1.SnapshotRecord) (table string, obj any, err error) {
	switch r := rec.GetRecord().(type) {
	case *redoubtv1.SnapshotRecord_Server:
		return tableServers, ServerFromProto(r.Server), nil
	case *redoubtv1.SnapshotRecord_Authority:
		return tableAuthorities, AuthorityFromProto(r.Authority), nil
	case *redoubtv1.SnapshotRecord_Role:
		return tableRoles, RoleFromProto(r.Role), nil
	case *redoubtv1.SnapshotRecord_Token:
		return tableTokens, TokenFromProto(r.Token), nil
	case *redoubtv1.SnapshotRecord_Node:
		obj, err = NodeFromProto(r.Node)
		return tableNodes, obj, err
	case *redoubtv1.SnapshotRecord_Workload:
		obj, err = WorkloadFromProto(r.Workload)
		return tableWorkloads, obj, err
	case *redoubtv1.SnapshotRecord_Assignment:
		obj, err = InstanceFromProto(r.Assignment)
		return tableInstances, obj, err
	case *redoubtv1.SnapshotRecord_SiteKeys:
		return tableSiteKeys, SiteKeysFromProto(r.SiteKeys), nil
	case *redoubtv1.SnapshotRecord_Applied:
		return tableApplied, r.Applied, nil
	case *redoubtv1.SnapshotRecord_Event:
		return tableEvents, EventFromProto(r.Event), nil
	}
	return "", nil, errors.New("it is of a kind that this version does not know")
}
