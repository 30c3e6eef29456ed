package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"redoubt.dev/redoubt/agent/store"
	"redoubt.dev/redoubt/identity"
	"redoubt.dev/redoubt/identity/attest"
	redoubtv1 "redoubt.dev/redoubt/proto/redoubt/v1"
)

// Member is who this node is in which fleet, once it has enrolled.
type Member struct {
	Node    string `json:"node"`
	Site    string `json:"site"`
	Cluster string `json:"cluster"`
}

// ErrNotEnrolled: the data directory holds no identity yet.
var ErrNotEnrolled = errors.New("this node has not joined a fleet: start the agent with --token, from: redoubt node join-token")

const memberFile = "member.json"

// IdentityDir is where a node's identity lies.
func IdentityDir(dataDir string) string { return filepath.Join(dataDir, "identity") }

// Enrolled says who the node of dataDir is; ErrNotEnrolled if it is nobody yet.
func Enrolled(dataDir string) (Member, error) {
	b, err := identity.ReadPrivate(filepath.Join(dataDir, memberFile))
	if errors.Is(err, fs.ErrNotExist) {
		return Member{}, ErrNotEnrolled
	}
	if err != nil {
		return Member{}, fmt.Errorf("read who this node is: %w", err)
	}
	var m Member
	if err := json.Unmarshal(b, &m); err != nil || m.Node == "" {
		return Member{}, fmt.Errorf("%s is damaged; remove it and join again with a token", filepath.Join(dataDir, memberFile))
	}
	return m, nil
}

// Enrolment is what a first contact needs.
type Enrolment struct {
	DataDir string
	Token   string // a secret
	// Node and Site are what the node wants to be called; a token may decide.
	// Without either's word a node is called as its host is.
	Node, Site string
	// Servers are enrolment addresses, beside those in the token.
	Servers []string
	Dial    DialContext
	Log     *slog.Logger
}

// hostName is the host's name without its domain, if a node can be called so.
func hostName() string {
	name, err := os.Hostname()
	if err != nil {
		return ""
	}
	name, _, _ = strings.Cut(strings.ToLower(name), ".")
	if identity.CheckName(name) != nil {
		return ""
	}
	return name
}

// Enroll joins the fleet that the token is of. The node's key is made once and
// kept, so it may be repeated after any failure: the token binds to that key.
// A node that has joined already is left as it is, if it is of the same fleet
// and name. Enroll tries until ctx ends, or the fleet refuses.
func Enroll(ctx context.Context, e Enrolment) (Member, error) {
	fail := func(err error) (Member, error) { return Member{}, fmt.Errorf("join the fleet: %w", err) }
	token, err := attest.ParseToken(e.Token)
	if err != nil {
		return fail(err)
	}
	if token.Role != identity.KindNode {
		return fail(fmt.Errorf("the token is for a %s, not for a node; make one with: redoubt node join-token", token.Role))
	}
	if e.Node == "" {
		e.Node = token.Name
	}
	if e.Site == "" {
		e.Site = token.Site
	}
	if e.Node == "" {
		e.Node = hostName()
	}
	switch {
	case e.Node == "":
		return fail(errors.New("the host has no name that a node can have; give one with --node"))
	case token.Name != "" && token.Name != e.Node:
		return fail(fmt.Errorf("the token is for node %s, this is %s", token.Name, e.Node))
	case token.Site != "" && token.Site != e.Site:
		return fail(fmt.Errorf("the token is for site %s, this node says %s", token.Site, e.Site))
	case e.Site == "":
		return fail(errors.New("the node has no site; give one with --site"))
	}
	if err := identity.CheckName(e.Node); err != nil {
		return fail(fmt.Errorf("node: %w", err))
	}

	if m, err := Enrolled(e.DataDir); err == nil {
		if m.Node != e.Node || m.Site != e.Site {
			return fail(fmt.Errorf("%s belongs to node %s of site %s already; give this one another --data-dir", e.DataDir, m.Node, m.Site))
		}
		return m, nil
	} else if !errors.Is(err, ErrNotEnrolled) {
		return fail(err)
	}
	st, err := store.Open(e.DataDir, e.Node)
	if err != nil {
		return fail(err)
	}
	defer st.Close()
	disk, err := identity.OpenDisk(IdentityDir(e.DataDir), e.Log)
	if err != nil {
		return fail(err)
	}
	defer disk.Close()
	key, err := disk.EnrolmentKey()
	if err != nil {
		return fail(err)
	}
	csr, err := attest.NewCSR(key)
	if err != nil {
		return fail(err)
	}
	servers := append(append([]string{}, e.Servers...), token.Addresses...)
	if len(servers) == 0 {
		return fail(errors.New("no server is known; give one with --join HOST:7452"))
	}
	opts := append(dialOptions(e.Dial), grpc.WithTransportCredentials(attest.PinnedCredentials(token.TrustDomain, token.Pins)))
	var resp *redoubtv1.EnrollNodeResponse
	for delay := time.Duration(0); ; {
		var refused error
		err := anyOf(ctx, servers, func(ctx context.Context, server string) error {
			conn, err := grpc.NewClient(target(server), opts...)
			if err != nil {
				return err
			}
			defer conn.Close()
			resp, err = redoubtv1.NewEnrollmentServiceClient(conn).EnrollNode(ctx, &redoubtv1.EnrollNodeRequest{
				Token: e.Token, Csr: csr, Node: e.Node, Site: e.Site,
			})
			if isRefusal(err) {
				refused = errors.New(status.Convert(err).Message())
			}
			return err
		})
		if err == nil {
			break
		}
		if refused != nil {
			return fail(refused)
		}
		delay = min(max(2*delay, time.Second), 15*time.Second)
		e.Log.Warn("no server answers yet", "err", err, "again_in", delay)
		t := time.NewTimer(delay)
		select {
		case <-ctx.Done():
			t.Stop()
			return fail(fmt.Errorf("%w; last: %w", ctx.Err(), err))
		case <-t.C:
		}
	}
	return e.keep(st, disk, token, resp)
}

