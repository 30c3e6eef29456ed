package state

import (
	"bytes"
	"fmt"
	"slices"

	"google.golang.org/grpc/codes"

	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/isolation"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

func (a *apply) initCluster(op *redoubtv1.InitCluster) (outcome, error) {
	if err := segments("cluster id", op.GetClusterId(), "trust domain", op.GetTrustDomain()); err != nil {
		return outcome{}, err
	}
	m := *a.meta()
	want := Cluster{ID: op.GetClusterId(), TrustDomain: op.GetTrustDomain()}
	if m.cluster == want {
		return outcome{result: Unchanged}, nil
	}
	if m.cluster.ID != "" {
		return outcome{}, refuse(codes.FailedPrecondition, "this is cluster %s of trust domain %s already", m.cluster.ID, m.cluster.TrustDomain)
	}
	server, err := checkServer(op.GetServer())
	if err != nil {
		return outcome{}, err
	}
	authority, err := checkAuthority(op.GetAuthority(), server.ID)
	if err != nil {
		return outcome{}, err
	}
	role, err := checkRole(op.GetAdmin())
	if err != nil {
		return outcome{}, err
	}
	m.cluster = want
	a.put(tableMeta, &m)
	a.put(tableServers, server)
	a.put(tableAuthorities, authority)
	a.put(tableRoles, role)
	return outcome{revision: a.index, result: Created}, nil
}

func checkServer(p *redoubtv1.Server) (*fleet.Server, error) {
	if err := segment("server id", p.GetId()); err != nil {
		return nil, err
	}
	s := ServerFromProto(p)
	return s, texts("API address", s.APIAddress, "Raft address", s.RaftAddress,
		"enrolment address", s.EnrollAddress, "version", s.Version)
}

func checkAuthority(p *redoubtv1.Authority, server string) (*fleet.Authority, error) {
	switch n := len(p.GetCertificate()); {
	case p.GetServer() != server:
		return nil, refuse(codes.PermissionDenied, "authority of server %q in the name of %s", p.GetServer(), server)
	case n == 0:
		return nil, refuse(codes.InvalidArgument, "server %s: the authority has no certificate", server)
	case n > maxCertificate:
		return nil, refuse(codes.InvalidArgument, "server %s: the authority's certificate is %d bytes long, at most %d are kept", server, n, maxCertificate)
	}
	return AuthorityFromProto(p), nil
}

func checkRole(p *redoubtv1.RoleBinding) (*fleet.Role, error) {
	r := RoleFromProto(p)
	if err := segment("user", r.User); err != nil {
		return nil, err
	}
	if r.Namespace != fleet.AllNamespaces {
		if err := segment("namespace", r.Namespace); err != nil {
			return nil, err
		}
	}
	if err := fleet.ValidRole(r.Role); err != nil {
		return nil, refuse(codes.InvalidArgument, "bind user %s: %v", r.User, err)
	}
	return r, nil
}

// putAuthority adds a certificate of an admitted server. One of a server that
// left cannot be added, while those it had stay: what they signed is in use.
func (a *apply) putAuthority(p *redoubtv1.Authority) (outcome, error) {
	if _, ok := a.Server(nil, p.GetServer()); !ok {
		return outcome{}, refuse(codes.NotFound, "authority of server %q: it is no member of this fleet; join it with a token", p.GetServer())
	}
	authority, err := checkAuthority(p, p.GetServer())
	if err != nil {
		return outcome{}, err
	}
	return a.addAuthority(authority)
}

func (a *apply) addAuthority(authority *fleet.Authority) (outcome, error) {
	have := list[*fleet.Authority](&a.View, nil, tableAuthorities, prefixed(indexID), key(authority.Server))
	for _, h := range have {
		if bytes.Equal(h.Certificate, authority.Certificate) {
			return outcome{result: Unchanged}, nil
		}
	}
	if len(have) >= maxAuthorities {
		return outcome{}, refuse(codes.ResourceExhausted, "server %s has %d authorities already", authority.Server, len(have))
	}
	a.put(tableAuthorities, authority)
	return outcome{revision: a.index, result: Created}, nil
}

// putServer updates what an admitted server says of itself.
func (a *apply) putServer(p *redoubtv1.Server) (outcome, error) {
	s, err := checkServer(p)
	if err != nil {
		return outcome{}, err
	}
	before, ok := a.Server(nil, s.ID)
	if !ok {
		return outcome{}, refuse(codes.NotFound, "server %s is no member of this fleet; join it with a token", s.ID)
	}
	if *before == *s {
		return outcome{result: Unchanged}, nil
	}
	a.put(tableServers, s)
	if s.Version != before.Version {
		a.noteServer(s.ID, fleet.ReasonUpgraded, fmt.Sprintf("from version %s to %s", before.Version, s.Version))
	}
	return outcome{revision: a.index, result: Changed}, nil
}

func (a *apply) removeServer(op *redoubtv1.RemoveServerOp) (outcome, error) {
	s, ok := a.Server(nil, op.GetId())
	if !ok {
		return outcome{result: Unchanged}, nil
	}
	a.delete(tableServers, s)
	a.noteServer(s.ID, fleet.ReasonRemoved, "it votes no longer")
	return outcome{revision: a.index, result: Changed}, nil
}

// putRole binds; an empty role unbinds.
func (a *apply) putRole(p *redoubtv1.RoleBinding) (outcome, error) {
	want := RoleFromProto(p)
	before, ok := first[*fleet.Role](&a.View, nil, tableRoles, indexID, key(want.User, want.Namespace))
	if want.Role == "" {
		if !ok {
			return outcome{result: Unchanged}, nil
		}
		a.delete(tableRoles, before)
		return outcome{revision: a.index, result: Changed}, nil
	}
	role, err := checkRole(p)
	if err != nil {
		return outcome{}, err
	}
	if ok && *before == *role {
		return outcome{result: Unchanged}, nil
	}
	a.put(tableRoles, role)
	if ok {
		return outcome{revision: a.index, result: Changed}, nil
	}
	return outcome{revision: a.index, result: Created}, nil
}

func (a *apply) putSiteKeys(op *redoubtv1.PutSiteKeys) (outcome, error) {
	if err := segment("site", op.GetSite()); err != nil {
		return outcome{}, err
	}
	if n := len(op.GetKeys()); n == 0 || n > maxSiteKeys {
		return outcome{}, refuse(codes.InvalidArgument, "site %s: %d gossip keys, need 1 to %d", op.GetSite(), n, maxSiteKeys)
	}
	for i, k := range op.GetKeys() {
		if n := len(k); n != 16 && n != 24 && n != 32 {
			return outcome{}, refuse(codes.InvalidArgument, "site %s: gossip key %d has %d bytes, need 16, 24 or 32", op.GetSite(), i, n)
		}
	}
	before, ok := a.SiteKeys(nil, isolation.SiteID(op.GetSite()))
	if ok && slices.EqualFunc(before.Keys, op.GetKeys(), bytes.Equal) {
		return outcome{result: Unchanged}, nil
	}
	a.put(tableSiteKeys, SiteKeysFromProto(op))
	if ok {
		return outcome{revision: a.index, result: Changed}, nil
	}
	return outcome{revision: a.index, result: Created}, nil
}
