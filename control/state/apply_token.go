package state

import (
	"bytes"
	"crypto/subtle"
	"time"

	"google.golang.org/grpc/codes"

	"redoubt.dev/redoubt/control/fleet"
	"redoubt.dev/redoubt/isolation"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

func (a *apply) putToken(op *redoubtv1.PutToken) (outcome, error) {
	if err := segment("token id", op.GetId()); err != nil {
		return outcome{}, err
	}
	if n := len(op.GetSecretHash()); n == 0 || n > maxTokenHash {
		return outcome{}, refuse(codes.InvalidArgument, "token %s: its secret's hash has %d bytes", op.GetId(), n)
	}
	if r := op.GetRole(); r != fleet.TokenNode && r != fleet.TokenServer {
		return outcome{}, refuse(codes.InvalidArgument, "token %s: role %q is neither node nor server", op.GetId(), r)
	}
	if op.GetNode() != "" {
		if err := segment("node", op.GetNode()); err != nil {
			return outcome{}, err
		}
	}
	if op.GetSite() != "" {
		if err := segment("site", op.GetSite()); err != nil {
			return outcome{}, err
		}
	}
	if !op.GetExpires().IsValid() {
		return outcome{}, refuse(codes.InvalidArgument, "token %s has no valid time of expiry", op.GetId())
	}
	token := TokenFromProto(&redoubtv1.StoredToken{Token: op})
	if before, ok := a.Token(token.ID); ok {
		if bytes.Equal(before.SecretHash, token.SecretHash) && before.Role == token.Role &&
			before.Node == token.Node && before.Site == token.Site && before.Expires.Equal(token.Expires) {
			return outcome{result: Unchanged}, nil
		}
		return outcome{}, refuse(codes.AlreadyExists, "token %s exists already", token.ID)
	}
	a.put(tableTokens, token)
	return outcome{revision: a.index, result: Created}, nil
}

func (a *apply) removeTokens(op *redoubtv1.RemoveTokens) (outcome, error) {
	out := outcome{result: Unchanged}
	for _, id := range op.GetIds() {
		if t, ok := a.Token(id); ok {
			a.delete(tableTokens, t)
			out = outcome{revision: a.index, result: Changed}
		}
	}
	return out, nil
}

// bindToken lets the first key use a token, and enrols what it is for. The same
// key may repeat, so that a dropped answer burns nothing.
func (a *apply) bindToken(op *redoubtv1.BindToken) (outcome, error) {
	token, ok := a.Token(op.GetId())
	if !ok {
		return outcome{}, refuse(codes.NotFound, "join token %.40q is not known here: it was removed, or is of another fleet; make a new one with \"redoubt node join-token\"", op.GetId())
	}
	if subtle.ConstantTimeCompare(token.SecretHash, op.GetSecretHash()) != 1 {
		return outcome{}, refuse(codes.PermissionDenied, "join token %s: the secret is wrong; copy the whole token again", token.ID)
	}
	if n := len(op.GetKeyHash()); n == 0 || n > maxID {
		return outcome{}, refuse(codes.InvalidArgument, "join token %s: the key's hash has %d bytes", token.ID, n)
	}
	if token.KeyHash != "" && token.KeyHash != op.GetKeyHash() {
		return outcome{}, refuse(codes.PermissionDenied, "join token %s was used already, by %s with another key; make a new one with \"redoubt node join-token\"", token.ID, token.BoundTo)
	}
	if !a.now.Before(token.Expires) {
		return outcome{}, refuse(codes.PermissionDenied, "join token %s expired at %s; make a new one with \"redoubt node join-token\"", token.ID, token.Expires.UTC().Format(time.RFC3339))
	}
	isServer := op.GetServer() != nil
	if isServer != (token.Role == fleet.TokenServer) {
		return outcome{}, refuse(codes.PermissionDenied, "join token %s is for a %s", token.ID, token.Role)
	}
	var name string
	var admit func(*redoubtv1.BindToken, *fleet.Token) (outcome, error)
	if isServer {
		name, admit = op.GetServer().GetId(), a.admitServer
	} else {
		name, admit = op.GetNode(), a.enrolNode
	}
	if token.BoundTo != "" && token.BoundTo != name {
		return outcome{}, refuse(codes.PermissionDenied, "join token %s was used already, by %s; one token admits one %s", token.ID, token.BoundTo, token.Role)
	}
	out, err := admit(op, token)
	if err != nil {
		return outcome{}, err
	}
	if token.KeyHash == "" {
		bound := *token
		bound.KeyHash, bound.BoundTo = op.GetKeyHash(), name
		a.put(tableTokens, &bound)
	}
	return out, nil
}

// admitServer makes a server a member; making it a voter is consensus' part.
func (a *apply) admitServer(op *redoubtv1.BindToken, token *fleet.Token) (outcome, error) {
	server, err := checkServer(op.GetServer())
	if err != nil {
		return outcome{}, err
	}
	authority, err := checkAuthority(op.GetAuthority(), server.ID)
	if err != nil {
		return outcome{}, err
	}
	before, known := a.Server(nil, server.ID)
	if known && token.BoundTo != server.ID {
		return outcome{}, refuse(codes.AlreadyExists, "server %s is a member already; remove it first with \"redoubt operator raft remove %s\", or choose another id", server.ID, server.ID)
	}
	added, err := a.addAuthority(authority)
	if err != nil {
		return outcome{}, err
	}
	if known && *before == *server {
		return added, nil
	}
	a.put(tableServers, server)
	a.noteServer(server.ID, fleet.ReasonJoined, "admitted by a join token, at "+server.APIAddress)
	return outcome{revision: a.index, result: Created}, nil
}

func (a *apply) enrolNode(op *redoubtv1.BindToken, token *fleet.Token) (outcome, error) {
	id, site := isolation.NodeID(op.GetNode()), isolation.SiteID(op.GetSite())
	if site == "" {
		site = token.Site
	}
	if err := segments("node", string(id), "site", string(site)); err != nil {
		return outcome{}, err
	}
	if token.Node != "" && token.Node != id {
		return outcome{}, refuse(codes.PermissionDenied, "join token %s is for node %s, not %s", token.ID, token.Node, id)
	}
	if token.Site != "" && token.Site != site {
		return outcome{}, refuse(codes.PermissionDenied, "join token %s is for site %s, not %s", token.ID, token.Site, site)
	}
	before, ok := a.Node(nil, id)
	if !ok {
		n := &fleet.Node{ID: id, Site: site, KeyHash: op.GetKeyHash(), Enrolled: a.now, Revision: a.index}
		a.put(tableNodes, n)
		a.noteNode(n, fleet.ByLeader, fleet.ReasonJoined, false, "enrolled by a join token, in site "+string(site))
		return outcome{revision: a.index, result: Created}, nil
	}
	if before.KeyHash == op.GetKeyHash() && before.Site == site {
		return outcome{revision: before.Revision, result: Unchanged}, nil
	}
	if before.KeyHash != op.GetKeyHash() && token.Node != id {
		return outcome{}, refuse(codes.PermissionDenied, "node %s is enrolled with another key; if this is a new machine of that name, make a token that names it: \"redoubt node join-token --node %s\"", id, id)
	}
	if before.Site != site {
		if token.Node != id {
			return outcome{}, refuse(codes.FailedPrecondition, "node %s belongs to site %s, not %s; moving it takes a token that names it", id, before.Site, site)
		}
		for _, i := range a.InstancesOf(nil, id) {
			if !i.Gone() {
				return outcome{}, refuse(codes.FailedPrecondition, "node %s cannot move from site %s to %s while it has instances (%s)", id, before.Site, site, i.Instance)
			}
		}
	}
	// Another key is another machine, or the old one made anew: what it reported
	// is void and its generations may begin again.
	n := *before
	n.Site, n.KeyHash, n.Enrolled, n.Revision = site, op.GetKeyHash(), a.now, a.index
	n.Report = nil
	a.put(tableNodes, &n)
	a.noteNode(&n, fleet.ByLeader, fleet.ReasonJoined, false, "enrolled anew, in site "+string(site))
	return outcome{revision: a.index, result: Changed}, nil
}