// isRefusal: asking again will not help.
func isRefusal(err error) bool {
	switch status.Code(err) {
	case codes.InvalidArgument, codes.PermissionDenied, codes.Unauthenticated, codes.NotFound, codes.AlreadyExists, codes.FailedPrecondition, codes.Unimplemented:
		return true
	}
	return false
}

// keep writes what was learned; the member file last, since it says that all
// of it is there.
func (e Enrolment) keep(st *store.Store, disk *identity.DiskSource, token attest.Token, resp *redoubtv1.EnrollNodeResponse) (Member, error) {
	fail := func(err error) (Member, error) { return Member{}, fmt.Errorf("keep what the fleet answered: %w", err) }
	key, err := disk.EnrolmentKey()
	if err != nil {
		return fail(err)
	}
	chain, err := chainOf(resp.GetCertificates())
	if err != nil {
		return fail(err)
	}
	svid, err := identity.NewSVID(key, chain)
	if err != nil {
		return fail(err)
	}
	want, err := identity.NodeID(token.TrustDomain, e.Node)
	if err != nil {
		return fail(err)
	}
	if svid.ID != want.SPIFFE() {
		return fail(fmt.Errorf("the certificate is of %s, this node is %s", svid.ID, want))
	}
	bundle, err := bundleOf(token.TrustDomain, resp.GetBundle())
	if err != nil {
		return fail(err)
	}
	if err := st.BindCluster(resp.GetClusterId()); err != nil {
		return fail(err)
	}
	if err := st.SetFleet(&redoubtv1.FleetUpdate{Servers: resp.GetServers(), EnrollServers: resp.GetEnrollServers(), Bundle: resp.GetBundle()}); err != nil {
		return fail(err)
	}
	if err := disk.SetBundle(bundle); err != nil {
		return fail(err)
	}
	if err := disk.Set(svid); err != nil {
		return fail(err)
	}
	m := Member{Node: e.Node, Site: e.Site, Cluster: resp.GetClusterId()}
	if resp.GetSite() != "" {
		m.Site = resp.GetSite()
	}
	b, err := json.Marshal(m)
	if err != nil {
		return fail(err)
	}
	if err := identity.WriteFile(filepath.Join(e.DataDir, memberFile), b); err != nil {
		return fail(err)
	}
	e.Log.Info("joined the fleet", "node", m.Node, "site", m.Site, "cluster", m.Cluster)
	return m, nil
}
